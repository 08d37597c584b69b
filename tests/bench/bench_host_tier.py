# SPDX-License-Identifier: MIT
"""A warm turn restored from the host tier, beside the same turn computed again.

    python tests/bench/bench_host_tier.py [--json] [--context TOKENS] [--repeats N]

SmolLM2 in bf16, real processes.  A conversation of `--context` tokens is served, another one of the
same length pushes it off the device, then its next turn comes with 32 new tokens: the time to its
first token, through the SDK.  Before the other one comes the stores have a moment to end, as they
have between the turns of a person or a tool.  Ours has a host tier, the peer is the same engine
without one.
`device` is the same turn while the blocks are still on the device.  Figures are medians, the spread
is (max - min) / median of ours.
"""

import argparse
import asyncio
import json
import random
import statistics
import time

from tokenspeed_core.config import EngineConfig
from tokenspeed_core.ipc.messages import Sampling
from tokenspeed_core.launch import Engine
from tokenspeed_core.sdk import Client

NEW_TOKENS = 32
BLOCK_SIZE = 16
VOCABULARY = 49152


def tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(300, VOCABULARY) for _ in range(count)]


async def first_token_s(client: Client, prompt: list[int]) -> float:
    start = time.perf_counter()
    stream = client.generate(prompt, max_tokens=1, sampling=Sampling())
    async for delta in stream:
        if delta.tokens:
            return time.perf_counter() - start
    raise RuntimeError("the engine ended a request without a token")


async def stored(client: Client) -> None:
    """Wait until nothing has been stored for a second."""
    seen = -1
    while client.stats is None or client.stats.stored_blocks > seen:
        seen = client.stats.stored_blocks if client.stats else -1
        await asyncio.sleep(1)


async def turns(client: Client, context: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of turns whose blocks are on the device, and of those where they went."""
    device, evicted = [], []
    for repeat in range(repeats):
        conversation, other = (tokens(context, 2 * repeat + k) for k in (0, 1))
        turn, next_turn = (tokens(NEW_TOKENS, 1000 * k + repeat) for k in (1, 2))
        await first_token_s(client, conversation)
        device.append(await first_token_s(client, conversation + turn))
        await stored(client)
        await first_token_s(client, other)
        await stored(client)
        evicted.append(await first_token_s(client, conversation + next_turn))
    return device, evicted


def measure(host_kv: int, context: int, repeats: int) -> tuple[list[float], list[float]]:
    config = EngineConfig(
        model="smollm2",
        num_blocks=context // BLOCK_SIZE + 2 * NEW_TOKENS // BLOCK_SIZE + 8,
        block_size=BLOCK_SIZE,
        host_kv=host_kv,
    )

    async def run(engine: Engine) -> tuple[list[float], list[float]]:
        async with Client(engine.run.path) as client:
            return await turns(client, context, repeats)

    with Engine.start(config) as engine:
        engine.wait_ready(300)
        return asyncio.run(run(engine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON row a line")
    parser.add_argument("--context", type=int, default=4096, metavar="TOKENS", help="default: 4096")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="default: 2")
    arguments = parser.parse_args()
    device, restored = measure(10**9, arguments.context, arguments.repeats)
    _, computed = measure(0, arguments.context, arguments.repeats)
    for case, ours in (("restored", restored), ("device", device)):
        median = statistics.median(ours)
        row = {
            "bench": "host_tier",
            "case": f"{case}_{arguments.context}",
            "metric": "time to first token",
            "unit": "s",
            "ours": round(median, 4),
            "peer": round(statistics.median(computed), 4),
            "peer_name": "computed again",
            "spread": round((max(ours) - min(ours)) / median, 3),
        }
        if arguments.json:
            print(json.dumps(row))
        else:
            print(f"{row['case']:<16} {row['ours']:.3f} s, computed again {row['peer']:.3f} s")


if __name__ == "__main__":
    main()
