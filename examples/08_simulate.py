# SPDX-License-Identifier: MIT
"""Size a deployment without a GPU: conversations through the real scheduler, a card on paper.

The same from a shell: `tokenspeed simulate --traces FILE --pool 100k,200k,400k --policy lru,reuse`.
"""

import json
import random
import tempfile
from pathlib import Path

from tokenspeed_core.simulation.deployment import Deployment, Workload
from tokenspeed_core.simulation.device_model import CARDS, DeviceModel
from tokenspeed_core.simulation.model_shape import MODELS
from tokenspeed_core.simulation.report import notes, table
from tokenspeed_core.simulation.sweep import sweep
from tokenspeed_core.trace import load_trace

BLOCK = 64


def conversation(draw: random.Random) -> str:
    """An agent that reads and writes by turns: each prompt goes on from the one before."""
    rows, tokens, blocks = [], 8000, 0
    for _ in range(draw.randint(5, 30)):
        fresh = tokens // BLOCK - blocks
        pause = draw.choice((2, 2, 2, 30, 120)) * draw.random()
        rows.append([0, tokens, draw.randint(20, 400), blocks, [[blocks, fresh]], 0, pause, None])
        blocks = tokens // BLOCK
        tokens += draw.randint(200, 4000)
    return json.dumps({"tool_tokens": 4096, "system_tokens": 1024, "block": BLOCK, "rows": rows})


def main() -> None:
    draw = random.Random(8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        path.write_text("\n".join(conversation(draw) for _ in range(60)))
        trace, _ = load_trace(path, max_context=200_000)
    device = DeviceModel(MODELS["qwen3-8b"], CARDS["h100"])
    deployments = [
        Deployment(device, pool_tokens=pool, host_tokens=host * pool, eviction=eviction)
        for pool in (100_000, 200_000, device.pool_tokens)
        for eviction, host in (("lru", 0), ("reuse", 0), ("reuse", 4))
    ]
    outcomes = sweep(deployments, [Workload(sessions=12)], trace)
    print(table(outcomes))
    print(*notes(outcomes), sep="\n")


if __name__ == "__main__":
    main()
