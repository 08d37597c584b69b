# SPDX-License-Identifier: MIT
"""Pictures of a sweep: what a card gives to all and to each, hit rates by pool, first tokens."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .deployment import Outcome, tokens_text

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444", "#999900")
_MOST_CURVES = len(_COLOURS)
Key = TypeVar("Key", bound=Hashable)


class PlotError(RuntimeError):
    """Pictures were asked for and cannot be drawn."""


def require() -> None:
    """Check that pictures can be drawn.

    Raises:
        PlotError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PlotError("plots need matplotlib: pip install 'tokenspeed-core[plot]'")


def draw(outcomes: Sequence[Outcome], folder: Path, suffix: str) -> Iterator[Path]:
    """Draw what the sweep has to show into `folder`; yield the files."""
    yield _save(_pareto(outcomes), folder / f"pareto.{suffix}")
    if len({outcome.deployment.pool_tokens for outcome in outcomes}) > 1:
        yield _save(_hit_rates(outcomes), folder / f"hit_rate.{suffix}")
    yield _save(_first_tokens(outcomes), folder / f"first_token.{suffix}")


def _pareto(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure(
        outcomes,
        "tokens/s for the median user",
        "generated tokens/s and card",
        f"Throughput and speed by {_load_name(outcomes)}",
    )
    lines = _grouped(outcomes, lambda outcome: (_pools(outcome), outcome.deployment.eviction))
    colours = sorted({pools for pools, _ in lines})
    for (pools, eviction), points in lines.items():
        points = sorted(points, key=_load)
        axes.plot(
            [outcome.user_rate for outcome in points],
            [outcome.output_rate for outcome in points],
            label=points[0].deployment.label,
            **_style(colours.index(pools), dashed=eviction == "lru"),
        )
    for best in _best_by_load(outcomes):
        axes.annotate(
            f"{_load(best):g}",
            (best.user_rate, best.output_rate),
            textcoords="offset points",
            xytext=(6, 5),
            fontsize=8,
        )
    axes.set_xlim(0, 1.06 * axes.get_xlim()[1])
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def _hit_rates(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure(outcomes, "pool, tokens", "cached prompt tokens, %", "Hit rate")
    pools = sorted({outcome.deployment.pool_tokens for outcome in outcomes})
    lines = _grouped(
        outcomes,
        lambda outcome: (_load(outcome), _host_pools(outcome), outcome.deployment.eviction),
    )
    colours = sorted({key[:2] for key in lines})
    for (load, host, eviction), points in sorted(lines.items()):
        points = sorted(points, key=lambda outcome: outcome.deployment.pool_tokens)
        tier = f", host tier {host:.3g}x" if host else ""
        axes.plot(
            [outcome.deployment.pool_tokens for outcome in points],
            [100 * outcome.hit_rate for outcome in points],
            label=f"{_load_text(points[0])}, {eviction}{tier}",
            **_style(colours.index((load, host)), dashed=eviction == "lru"),
        )
    best = max(100 * outcome.ideal_rate for outcome in outcomes)
    axes.axhline(best, color="#888888", linestyle=":", linewidth=1)
    axes.annotate(
        "a cache without bounds",
        (pools[0], best),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8,
        color="#666666",
    )
    axes.set_xscale("log")
    axes.set_xticks(pools, [tokens_text(pool) for pool in pools], minor=False)
    axes.minorticks_off()
    axes.set_ylim(0, 104)
    _legend(axes)
    return figure


def _first_tokens(outcomes: Sequence[Outcome]) -> Any:
    title = "First token"
    if len(outcomes) > _MOST_CURVES:
        title += f", {_MOST_CURVES} of {len(outcomes)} runs"
    figure, axes = _figure(outcomes, "time to first token, s", "requests, %", title)
    chosen = np.unique(np.linspace(0, len(outcomes) - 1, _MOST_CURVES).astype(int))
    for i, outcome in enumerate(outcomes[at] for at in chosen):
        served = outcome.served
        times = np.sort((served["first"] - served["arrived"]) * 1e-9)
        if len(times) == 0:
            continue
        shares = 100 * np.arange(1, len(times) + 1) / len(times)
        keep = np.unique(np.linspace(0, len(times) - 1, 1000).astype(int))
        style = {**_style(i, dashed=outcome.deployment.eviction == "lru"), "marker": None}
        label = f"{_load_text(outcome)}, {outcome.deployment.label}"
        axes.plot(times[keep], shares[keep], label=label, **style)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    for share in (50, 90, 99):
        axes.axhline(share, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set_yticks((0, 25, 50, 75, 90, 99))
    _legend(axes)
    return figure


def _figure(outcomes: Sequence[Outcome], x: str, y: str, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    device = outcomes[0].deployment.device
    cards = f"{device.tp} x {device.card.name}" if device.tp > 1 else device.card.name
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title}: {device.model.name} on {cards}", loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8)


def _style(i: int, *, dashed: bool) -> dict[str, Any]:
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": "--" if dashed else "-",
        "marker": "o" if dashed else "s",
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def _grouped(
    outcomes: Sequence[Outcome], key: Callable[[Outcome], Key]
) -> dict[Key, list[Outcome]]:
    found: dict[Key, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome), []).append(outcome)
    return found


def _best_by_load(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [
        max(same, key=lambda outcome: outcome.output_rate)
        for same in _grouped(outcomes, _load).values()
    ]


def _pools(outcome: Outcome) -> tuple[int, int]:
    return outcome.deployment.pool_tokens, outcome.deployment.host_tokens


def _host_pools(outcome: Outcome) -> float:
    return outcome.deployment.host_tokens / outcome.deployment.pool_tokens


def _load(outcome: Outcome) -> float:
    return outcome.workload.rate or outcome.workload.sessions


def _load_name(outcomes: Sequence[Outcome]) -> str:
    return "conversations/s" if outcomes[0].workload.rate else "sessions"


def _load_text(outcome: Outcome) -> str:
    workload = outcome.workload
    return f"{workload.rate:g}/s" if workload.rate else f"{workload.sessions} sessions"
