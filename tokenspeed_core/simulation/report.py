# SPDX-License-Identifier: MIT
"""Outcomes as a table for people, as rows for programs, and one line a request as CSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from .deployment import Outcome, tokens_text

_COLUMNS = (
    "sessions", "pool", "host", "policy", "hit %", "host %", "ideal %", "prefill x",
    "TTFT p50", "p90", "p99", "ITL p50", "p99", "e2e p50", "p99", "queue p90",
    "tok/s/card", "tok/s/user", "busy %", "makespan",
)  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """A line each; times in ms up to a second, then in s."""
    lines = [_COLUMNS, *(tuple(_cells(outcome)) for outcome in outcomes)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def notes(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What a table has no column for: misses by reason, preemptions, copies, refusals."""
    for outcome in outcomes:
        totals = outcome.totals
        prompt = max(1, outcome.prompt_tokens)
        reasons = ", ".join(
            f"{name} {100 * totals[f'missed_{name}'] / prompt:.1f}%"
            for name in ("new", "evicted", "salted", "diverged")
            if totals[f"missed_{name}"]
        )
        line = f"{_load(outcome)}, {outcome.deployment.label}: missed {reasons or 'nothing'}"
        if totals["preemptions"]:
            line += (
                f"; {totals['preemptions']} preemptions computed "
                f"{tokens_text(totals['recomputed_tokens'])} tokens again"
            )
        if totals["stored_blocks"] or totals["loaded_blocks"]:
            line += (
                f"; {totals['stored_blocks']} blocks stored, {totals['loaded_blocks']} loaded "
                f"(link {100 * totals['loading_ns'] / max(1, totals['end_ns']):.1f}% busy)"
            )
        if totals["failed_transfers"]:
            line += f"; {totals['failed_transfers']} copies were late"
        if outcome.refused:
            line += f"; {outcome.refused} requests REFUSED: they can never fit the pool"
        yield line


def rows(outcomes: Sequence[Outcome]) -> Iterator[dict[str, object]]:
    """Rows as of tests/bench: one a metric."""
    for outcome in outcomes:
        case = f"{_load(outcome)}, {outcome.deployment.label}"
        for metric, unit, value, peer, peer_name in _metrics(outcome):
            yield {
                "bench": "simulate",
                "case": case,
                "metric": metric,
                "unit": unit,
                "ours": round(value, 6),
                "peer": None if peer is None else round(peer, 6),
                "peer_name": peer_name,
                "spread": 0.0,
            }


def write_requests(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one line a request; times in seconds, empty where it did not come to that."""
    times = ("arrived", "admitted", "first", "last")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        counts = [name for name in outcomes[0].requests.dtype.names or () if name not in times]
        writer.writerow(["run", *counts, *(f"{name}_s" for name in times)])
        for outcome in outcomes:
            run = f"{_load(outcome)}, {outcome.deployment.label}"
            for request in outcome.requests:
                seconds = (
                    f"{request[name] * 1e-9:.6f}" if request[name] >= 0 else "" for name in times
                )
                writer.writerow([run, *(int(request[name]) for name in counts), *seconds])


def _load(outcome: Outcome) -> str:
    workload = outcome.workload
    return f"{workload.rate:g}/s" if workload.rate else f"{workload.sessions} sessions"


def _cells(outcome: Outcome) -> Iterator[str]:
    deployment, workload = outcome.deployment, outcome.workload
    yield f"{workload.rate:g}/s" if workload.rate else str(workload.sessions)
    yield tokens_text(deployment.pool_tokens)
    yield tokens_text(deployment.host_tokens)
    yield deployment.eviction
    for share in (outcome.hit_rate, outcome.host_rate, outcome.ideal_rate):
        yield f"{100 * share:.1f}"
    yield f"{outcome.amplification:.2f}"
    first, gaps, whole = outcome.first_token, outcome.gaps, outcome.whole
    for seconds in (first.p50, first.p90, first.p99, gaps.p50, gaps.p99, whole.p50, whole.p99):
        yield _time(seconds)
    yield _time(outcome.queue.p90)
    yield f"{outcome.output_rate:.0f}"
    yield f"{outcome.user_rate:.0f}"
    yield f"{100 * outcome.utilisation:.0f}"
    yield _time(outcome.seconds)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g}ms"
    return f"{seconds:.3g}s" if seconds < 1000 else f"{seconds:.0f}s"


def _metrics(outcome: Outcome) -> Iterator[tuple[str, str, float, float | None, str | None]]:
    share = "% of prompt tokens"
    yield "hit rate", share, 100 * outcome.hit_rate, 100 * outcome.ideal_rate, "ideal"
    yield "hit rate, host tier", share, 100 * outcome.host_rate, None, None
    prompt = max(1, outcome.prompt_tokens)
    for reason in ("new", "evicted", "salted", "diverged"):
        missed = 100 * outcome.totals[f"missed_{reason}"] / prompt
        yield f"missed, {reason}", share, missed, None, None
    yield "prefill amplification", "x", outcome.amplification, 1.0, "ideal"
    for name, spread in (
        ("first token", outcome.first_token),
        ("between tokens", outcome.gaps),
        ("request", outcome.whole),
        ("queue", outcome.queue),
    ):
        for quantile in ("p50", "p90", "p99"):
            yield f"{name} {quantile}", "s", getattr(spread, quantile), None, None
    yield "output", "tok/s per card", outcome.output_rate, None, None
    yield "output for a user", "tok/s", outcome.user_rate, None, None
    yield "utilisation", "%", 100 * outcome.utilisation, None, None
    yield "makespan", "s", outcome.seconds, None, None
    yield "requests", "", len(outcome.requests), None, None
    yield "refused", "", outcome.refused, None, None
    yield "steps", "", outcome.totals["steps"], None, None
    yield "preemptions", "", outcome.totals["preemptions"], None, None
