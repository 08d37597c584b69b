# SPDX-License-Identifier: MIT
"""One Chrome trace of what all processes of an engine did between start and stop."""

import asyncio
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from ..async_llm import AsyncLLM
from ..stage_clock import Slice
from .observer import Observer
from .request_record import RequestRecord

_PATIENCE_S = 60.0
_POLL_S = 0.05
_MAX_RECORDS = 100_000

Event = dict[str, Any]


class ProfileError(RuntimeError):
    """A profile cannot be started or stopped now."""


@attrs.frozen
class Running:
    """A profile under way."""

    directory: Path
    started: float


class Profiler:
    """Starts and stops profiles of the engine that `llm` is connected to, one at a time."""

    def __init__(self, llm: AsyncLLM, observer: Observer) -> None:
        self._llm = llm
        self._running: Running | None = None
        self._records: list[RequestRecord] = []
        observer.add(self._take)

    def _take(self, record: RequestRecord) -> None:
        if self._running is not None and len(self._records) < _MAX_RECORDS:
            self._records.append(record)

    def start(self) -> None:
        """Begin.

        Raises:
            ProfileError: a profile runs already, or there is no scheduler.
        """
        if self._running is not None:
            raise ProfileError("a profile runs already; stop it first")
        directory = self._llm.client.run_path / f"profile-{secrets.token_hex(4)}"
        directory.mkdir(mode=0o700)
        if not self._llm.client.profile(directory):
            directory.rmdir()
            raise ProfileError("there is no scheduler to profile; try again")
        self._records.clear()
        self._llm.codec.stages.slices = []
        self._running = Running(directory, time.monotonic())

    async def stop(self) -> bytes:
        """End, and return the merged trace as JSON that Perfetto and chrome://tracing open.

        Raises:
            ProfileError: no profile runs, or the processes did not leave their traces.
        """
        running = self._running
        if running is None:
            raise ProfileError("no profile runs; start one first")
        self._running = None
        slices, self._llm.codec.stages.slices = self._llm.codec.stages.slices or [], None
        own = [*_slices(slices), *_requests(self._records)]
        self._llm.client.profile(None)
        ranks = range(self._llm.config.num_ranks)
        wanted = [running.directory / "scheduler.json"]
        wanted += [running.directory / f"worker-{rank}.json" for rank in ranks]
        deadline = time.monotonic() + _PATIENCE_S
        while not all(file.exists() for file in wanted) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        try:
            return await asyncio.to_thread(merged, wanted, own, running.started)
        finally:
            shutil.rmtree(running.directory, ignore_errors=True)


def merged(files: list[Path], own: list[Event], started: float) -> bytes:
    """Return one trace of the files that are there and of this process's own events.

    Times are microseconds since `started`; processes get ids of their own, since ranks' devices
    have equal ones.
    """
    pids: dict[tuple[str, object], int] = {}
    events: list[Event] = [_process_name(os.getpid(), "api"), *own]
    sources = [("api", event) for event in events]
    missing = [file.name for file in files if not file.exists()]
    for file in files:
        if file.name not in missing:
            found = json.loads(file.read_bytes())["traceEvents"]
            sources += [(file.stem, event) for event in found]
    told: list[Event] = []
    for source, event in sources:
        if "pid" not in event or "ph" not in event:
            continue
        event["pid"] = pids.setdefault((source, event["pid"]), len(pids) + 1)
        if "ts" in event:
            event["ts"] = max(0.0, event["ts"] - started * 1e6)
        if "id" in event:
            event["id"] = f"{source}:{event['id']}"
        if event["name"] == "process_name" and source.startswith("worker"):
            event["args"]["name"] = f"{source} {event['args']['name']}"
        told.append(event)
    whole = {"displayTimeUnit": "ms", "otherData": {"missing": missing}, "traceEvents": told}
    return json.dumps(whole).encode()


def _process_name(pid: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}


def _slices(slices: list[Slice]) -> Iterator[Event]:
    threads: dict[int, int] = {}
    for each in slices:
        yield {
            "ph": "X",
            "cat": "stage",
            "name": each.stage,
            "pid": os.getpid(),
            "tid": threads.setdefault(each.thread, len(threads) + 1),
            "ts": each.start * 1e6,
            "dur": (each.end - each.start) * 1e6,
        }


def _requests(records: list[RequestRecord]) -> Iterator[Event]:
    for number, record in enumerate(records):
        course, arrival = record.course, record.arrival
        marks: list[tuple[str, float | None]] = [("prepare", arrival.started)]
        if course is not None:
            marks.append(("queue", course.submitted))
            if course.queued_s is not None and record.first_token is not None:
                admitted = min(course.submitted + course.queued_s, record.first_token)
                marks += [("prefill", admitted), ("decode", record.first_token)]
        ends = [mark for _, mark in marks[1:]] + [record.ended]
        for (name, start), end in zip(marks, ends, strict=True):
            assert start is not None
            assert end is not None
            common = {
                "cat": "request",
                "id": number,
                "name": name,
                "pid": os.getpid(),
                "tid": 0,
                "args": {
                    "request": arrival.id,
                    "choice": record.choice,
                    "first_step": course.first_step if course else 0,
                    "last_step": course.last_step if course else 0,
                },
            }
            yield {"ph": "b", "ts": start * 1e6, **common}
            yield {"ph": "e", "ts": max(start, end) * 1e6, **common}
