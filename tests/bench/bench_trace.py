# SPDX-License-Identifier: MIT
"""Time to trace, place, verify and emit Llama 70B (80 layers) for 8 ranks, cold.

`python tests/bench/bench_trace.py [--json] [--peer PYTHON_WITH_JAX]`; with 60 layers beside torch's
make_fx, and beside JAX where an interpreter that has it is given.
"""

import argparse
import ast
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, Plan, explain
from tokenspeed_core.sharding.program import Loop

CONFIG = dict(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
    rms_norm_eps=1e-5,
)
LAYOUTS = {
    "tensor parallel": Layout("tp=8"),
    "sequence parallel": Layout("tp=8", types={"Hidden": "n@tp d"}),
    "one rank": Layout("tp=1"),
}
REPETITIONS = 21
PEER = str(Path(__file__).with_name("bench_trace_peer.py"))
MAKE_FX = str(Path(__file__).with_name("bench_trace_make_fx.py"))


def compiled(layout: Layout, **changes: int) -> Plan:
    """Compile from nothing; only Python's own imports are warm."""
    family = family_of("LlamaForCausalLM")
    config = family.config({**CONFIG, **changes})
    return compile_plan(family, config, layout, dtype=torch.bfloat16, block_size=16)


def timed(run: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


class Null:
    """What null ops take and return: the driver's own time is what is left."""

    def flatten(self, dim: int) -> "Null":
        return self

    def unflatten(self, dim: int, shape: object) -> "Null":
        return self

    def __add__(self, other: object) -> "Null":
        return self

    def reduced(self, *args: object) -> "Null":
        return NULL

    shape = (0, 0, 0, 0)
    all_reduce = all_gather = reduce_scatter = reduced

    def rank(self, axis: str) -> int:
        return 0


NULL = Null()
RESULTS = {"add_rms_norm": 2, "rope_angles": 2, "paged_attention": 2}


def null_step(plan: Plan) -> tuple[Callable[[], object], int]:
    """Return a step of the emitted program on null ops and collectives, and its equations."""
    tree = ast.parse(plan.source)
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    tree.body = [node for node in tree.body if node not in imported]
    names: dict[str, Any] = {}
    for alias in (alias for node in imported for alias in node.names):
        values = (NULL,) * RESULTS.get(alias.name, 1)
        made = values if len(values) > 1 else NULL
        names[alias.name] = lambda *args, made=made: made
    names["split"] = lambda y, *shapes: (NULL,) * len(shapes)
    exec(compile(tree, "<null>", "exec"), names)
    weights = plan.weights({pack.name: NULL for pack in plan.storage})  # type: ignore[misc]
    caches = (NULL,) * len(plan.cache)
    columns = ("tokens", "positions", "logit_rows")
    batch = SimpleNamespace(**dict.fromkeys(columns, NULL))
    count = sum(
        len(step.block.steps) * (step.stop - step.start) if isinstance(step, Loop) else 1
        for step in plan.program.driver.steps
    )
    return lambda: names["forward"](NULL, weights, caches, batch), count


def driver_row(name: str, plan: Plan) -> dict[str, object]:
    """Return the eager driver's overhead: microseconds an equation on null ops."""
    step, count = null_step(plan)
    times = sorted(ms * 1e3 / count for ms in timed(step))
    return {
        "bench": "trace",
        "case": f"llama 70B, 80 layers, {name}",
        "metric": f"driver, {count} null equations",
        "unit": "us an equation",
        "ours": round(statistics.median(times), 4),
        "peer": None,
        "peer_name": None,
        "spread": round(times[-3] - times[2], 4),
    }


def rows(peer: str = "") -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    peers = {"make_fx on fake tensors, no placements": (sys.executable, MAKE_FX)}
    if peer:
        peers["JAX explicit sharding, trace and lower"] = (peer, PEER)
    else:
        print("JAX: skipped, --peer names no interpreter that has it", file=sys.stderr)
    times = sorted(timed(lambda: compiled(LAYOUTS["tensor parallel"], num_hidden_layers=60)))
    for name, command in peers.items():
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for form, ms in json.loads(done.stdout).items():
            found.append(
                {
                    "bench": "trace",
                    "case": "llama 70B, 60 layers, tensor parallel",
                    "metric": "trace to emitted plan",
                    "unit": "ms",
                    "ours": round(statistics.median(times), 3),
                    "peer": round(ms, 1),
                    "peer_name": f"{name}, {form}",
                    "spread": round(times[-3] - times[2], 3),
                }
            )
    for name, layout in LAYOUTS.items():
        plan = compiled(layout)
        found.append(driver_row(name, plan))
        for metric, run in (
            ("trace to emitted plan", lambda layout=layout: compiled(layout)),
            ("load emitted plan", plan.load),
            ("explain", lambda plan=plan: explain(plan, tokens=64)),
        ):
            times = sorted(timed(run))
            found.append(
                {
                    "bench": "trace",
                    "case": f"llama 70B, 80 layers, {name}",
                    "metric": metric,
                    "unit": "ms",
                    "ours": round(statistics.median(times), 3),
                    "peer": None,
                    "peer_name": None,
                    "spread": round(times[-3] - times[2], 3),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--peer", default="", help="a Python that has jax, to time beside")
    given = parser.parse_args()
    for row in rows(given.peer):
        if given.json:
            print(json.dumps(row))
        else:
            print(
                f"{row['case']:<46} {row['metric']:<30} {row['ours']:8.3f} {row['unit']} "
                f"(spread {row['spread']:.3f})"
                + (f"; {row['peer']} {row['peer_name']}" if row["peer"] else "")
            )


if __name__ == "__main__":
    main()
