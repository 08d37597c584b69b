# SPDX-License-Identifier: MIT
"""What `explain` says of single collectives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import declared_batch, einsum, embedding, rms_norm, widen
from tokenspeed_core.sharding import Layout, Placed, Plan, build, declare, explain, module, trace
from tokenspeed_core.sharding.cost import cost, moves
from tokenspeed_core.sharding.link import Link


@module
class Weights:
    table: Placed[Tensor, "v d"]
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    norm: Placed[Tensor, "f"]


def compiled(body: Any, mesh: str = "tp=4") -> Plan:
    declared = declare(Weights, {"v": 64, "d": 32, "f": 64}, torch.bfloat16)

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        return body(p, embedding(batch.tokens, p.table)), caches

    return build(
        trace(forward, declared, (), declared_batch()),
        Layout(mesh),
        name="small",
        ops="tokenspeed_core.ops",
        params=declared,
        caches=(),
        constants={},
    )


def late_gather(p: Any, x: Any) -> Any:
    return rms_norm(widen(einsum("n d, d f -> n f", x, p.up)), p.norm, 1e-5)


def sum_of_two(p: Any, x: Any) -> Any:
    return einsum("n f, f d -> n d", einsum("n d, d f -> n f", x, p.up), p.down)


def test_a_gather_of_wider_elements_names_the_narrower_value() -> None:
    text = explain(compiled(late_gather), tokens=1000)
    assert "cheaper: gather einsum_1: n f@tp before it becomes einsum_2" in text
    assert "128 KB instead of 256 KB" in text


def test_a_reduction_says_where_the_sum_comes_from() -> None:
    text = explain(compiled(sum_of_two), tokens=10)
    assert "all_reduce(" in text
    assert "a program's result is Replicated" in text
    assert "cheaper" not in text


@pytest.mark.parametrize(
    ("body", "kind", "trips", "payload"),
    [(sum_of_two, "all_reduce", 2, 32 * 2), (late_gather, "all_gather", 1, 64 * 4)],
)
def test_bytes_are_those_of_a_ring_and_time_is_alpha_beta(
    body: Any, kind: str, trips: int, payload: int
) -> None:
    plan = compiled(body)
    ((move, times),) = [pair for pair in moves(plan.program.driver) if pair[0].kind == kind]
    price = cost(move, plan.mesh, {"n": 100}, Link("test", 5.0, 10.0))
    assert times == 1
    assert price.payload == 100 * payload
    assert price.wire == trips * 100 * payload * 3 // 4
    assert price.us == pytest.approx(5.0 + price.wire / 10e3)


def test_one_rank_has_no_collectives() -> None:
    assert "a step: no collectives" in explain(compiled(sum_of_two, "tp=1"))
