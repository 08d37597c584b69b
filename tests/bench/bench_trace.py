# SPDX-License-Identifier: MIT
"""Time to trace, place, verify and emit Llama 70B (80 layers) for 8 ranks, cold.

`python tests/bench/bench_trace.py [--json]`
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, Plan, explain

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


def compiled(layout: Layout) -> Plan:
    """Compile from nothing; only Python's own imports are warm."""
    family = family_of("LlamaForCausalLM")
    config = family.config(CONFIG)
    return compile_plan(family, config, layout, dtype=torch.bfloat16, block_size=16)


def timed(run: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def rows() -> list[dict[str, object]]:
    found = []
    for name, layout in LAYOUTS.items():
        plan = compiled(layout)
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
    as_json = parser.parse_args().json
    for row in rows():
        if as_json:
            print(json.dumps(row))
        else:
            print(
                f"{row['case']:<46} {row['metric']:<24} {row['ours']:8.3f} ms "
                f"(spread {row['spread']:.3f})"
            )


if __name__ == "__main__":
    main()
