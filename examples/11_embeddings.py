# SPDX-License-Identifier: MIT
"""The texts that are nearest to a question, by embeddings.

    python examples/11_embeddings.py MODEL

MODEL is an embedder that pools its last token, such as Qwen/Qwen3-Embedding-0.6B: a directory with
`modules.json` and `1_Pooling/config.json`, or a hub id.  Over HTTP the same is `/v1/embeddings`.
"""

import sys

from tokenspeed_core import LLM

TEXTS = (
    "A prefix cache keeps keys and values of prompts that were seen.",
    "Paris is the capital of France.",
    "Bread is made of flour, water, salt and time.",
)
QUESTION = "Which city is the capital of France?"


def main(model: str) -> None:
    with LLM(model) as llm:
        question, *texts = llm.embed([QUESTION, *TEXTS])
        print(f"{question.values.shape[0]} values, {question.usage.prompt_tokens} tokens")
        # Of length 1, so the product is the cosine.
        scores = [float(question.values @ text.values) for text in texts]
        for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
            print(f"{score:6.3f} {text}")
        print(f"nearest: {TEXTS[scores.index(max(scores))]}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
