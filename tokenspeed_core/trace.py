# SPDX-License-Identifier: MIT
"""Traces of conversations: a JSON object a line, plain or gzipped, sizes and block ids, no text.

`{"id", "tool_tokens", "system_tokens", "block", "rows"}`; a row is `[start, input tokens, output
tokens, leading blocks equal to the row before, [[first block id, count], ...], seconds of service,
seconds of pause before, stop reason]`, and its blocks are the whole ones of its input.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import attrs
import msgspec

from .scheduler._scheduler import Trace

STOPS = {"tool_use": 1, "tool_calls": 1, "end_turn": 2, "stop": 2}

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e12)] | None
_Row = tuple[
    float | None, _Count, _Count, _Count, list[tuple[int, _Count]], _Seconds, _Seconds, str | None
]


class TraceError(ValueError):
    """A file that holds no trace; it says which line and field, and why."""


class _Line(msgspec.Struct):
    """A conversation of the file."""

    tool_tokens: _Count
    system_tokens: _Count
    block: Annotated[int, msgspec.Meta(ge=1, lt=2**20)]
    rows: Annotated[list[_Row], msgspec.Meta(min_length=1)]
    id: str | int = ""


@attrs.frozen
class TraceShape:
    """What was read: how many conversations and requests, and which were left out."""

    conversations: int
    requests: int
    too_long: int  # conversations with a request longer than the limit


def load_trace(
    path: Path | str,
    *,
    max_context: int,
    shared_prefix: int | None = None,
    keep: Callable[[str], bool] = lambda name: True,
    coarse: int = 1,
) -> tuple[Trace, TraceShape]:
    """Read a trace, without conversations that ever exceed `max_context` tokens.

    Conversations whose tool prefixes have equal sizes share them, and those whose system prompts
    have equal sizes too share both: a trace tells no more.  With `shared_prefix`, all conversations
    share that many tokens instead.  `keep` chooses conversations by their ids;
    blocks are `coarse` of the file's each.

    Raises:
        TraceError: the file cannot be read, or a line is no conversation.
    """
    path = Path(path)
    trace: Trace | None = None
    block = kept = requests = too_long = 0
    decoder = msgspec.json.Decoder(_Line)
    for number, text in enumerate(lines(path), 1):
        try:
            line = decoder.decode(text)
            rows = [_row(row, i, line.block, coarse) for i, row in enumerate(line.rows)]
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        block = block or line.block
        width = block * coarse
        if line.block != block:
            raise TraceError(
                f"{path}:{number}: blocks of {line.block} tokens, before {block} - at `$.block`"
            )
        trace = trace or Trace(width)
        if not keep(str(line.id)):
            continue
        if max(row[0] + row[1] for row in rows) > max_context:
            too_long += 1
            continue
        if shared_prefix is None:
            keys = line.tool_tokens, line.tool_tokens << 32 | line.system_tokens
            shares = line.tool_tokens // width, (line.tool_tokens + line.system_tokens) // width
        else:
            share = shared_prefix // width
            keys, shares = (0, 0), (share, share)
        trace.add(
            tool_key=keys[0],
            system_key=keys[1],
            tool_blocks=shares[0],
            shared_blocks=shares[1],
            rows=rows,
        )
        kept += 1
        requests += len(rows)
    if trace is None or kept == 0:
        raise TraceError(
            f"{path} holds no conversation of at most {max_context} tokens; raise --max-context"
        )
    return trace, TraceShape(kept, requests, too_long)


def lines(path: Path) -> Iterator[bytes]:
    """Return the lines of a file, plain or gzipped; TraceError if it cannot be read."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except OSError as error:
        raise TraceError(f"{path}: {error}") from error
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path} is no whole gzip file: {error}") from error
    return iter(data.splitlines())


def _row(
    row: _Row, index: int, block: int, coarse: int
) -> tuple[int, int, int, int, float, float, int]:
    _, inputs, outputs, kept, tail, service, pause, stop = row
    blocks = kept + sum(count for _, count in tail)
    if blocks != inputs // block:
        raise ValueError(
            f"{blocks} blocks of {block} for {inputs} input tokens, which have "
            f"{inputs // block} - at `$.rows[{index}][4]`"
        )
    times = service or 0.0, pause or 0.0
    return inputs, outputs, kept // coarse, blocks // coarse, *times, STOPS.get(stop or "", 0)
