# SPDX-License-Identifier: MIT
"""Prefix-cache hit rate of a trace in a closed loop: ours, least recently used, and an oracle.

`python tests/bench/bench_retention.py [--traces F] [--max-context N] [--json]`

The real block pool, sessions and ranks meet recorded requests; each holds its blocks for the time
that it took when it was recorded, so every policy sees the same requests at the same times.  The
oracle is told when each session comes back, and ranks by that alone.  Conversations are halved by
the checksum of their ids: what is tuned is tuned on half A.  Blocks are 512 tokens, which moves hit
rates by less than a point.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tokenspeed_core.scheduler._scheduler import Trace, replay_cache
from tokenspeed_core.trace import load_trace

SAMPLE = Path(__file__).parent.parent / "data" / "agent_traces_sample.jsonl.gz"
POOL_TOKENS = 760_000
COARSE = 8  # blocks of the file to one
BLOCK = 64 * COARSE
SESSIONS = 16
VARIANTS = {
    "ours": ("reuse", True, True),
    "ours, no hints": ("reuse", True, False),
    "ours, no hints, no session ids": ("reuse", False, False),
}


def hit_rate(
    trace: Trace, policy: str, gap_s: float, pool: int, *, names: bool = True, hints: bool = True
) -> tuple[float, float]:
    """The hit rate and the ideal one, percent of prompt tokens."""
    score = replay_cache(
        trace,
        sessions=SESSIONS,
        pool_blocks=pool // BLOCK,
        longest_pause_s=gap_s,
        policy=policy,
        names=names,
        hints=hints,
    )
    return 100 * score[2] / score[1], 100 * score[3] / score[1]


def in_half(name: str, half: str) -> bool:
    return half == "AB"[zlib.crc32(name.encode()) % 2]


def rows(path: Path, max_context: int) -> Iterator[dict[str, object]]:
    for half, prefix, shared in (
        ("A", "15k prefix shared by all", 15_000),
        ("B", "15k prefix shared by all", 15_000),
        ("A", "prefixes of equal size", None),
        ("B", "prefixes of equal size", None),
    ):
        trace, _ = load_trace(
            path,
            max_context=max_context,
            shared_prefix=shared,
            keep=partial(in_half, half=half),
            coarse=COARSE,
        )
        for gap_s in (60.0, 600.0):
            case = f"half {half}, {POOL_TOKENS / 1e6:.2f}M, gaps to {gap_s:g} s, {prefix}"
            lru, ideal = hit_rate(trace, "lru", gap_s, POOL_TOKENS)
            oracle, _ = hit_rate(trace, "oracle", gap_s, POOL_TOKENS)
            ours = {
                name: hit_rate(trace, policy, gap_s, POOL_TOKENS, names=names, hints=hints)[0]
                for name, (policy, names, hints) in VARIANTS.items()
            }
            both, _ = hit_rate(trace, "reuse", gap_s, 5 * POOL_TOKENS)
            twice, _ = hit_rate(trace, "reuse", gap_s, 2 * POOL_TOKENS)
            twice_lru, _ = hit_rate(trace, "lru", gap_s, 2 * POOL_TOKENS)
            for metric, value, peer, name in (
                *((name, value, lru, "lru") for name, value in ours.items()),
                *((name, value, oracle, "oracle") for name, value in ours.items()),
                ("ours, twice the pool", twice, twice_lru, "lru"),
                ("ours, five times the pool", both, ideal, "ideal"),
            ):
                yield {
                    "bench": "retention",
                    "case": case,
                    "metric": metric,
                    "unit": "% of prompt tokens",
                    "ours": round(value, 2),
                    "peer": round(peer, 2),
                    "peer_name": name,
                    "spread": 0.0,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=SAMPLE)
    parser.add_argument("--max-context", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    given = parser.parse_args()
    for row in rows(given.traces, given.max_context):
        if given.json:
            print(json.dumps(row), flush=True)
        else:
            share = 100 * float(str(row["ours"])) / float(str(row["peer"]))
            print(
                f"{row['case']:<62} {row['metric']:<32} {row['ours']:6.2f}%  "
                f"{row['peer_name']:>6} {row['peer']:6.2f}%  {share:5.1f}% of it",
                flush=True,
            )


if __name__ == "__main__":
    main()
