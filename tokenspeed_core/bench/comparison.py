# SPDX-License-Identifier: MIT
"""Rows of a bench beside stored ones, of ours or of vLLM's anchors."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .row import Row

_BAR = 20  # characters of a bar of equal times

Key = tuple[str, str, str, str]


class StoredRowsError(ValueError):
    """A file holds no rows."""


def stored(path: Path | str) -> dict[Key, float]:
    """Return the figures of a JSON-lines file by model, bench, case and metric.

    Raises:
        StoredRowsError: the file cannot be read, or a line is no row.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoredRowsError(f"{path}: {error}") from error
    found: dict[Key, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            found.update(_figures(json.loads(line)) if line.strip() else ())
        except (ValueError, KeyError, TypeError) as error:
            raise StoredRowsError(f"{path}:{number} is no row of a bench: {error!r}") from error
    return found


def table(rows: Sequence[Row], before: Mapping[Key, float]) -> Iterator[str]:
    """Yield a line for each row that has a stored figure: both, their ratio, and it as a bar."""
    found = [(row, before[key]) for row in rows if (key := _key(row)) in before]
    if not found:
        yield "no row has a stored figure of the same model, bench, case and metric"
        return
    wide = max(len(f"{row.bench} {row.case}, {row.metric}") for row, _ in found)
    for row, stored_one in found:
        ratio = row.ours / stored_one if stored_one else float("inf")
        bar = "#" * min(round(_BAR * ratio), 3 * _BAR)
        yield (
            f"{f'{row.bench} {row.case}, {row.metric}':<{wide}}  {stored_one:10.3f} -> "
            f"{row.ours:10.3f} {row.unit:<4} x {ratio:5.2f}  {bar}"
        )


def _key(row: Row) -> Key:
    return _plain(row.model), row.bench, row.case, row.metric


def _plain(model: str) -> str:
    return re.sub(r"[^a-z0-9=]", "", model.lower())


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[Key, float]]:
    model, bench = _plain(line["model"]), line["bench"]
    if "ours" in line:
        yield (model, bench, line["case"], line["metric"]), float(line["ours"])
        return
    step, first = "step", "time to first token"
    match bench:
        case "decode":
            case_ = f"batch {line['batch']}, ctx {line['ctx']}"
            yield (model, bench, case_, step), line["tpot_ms"]
        case "decode_shared":
            case_ = f"batch {line['batch']}, prefix {line['shared']}, own {line['own']}"
            yield (model, "shared", case_, step), line["tpot_ms"]
        case "prefill":
            yield (model, bench, f"{line['tokens']} tokens", first), line["ttft_ms"]
        case "warm_turn":
            case_ = f"{line['cached']} cached, {line['new']} new"
            yield (model, "warm", case_, first), line["ttft_ms"]
        case "agentic":
            case_ = f"{line['sessions']} sessions, {line['turns']} turns"
            yield (model, bench, case_, "time"), line["seconds"] * 1e3
        case "throughput":
            case_ = f"{line['reqs']} requests, {line['inp']} in, {line['outp']} out"
            yield (model, bench, case_, "time"), line["seconds"] * 1e3
        case _:  # starts have no bench of ours
            return
