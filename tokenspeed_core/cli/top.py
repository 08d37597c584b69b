# SPDX-License-Identifier: MIT
"""`tokenspeed top`: a running server in the terminal, live."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

HELP = "watch a running server"
DESCRIPTION = "Show throughput, queue, cache and requests of a running server until Ctrl-C."

_BAR = 20
_PARTS = (
    ("prepare", "magenta"),
    ("queue", "bright_black"),
    ("prefill", "blue"),
    ("decode", "green"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the server, the period and for how many."""
    from .engine_url import add_address

    add_address(parser)
    parser.add_argument("--period", type=float, default=1.0, metavar="S", help="default: 1")
    parser.add_argument("--rows", type=int, default=15, metavar="N", help="requests; default: 15")
    parser.add_argument(
        "--count", type=int, default=0, metavar="N", help="end behind N pictures; 0: never"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and draw until interrupted."""
    from rich.live import Live

    from .engine_url import ask

    def data() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(ask(arguments, "GET", "/dashboard/data"))
        return answer

    before, now = None, data()
    shown = 0
    with Live(picture(now, before, arguments.rows), auto_refresh=False) as live:
        while True:
            shown += 1
            if shown == arguments.count:
                return 0
            time.sleep(arguments.period)
            before, now = now, data()
            live.update(picture(now, before, arguments.rows), refresh=True)


def picture(now: dict[str, Any], before: dict[str, Any] | None, rows: int) -> "RenderableType":
    """Return what the terminal shows of two states of `/dashboard/data`, a period apart."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text()
    head.append(f" {now['model']} ", "bold reverse")
    is_good = now["health"]["ok"]
    head.append(
        " tokens flow" if is_good else f" {now['health']['reason']}", "green" if is_good else "red"
    )
    lines: list[RenderableType] = [head]
    if engine := now["engine"]:
        lines += [_rates(engine, now, before), _cache(engine)]
    table = Table(box=None, pad_edge=False, expand=True, header_style="bright_black")
    for title in ("request", "ended"):
        table.add_column(title, no_wrap=True)
    for title in ("prompt", "cached", "answer", "first"):
        table.add_column(title, no_wrap=True, justify="right", min_width=6)
    table.add_column("time", no_wrap=True)
    recent = sorted([*now["ended"], *now["live"]], key=lambda row: row["start"], reverse=True)
    recent = recent[:rows]
    longest = max((sum(row["parts"].values()) for row in recent), default=1.0) or 1.0
    for row in recent:
        table.add_row(
            row["id"][-10:] + (f"#{row['choice']}" if row["choice"] else ""),
            row["outcome"] or "live",
            str(row["prompt_tokens"]),
            str(row["cached_tokens"]),
            str(row["completion_tokens"]),
            "" if row["ttft_s"] is None else f"{row['ttft_s'] * 1e3:.0f} ms",
            _parts(row["parts"], longest),
        )
    return Group(*lines, table)


def _rates(engine: dict[str, Any], now: dict[str, Any], before: dict[str, Any] | None) -> Any:
    from rich.text import Text

    def rate(key: str) -> float:
        if before is None or not before["engine"] or now["time"] <= before["time"]:
            return 0.0
        passed = float(now["time"] - before["time"])
        return max(0.0, float(engine[key] - before["engine"][key]) / passed)

    prompts, cached = rate("prompt_tokens"), rate("cached_tokens")
    return Text(
        f"generated {rate('generated_tokens'):,.0f} tok/s   prompts {prompts:,.0f} tok/s "
        f"({max(0.0, prompts - cached):,.0f} computed)   steps {rate('steps'):,.1f}/s   "
        f"running {engine['running']}   waiting {engine['waiting']}   "
        f"preempted {engine['preemptions']}"
    )


def _cache(engine: dict[str, Any]) -> Any:
    from rich.text import Text

    total = max(1, engine["total_blocks"])
    active = round(_BAR * engine["active_blocks"] / total)
    kept = min(_BAR - active, round(_BAR * engine["cached_blocks"] / total))
    line = Text("cache ")
    line.append("█" * active, "blue").append("█" * kept, "cyan")
    line.append("░" * (_BAR - active - kept), "bright_black")
    hit = 100 * engine["cached_tokens"] / max(1, engine["prompt_tokens"])
    return line.append(
        f" {engine['active_blocks']} in use, {engine['cached_blocks']} kept of {total} blocks; "
        f"{hit:.1f}% of prompt tokens were cached"
    )


def _parts(parts: dict[str, float], longest: float) -> Any:
    from rich.text import Text

    bar = Text()
    for name, color in _PARTS:
        bar.append("█" * round(_BAR * parts[name] / longest), color)
    return bar.append(f" {sum(parts.values()):.2f} s")
