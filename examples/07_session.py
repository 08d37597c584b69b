# SPDX-License-Identifier: MIT
"""Hold a conversation, and see what the prefix cache does for each turn.

    python examples/07_session.py [MODEL]

A session's name lets the engine expect its return; a hint says how soon. The usage of each answer
tells how much of its prompt was cached, and why the rest was not.
"""

import asyncio
import sys

from tokenspeed_core import AsyncLLM, SamplingParams, Session, SessionAction

QUESTIONS = ["What is the capital of France?", "And of Spain?", "Which of them is larger?"]


async def main(model: str) -> None:
    session = Session("my conversation")
    messages: list[dict[str, str]] = []
    async with AsyncLLM(model) as llm:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            params = SamplingParams(temperature=0, max_tokens=24)
            answer = await llm.chat(messages, params, session)
            messages.append({"role": "assistant", "content": answer.text})
            usage = answer.usage
            print(f"{question} {answer.text.strip()}")
            print(f"  cached {usage.cached_tokens} of {usage.prompt_tokens} tokens; {usage.report}")
            llm.hint(session, SessionAction.HUMAN)  # a person answers: within minutes, or not
        llm.hint(session, SessionAction.END)  # its blocks are the first to go


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["smollm2"]))
