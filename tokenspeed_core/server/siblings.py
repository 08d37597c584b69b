# SPDX-License-Identifier: MIT
"""The other API processes behind the same port, and the series of all of them on one page."""

import asyncio
import http.client
import re
from collections.abc import Iterator, Mapping

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ..ipc.run_directory import RunDirectory
from ..unix_connection import UnixConnection
from .metrics import ENGINE_SERIES

LABEL = "api_process"
_TIMEOUT_S = 1.0
_PREFIX = re.compile("^(tokenspeed_|vllm:)")


class Siblings:
    """Reaches `count - 1` processes at their sockets in the run directory."""

    def __init__(self, run: RunDirectory, index: int, count: int) -> None:
        self._run = run
        self._index = index
        self._others = [other for other in range(count) if other != index]

    async def page(self, own: bytes) -> bytes:
        """Return this process's page of series and those of the others that answer."""
        if not self._others:
            return own
        found = await asyncio.gather(*map(self._metrics, self._others))
        pages = {index: page for index, page in zip(self._others, found, strict=True) if page}
        return labelled({self._index: own, **pages})

    async def abort(self, caller: str, ids: set[str] | None) -> int:
        """Abort a caller's requests in the other processes; return how many there were."""
        body = msgspec.json.encode({"caller": caller, "ids": ids})
        found = await asyncio.gather(
            *(asyncio.to_thread(self._ask, index, "POST", "/abort", body) for index in self._others)
        )
        return sum(msgspec.json.decode(each, type=int) for each in found if each)

    async def ask_one(self, index: int, path: str, body: bytes) -> bytes | None:
        """Return what another process answers to a POST; None if it is not there or has nothing."""
        if index not in self._others:
            return None
        return await asyncio.to_thread(self._ask, index, "POST", path, body)

    async def _metrics(self, index: int) -> bytes | None:
        return await asyncio.to_thread(self._ask, index, "GET", "/metrics")

    def _ask(self, index: int, method: str, path: str, body: bytes = b"") -> bytes | None:
        try:
            with UnixConnection(self._run.api_socket(index), _TIMEOUT_S) as connection:
                connection.request(method, path, body)
                answer = connection.getresponse()
                body = answer.read()
                return body if answer.status == 200 else None
        except (OSError, http.client.HTTPException):  # it is being replaced
            return None


def labelled(pages: Mapping[int, bytes]) -> bytes:
    """Return one page: what the processes count themselves with the label `api_process`.

    Series of the engine, which every process tells alike, are taken once, from the first page.  A
    process that was replaced counts anew under its label, as Prometheus expects of a counter.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(pages))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, pages: Mapping[int, bytes]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for number, (index, page) in enumerate(self._pages.items()):
            for family in text_string_to_metric_families(page.decode()):
                is_own = _PREFIX.sub("", family.name) not in ENGINE_SERIES
                if number and not is_own:
                    continue
                target = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    more = {LABEL: str(index)} if is_own else {}
                    target.add_sample(sample.name, {**sample.labels, **more}, sample.value)
        yield from merged.values()
