# SPDX-License-Identifier: MIT
"""Follow an engine's prefix cache as a router does.

    python examples/09_kv_events.py [MODEL]

KV events tell which blocks of tokens can be found, as they come and go; whoever follows them knows
how much of a prompt an engine has, without asking it.
"""

import asyncio
import sys
import tempfile

from tokenspeed_core import AsyncLLM, EngineConfig, SamplingParams
from tokenspeed_core.ipc.kv_events import BlockStored, KvSubscriber

PROMPT = "The prefix cache keeps the keys and values of prompts that came before. " * 4


async def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(model=model, kv_events=f"ipc://{folder}/kv")
        async with AsyncLLM(config) as llm, KvSubscriber(config.kv_events) as batches:
            prompt = llm.codec.tokenizer.encode(PROMPT)
            await llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
            known = 0
            async for batch in batches:
                for event in batch.events:
                    name = type(event).__name__
                    if isinstance(event, BlockStored):
                        known += len(event.token_ids)
                        print(f"{name}: {len(event.block_hashes)} blocks of {event.block_size}")
                    else:
                        print(name)
                if known + 16 > len(prompt):
                    break
            print(f"a router knows {known} of {len(prompt)} tokens to be here")
            again = await llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1))
            print(f"and so it is: {again.usage.cached_tokens} were cached")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["smollm2"]))
