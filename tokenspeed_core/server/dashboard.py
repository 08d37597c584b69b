# SPDX-License-Identifier: MIT
"""The status page, and the numbers that it and `tokenspeed top` show."""

import time
from collections import deque
from importlib import resources
from typing import Any

import msgspec

from ..sdk import Client
from .health import health
from .observer import Observer
from .request_record import RequestRecord

MAX_RECORDS = 200


class Dashboard:
    """What is going on: the scheduler's counters, requests on their way, and the latest ended."""

    def __init__(self, model: str, client: Client, observer: Observer) -> None:
        self._model = model
        self._client = client
        self._observer = observer
        self._ended: deque[RequestRecord] = deque(maxlen=MAX_RECORDS)
        observer.add(self._ended.append)

    def page(self) -> bytes:
        """Return the status page, which asks for `data` by itself and needs nothing else."""
        return resources.files(__package__).joinpath("dashboard.html").read_bytes()

    def data(self) -> dict[str, Any]:
        """Return the state of this moment as JSON."""
        stats, verdict = self._client.stats, health(self._client)
        live = sorted(self._observer.live, key=lambda record: record.arrival.started)
        return {
            "time": time.time(),
            "model": self._model,
            "health": {"ok": verdict.is_good, "reason": verdict.reason},
            "engine": msgspec.structs.asdict(stats) if stats else None,
            "num_live": len(live),
            "live": [_row(record) for record in live[:MAX_RECORDS]],
            "ended": [_row(record) for record in self._ended],
        }


def _row(record: RequestRecord) -> dict[str, Any]:
    """Return a request's bar: where it begins, and the seconds of its parts so far."""
    arrival, course = record.arrival, record.course
    now = record.ended or time.monotonic()
    submitted = course.submitted if course else record.begun
    parts = {"prepare": submitted - arrival.started, "queue": 0.0, "prefill": 0.0, "decode": 0.0}
    if record.first_token is None:  # it waits or prefills; which of them is known with the token
        parts["queue"] = now - submitted
    else:
        parts["queue"] = record.queue_s or 0.0
        parts["prefill"] = record.prefill_s or record.first_token - submitted
        parts["decode"] = now - record.first_token
    return {
        "id": arrival.id,
        "route": arrival.route,
        "choice": record.choice,
        "session": arrival.session,
        "outcome": record.outcome,
        "status": record.status,
        "start": arrival.at,
        "parts": parts,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "ttft_s": record.since_start(record.first_token),
    }
