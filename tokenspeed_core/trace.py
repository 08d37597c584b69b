# SPDX-License-Identifier: MIT
"""Traces of conversations: a JSON object a line, plain or gzipped, sizes and block ids, no text.

`{"id", "tool_tokens", "system_tokens", "block", "rows"}`; a row is `[start, input tokens, output
tokens, leading blocks equal to the row before, [[first block id, count], ...], seconds of service,
seconds of pause before, stop reason]`.
"""

import gzip
from pathlib import Path
from typing import Any

import attrs
import msgspec

from .scheduler._scheduler import Trace

STOPS = {"tool_use": 1, "tool_calls": 1, "end_turn": 2, "stop": 2}


class TraceError(ValueError):
    """A file that holds no trace; it says which line and why."""


@attrs.frozen
class TraceShape:
    """What was read: how many conversations and requests, and which were left out."""

    conversations: int
    requests: int
    too_long: int  # conversations with a request longer than the limit


def load_trace(
    path: Path | str, *, max_context: int, shared_prefix: int | None = None
) -> tuple[Trace, TraceShape]:
    """Read a trace, without conversations that ever exceed `max_context` tokens.

    Conversations whose tool prefixes have equal sizes share them, and those whose system prompts
    have equal sizes too share both: a trace tells no more.  With `shared_prefix`, all conversations
    share that many tokens instead.

    Raises:
        TraceError: the file cannot be read, or a line is no conversation.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error}") from error
    trace: Trace | None = None
    block = kept = requests = too_long = 0
    for number, line in enumerate(lines, 1):
        try:
            found = msgspec.json.decode(line)
            rows = [_row(row) for row in found["rows"]]
            tool, system = int(found["tool_tokens"]), int(found["system_tokens"])
            block = block or int(found["block"])
            if int(found["block"]) != block:
                raise TraceError(f"{path}:{number}: blocks of {found['block']}, before {block}")
            trace = trace or Trace(block)
            if max(row[0] + row[1] for row in rows) > max_context:
                too_long += 1
                continue
            if shared_prefix is None:
                keys = tool, tool << 32 | system
                shares = tool // block, (tool + system) // block
            else:
                share = shared_prefix // block
                keys, shares = (0, 0), (share, share)
            trace.add(
                tool_key=keys[0],
                system_key=keys[1],
                tool_blocks=shares[0],
                shared_blocks=shares[1],
                rows=rows,
            )
        except (msgspec.DecodeError, KeyError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"{path}:{number} is no conversation: {error!r}") from error
        kept += 1
        requests += len(rows)
    if trace is None or kept == 0:
        raise TraceError(
            f"{path} holds no conversation of at most {max_context} tokens; raise --max-context"
        )
    return trace, TraceShape(kept, requests, too_long)


def _row(row: list[Any]) -> tuple[int, int, int, int, float, float, int]:
    _, inputs, outputs, kept, tail, service, pause, stop = row
    blocks = kept + sum(count for _, count in tail)
    return (
        int(inputs),
        int(outputs),
        int(kept),
        int(blocks),
        float(service or 0),
        float(pause or 0),
        STOPS.get(stop or "", 0),
    )
