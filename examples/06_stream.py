# SPDX-License-Identifier: MIT
"""Stream several answers at once on asyncio, and leave one early.

    python examples/06_stream.py [MODEL]

All requests share the engine's steps; leaving a stream aborts its request, and its memory is free
one step later.
"""

import asyncio
import sys

from tokenspeed_core import AsyncLLM, SamplingParams

SYSTEM = {"role": "system", "content": "You answer in one short sentence."}
QUESTIONS = ["What is rain?", "What is the capital of Spain?", "Name a colour."]


async def answer(llm: AsyncLLM, question: str, max_pieces: int) -> str:
    ids = await llm.codec.chat_prompt([SYSTEM, {"role": "user", "content": question}])
    pieces: list[str] = []
    async for delta in llm.stream(ids, SamplingParams(temperature=0, max_tokens=48)):
        pieces.append(delta.text)
        if len(pieces) == max_pieces:
            break
    return f"{question} {''.join(pieces)} [cached {delta.usage.cached_tokens} tokens]"


async def main(model: str) -> None:
    async with AsyncLLM(model) as llm:
        tasks = [answer(llm, question, 6 + 60 * n) for n, question in enumerate(QUESTIONS)]
        for finished in asyncio.as_completed(tasks):
            print(await finished)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["smollm2"]))
