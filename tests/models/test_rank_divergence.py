# SPDX-License-Identifier: MIT
"""Ranks with queues as unlike as can be issue the same collectives, in one order, in equal shapes.

Each rank runs alone here, on numbers of its own, with collectives that only note what is asked of
them: were any control to hang on a value or on a count, their notes would differ.
"""

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from test_requests import LAYOUTS as DENSE
from tiny import BLOCK, Tiny, batch_of, make_tiny, tiny_of
from tiny_families import FAMILIES
from torch import Tensor

from tokenspeed_core.models import compile_plan
from tokenspeed_core.ops import Batch
from tokenspeed_core.sharding import Layout, Mesh, Plan

NUM_BLOCKS = 65
EXPERTS = {
    "experts-over-all": Layout(
        "dp=2 tp=2",
        place={"j": "", "e": "dp+tp"},
        requests="dp",
        types={"Hidden": "n@tp d", "Tokens": "n@tp d"},
    ),
    "experts-over-dp": Layout("dp=4 tp=1", place={"j": "", "e": "dp"}, requests="dp"),
}
Note = tuple[str, str, tuple[int, ...], torch.dtype]


class Alone:
    """Collectives of one rank that notes them and answers with its own part, in the right shape."""

    def __init__(self, mesh: Mesh, rank: int) -> None:
        self.mesh, self.number = mesh, rank
        self.notes: list[Note] = []

    def factors(self, axis: str) -> tuple[str, ...]:
        return self.mesh.expand(tuple(axis.split("+")))

    def rank(self, axis: str) -> int:
        return self.mesh.index(self.number, self.factors(axis))

    def size(self, axis: str) -> int:
        return self.mesh.size(self.factors(axis))

    def note(self, kind: str, x: Tensor, axis: str) -> int:
        self.notes.append((kind, axis, tuple(x.shape), x.dtype))
        return self.mesh.size(self.factors(axis))

    def all_reduce(self, x: Tensor, axis: str, kind: str = "sum") -> Tensor:
        self.note(f"all_reduce {kind}", x, axis)
        return x

    def all_gather(self, x: Tensor, axis: str, dim: int) -> Tensor:
        return torch.cat([x] * self.note(f"all_gather {dim}", x, axis), dim)

    def all_gathers(self, xs: tuple[Tensor, ...], axis: str, dim: int) -> tuple[Tensor, ...]:
        return tuple(self.all_gather(x, axis, dim) for x in xs)

    def reduce_scatter(self, x: Tensor, axis: str, dim: int, kind: str = "sum") -> Tensor:
        return x.chunk(self.note(f"reduce_scatter {dim} {kind}", x, axis), dim)[self.rank(axis)]

    def all_to_all(self, x: Tensor, axis: str, source: int, dim: int) -> Tensor:
        ways = self.note(f"all_to_all {source} {dim}", x, axis)
        return torch.cat([x.chunk(ways, dim)[self.rank(axis)]] * ways, source)

    def start(self, kind: str, *given: Any) -> Tensor:
        found: Tensor = getattr(self, kind)(*given)
        return found

    def wait(self, pending: Tensor) -> Tensor:
        return pending

    def dispatch(self, x: Tensor, ids: Tensor, weights: Tensor, axis: str, share: int) -> Any:
        self.note("dispatch", x, axis)
        return x, ids, weights, None

    def combine(self, y: Tensor, trip: None, axis: str) -> Tensor:
        self.note("combine", y, axis)
        return y


def skewed(tiny: Tiny, draw: random.Random, most: int, size: int) -> Batch:
    """Return a step of 1 to `most` requests, each in another state, padded to `size` tokens."""
    rows, left = [], size
    for request in range(draw.randint(1, most)):
        length = draw.randint(1, 20)
        new = draw.randint(1, min(length, max(1, left - most + request)))
        rows.append((tiny.tokens[0][:length], length - new, request))
        left -= new
    batch = batch_of(rows, multiple=size)
    wanted = torch.zeros(6, dtype=torch.int64)  # a bucket of rows, which all ranks take alike
    wanted[: len(rows)] = batch.logit_rows
    step: Batch = attrs.evolve(batch, logit_rows=wanted)  # type: ignore[misc]
    return step


def notes(plan: Plan, tiny: Tiny, steps: int) -> list[list[Note]]:
    """Return what each rank issues over some steps of batches that only ranks of one dp share."""
    forward, mesh = plan.load(), plan.mesh
    found = []
    for rank in range(mesh.num_ranks):
        c = Alone(mesh, rank)
        weights = plan.weights(plan.place(tiny.params, rank))
        caches = plan.allocate_caches(NUM_BLOCKS)
        draw = random.Random(mesh.index(rank, mesh.requests))
        for at in range(steps):
            busy = 6 if (mesh.index(rank, mesh.requests) + at) % 2 else 1
            _, caches = forward(c, weights, caches, skewed(tiny, draw, busy, 32))
        found.append(c.notes)
    return found


def held(mesh: Mesh, found: list[list[Note]]) -> int:
    """Hold what ranks noted to each other; return how many collectives a rank issued."""
    assert len({len(each) for each in found}) == 1
    for calls in zip(*found, strict=True):
        assert len({(kind, axis) for kind, axis, _, _ in calls}) == 1, calls
        factors = mesh.expand(tuple(calls[0][1].split("+")))
        for group in mesh.groups(factors):
            assert len({calls[rank] for rank in group}) == 1, [calls[rank] for rank in group]
    return len(found[0])


@pytest.mark.parametrize("layout", DENSE)
def test_dense_ranks_with_unlike_queues_stay_together(layout: str) -> None:
    tiny = make_tiny({"num_hidden_layers": 2})
    plan = compile_plan(
        tiny.family, tiny.config, DENSE[layout], dtype=torch.float32, block_size=BLOCK
    )
    issued = held(plan.mesh, notes(plan, tiny, 12))
    assert issued or not plan.groups


@pytest.mark.parametrize("tokens", [0, 1 << 24])
@pytest.mark.parametrize("layout", EXPERTS)
@pytest.mark.parametrize("family", ["qwen3-moe", "deepseek-v3"])
def test_ranks_with_experts_stay_together(family: str, layout: str, tokens: int) -> None:
    tiny = tiny_of(FAMILIES[family](), torch.float32, (24,))
    place = dict(EXPERTS[layout].place)
    if family == "deepseek-v3":
        place["f"] = ""
    plan = compile_plan(
        tiny.family,
        tiny.config,
        EXPERTS[layout].but(place=place),
        dtype=torch.float32,
        block_size=BLOCK,
        tokens=tokens,
    )
    assert held(plan.mesh, notes(plan, tiny, 8))


def test_a_rank_that_goes_its_own_way_is_noticed() -> None:
    """The check above can fail: one rank leaves out a collective where its queue is short."""
    tiny = make_tiny({"num_hidden_layers": 1})
    plan = compile_plan(
        tiny.family, tiny.config, DENSE["dp-tp"], dtype=torch.float32, block_size=BLOCK
    )
    found = notes(plan, tiny, 4)
    change: Callable[[Note], Note] = lambda note: (*note[:2], (1,), note[3])  # noqa: E731
    for broken in (found[0][:-1], [change(found[0][0]), *found[0][1:]]):
        with pytest.raises(AssertionError):
            held(plan.mesh, [broken, *found[1:]])
