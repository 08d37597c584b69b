# SPDX-License-Identifier: MIT
"""A line of JSON for each request that is over."""

import logging
import time
from pathlib import Path
from typing import Any

import msgspec

from ..background_writer import BackgroundWriter
from ..detokenizer import Detokenizer, TokenText
from .request_record import RequestRecord

log = logging.getLogger(__name__)


class RequestLog:
    """Appends to a file without ever waiting for it; lines that do not fit the queue are counted.

    A line holds no text of prompts or answers unless `table` is given, which spells their tokens.
    """

    def __init__(self, path: Path | str, table: TokenText | None = None) -> None:
        """Open the file; OSError if that cannot be."""
        self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._writer: BackgroundWriter[dict[str, Any]] = BackgroundWriter(self._write)
        self._table = table
        self.dropped = 0

    def __call__(self, record: RequestRecord) -> None:
        """Log a request that is over."""
        line = entry(record)
        if self._table is not None:
            line["prompt"] = _text(self._table, record.prompt_ids)
            line["text"] = "".join(record.text)
        self._writer.post(line)

    def close(self) -> None:
        """Write what is queued, within a second, and close the file."""
        self._writer.close(1.0)
        self._file.close()

    def _write(self, line: dict[str, Any], dropped: int) -> None:
        self.dropped += dropped
        lines = [{"time": time.time(), "dropped_lines": dropped}] if dropped else []
        text = b"".join(msgspec.json.encode(each) + b"\n" for each in [*lines, line])
        try:
            self._file.write(text)  # in one piece, so that processes may share the file
        except OSError as error:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                log.warning("the request log lost %d lines so far: %s", self.dropped, error)


def entry(record: RequestRecord) -> dict[str, Any]:
    """Return what a log says of a request; times are in milliseconds, None where there is none."""
    arrival, course, report = record.arrival, record.course, record.report
    return {
        "time": arrival.at,
        "id": arrival.id,
        "route": arrival.route,
        "choice": record.choice,
        "stream": arrival.is_stream,
        "session": arrival.session,
        "traceparent": arrival.traceparent,
        "outcome": record.outcome,
        "status": record.status,
        "code": record.code,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "missed": {
            "new": report.new,
            "evicted": report.evicted,
            "salted": report.salted,
            "diverged": report.diverged,
            "diverged_at": report.diverged_at,
            "volatile_prefix": report.volatile_prefix,
        }
        if report
        else None,
        "prepare_ms": _ms(record.since_start(course.submitted if course else None)),
        "queue_ms": _ms(record.queue_s),
        "prefill_ms": _ms(record.prefill_s),
        "ttft_ms": _ms(record.since_start(record.first_token)),
        "ttfat_ms": _ms(record.since_start(record.first_answer)),
        "decode_ms": _ms(record.decode_s),
        "e2e_ms": _ms(record.since_start(record.ended)),
        "first_step": course.first_step if course else 0,
        "last_step": course.last_step if course else 0,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _text(table: TokenText, ids: Any) -> str:
    reading = Detokenizer(table)
    return "".join([*map(reading.push, ids), reading.finish()])
