# SPDX-License-Identifier: MIT
"""The collectives of a decode step by themselves: what of its time they take, and as predicted."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import attrs
import torch
from torch import Tensor

from ..device_tables import DeviceTables
from ..graph import Graph, replay_ms
from ..runner import Runner
from ..sharding.cost import TRIPS
from ..sharding.link import LINKS, Link
from ..warm_up import scratch_batch
from .case import Case
from .row import Row

_REPEATS = 5
_CALLS = 32
# What the rules of cost know by another name.
_KINDS = {"all_reduce_add": "all_reduce", "all_gathers": "all_gather"}


@attrs.frozen(eq=False)
class Call:
    """A collective as a program issued it: its method, its tensor's shape, and how to repeat it."""

    kind: str
    operand: Tensor
    ways: int
    again: Callable[[], object]

    @property
    def name(self) -> str:
        """Kind, shape and dtype."""
        sizes = " x ".join(map(str, self.operand.shape))
        return f"{self.kind} of {sizes} {str(self.operand.dtype).removeprefix('torch.')}"

    def predicted_us(self, link: Link) -> float:
        """Return the time by the rule of `tokenspeed explain`."""
        kind = _KINDS.get(self.kind, self.kind)
        whole = self.operand.nbytes * (self.ways if kind == "all_gather" else 1)
        return link.us(kind, TRIPS[kind] * whole * (self.ways - 1) // self.ways)


class Noted:
    """Collectives that also write down what is called."""

    def __init__(self, collectives: Any, world: int) -> None:
        self._collectives = collectives
        self._world = world
        self.calls: list[Call] = []

    def __getattr__(self, kind: str) -> Any:
        method = getattr(self._collectives, kind)

        def call(*args: Any) -> Any:
            if kind == "start":
                whole = partial(_whole, self._collectives, args)
                self.calls.append(Call(args[0], args[1], self._world, whole))
            elif _KINDS.get(kind, kind) in TRIPS:
                operand = args[0][0] if isinstance(args[0], tuple) else args[0]
                self.calls.append(Call(kind, operand, self._world, partial(method, *args)))
            return method(*args)

        return call


def _whole(collectives: Any, args: tuple[Any, ...]) -> object:
    """Start a collective and wait for it."""
    return collectives.wait(collectives.start(*args))


@torch.inference_mode()
def collective_rows(case: Case, runner: Runner, model: str, card: str) -> Iterator[Row]:
    """Time the collectives of a decode step in all, and each kind and size; every rank calls it."""
    tables = runner.new_tables()
    calls = _issued(case, runner, tables)
    link = LINKS["nvlink-h200" if tables.device.type == "cuda" else "shared-memory"]
    total = _ms(lambda: [call.again() for call in calls], tables.device)
    yield Row.of(model, card, "decode", case.name, "collectives of a step", total, compared=False)
    for call in {call.name: call for call in calls}.values():
        spent = _ms(lambda c=call: [c.again() for _ in range(_CALLS)], tables.device)  # type: ignore[misc]
        row = Row.of(
            model, card, "decode", case.name, call.name, [ms / _CALLS for ms in spent],
            compared=False,
        )  # fmt: skip
        yield attrs.evolve(
            row, peer=call.predicted_us(link) / 1e3, peer_name=f"cost on {link.name}"
        )


def _issued(case: Case, runner: Runner, tables: DeviceTables) -> list[Call]:
    """Return the collectives of a step, in order."""
    noted = Noted(runner.collectives, runner.ranks.world)
    batch = scratch_batch(tables, 1, case.cached, 0, case.batch)
    runner.with_collectives(noted).forward(batch)
    return noted.calls


def _ms(run: Callable[[], object], device: torch.device) -> list[float]:
    """Return the times of a call, on a GPU in a captured graph."""
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    graph = Graph(run, device, pool)
    spent = []
    for _ in range(_REPEATS):
        if device.type == "cuda":
            spent.append(replay_ms(graph, device))
        else:
            begun = time.perf_counter()
            graph.replay()
            spent.append((time.perf_counter() - begun) * 1e3)
    assert median(spent) > 0
    return spent
