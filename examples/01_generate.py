# SPDX-License-Identifier: MIT
"""Generate text from a script: start an engine, ask, stop.

    python examples/01_generate.py [MODEL]

MODEL is a .gguf file, a Hugging Face directory or `smollm2`, which is downloaded once (93 MB).
"""

import sys

from tokenspeed_core import LLM, SamplingParams


def main(model: str) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    with LLM(model) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=16)
        for prompt, answer in zip(prompts, llm.generate(prompts, greedy), strict=True):
            print(f"{prompt}{answer.text}")

        messages = [{"role": "user", "content": "What is the capital of France?"}]
        answer = llm.chat(messages, SamplingParams(temperature=0, stop=["."]))
        print(f"{answer.text} ({answer.finish_reason}, {answer.usage.completion_tokens} tokens)")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["smollm2"])
