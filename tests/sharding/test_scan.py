# SPDX-License-Identifier: MIT
"""Layers: equal ones share a block, carries keep their type, unlike ones run in order."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import Batch, declared_batch, einsum, embedding, rms_norm
from tokenspeed_core.sharding import (
    Layout,
    Placed,
    Plan,
    TraceError,
    build,
    declare,
    leaves,
    map_leaves,
    module,
    scan,
    trace,
)
from tokenspeed_core.sharding.simulate import Simulation

SIZES = {"d": 8, "f": 16, "v": 8}


@module
class Nothing:
    """A cache of no tensors."""


@module
class Layer:
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    bias: Placed[Tensor, "d"] | None


@module
class Model:
    sharded: Placed[Tensor, "v@tp d"]
    whole: Placed[Tensor, "v d"]
    norm: Placed[Tensor, "d"]
    layers: tuple[Layer, ...]


def model(biases: list[bool]) -> Model:
    plain = declare(Layer, SIZES, torch.float64)
    biased = declare(Layer, SIZES, torch.float64, ["bias"])
    front = declare(Model, {**SIZES, "layers": 0}, torch.float64)
    return Model(
        sharded=front.sharded,
        whole=front.whole,
        norm=front.norm,
        layers=tuple(biased if bias else plain for bias in biases),
    )


def layer(p: Layer, x: Any, kv: Nothing, norm: Any) -> tuple[Any, Nothing]:
    y = einsum("n f, f d -> n d", einsum("n d, d f -> n f", rms_norm(x, norm, 1e-2), p.up), p.down)
    return (y if p.bias is None else rms_norm(y + p.bias, norm, 1e-2)), kv


def batch() -> Batch:
    ids = torch.arange(8, dtype=torch.int32)
    columns = "positions cache_slots query_starts context_lens block_tables logit_rows state_blocks"
    counts = "num_rows num_decode_rows max_query max_context"
    unused = dict.fromkeys(columns.split(), ids) | dict.fromkeys(counts.split(), 8)
    return Batch(tokens=ids.flip(0), **unused)


def compiled(biases: list[bool], table: str, mesh: str = "tp=2") -> tuple[Plan, float]:
    """Compile, simulate, and return the plan and its distance from the eager result."""
    declared = model(biases)
    caches = (Nothing(),) * len(biases)

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        x = embedding(batch.tokens, getattr(p, table))
        x, caches = scan(layer, p.layers, x, caches, p.norm)
        return rms_norm(x, p.norm, 1e-2), caches

    plan = build(
        trace(forward, declared, caches, declared_batch()),
        Layout(mesh),
        name="layers",
        ops="tokenspeed_core.ops",
        params=declared,
        caches=caches,
        constants={},
    )
    torch.manual_seed(1)
    values = {path: torch.randn(leaf.sizes).double() for path, leaf in leaves(declared)}
    eager, _ = forward(map_leaves(lambda path, _: values[path], declared), caches, batch())
    got = Simulation(plan, values, blocks=1).step(batch())
    return plan, float((got - eager).abs().max())


def test_unlike_layers_run_in_order_and_equal_ones_share_a_block() -> None:
    plan, error = compiled([False, False, True, False, True], "whole")
    assert error < 1e-12
    assert [code.name for code in plan.program.blocks] == ["layer_0", "layer_1"]
    spans = [
        line.split("caches")[1].split(",")[0]
        for line in plan.source.splitlines()
        if "for p, kv" in line
    ]
    assert spans == ["[0:2]", "[2:3]", "[3:4]", "[4:5]"]


def test_a_carry_that_starts_owed_stays_owed() -> None:
    plan, error = compiled([False] * 3, "sharded")
    assert error < 1e-12
    (block,) = plan.program.blocks
    assert str(block.carry[0].spec) == str(block.results[0].spec) == "n d !tp"
    assert plan.source.count("c.all_reduce") == 2


def test_a_carry_that_starts_whole_is_paid_at_the_end_of_each_layer() -> None:
    plan, error = compiled([False] * 3, "whole")
    assert error < 1e-12
    (block,) = plan.program.blocks
    assert str(block.carry[0].spec) == str(block.results[0].spec) == "n d"
    assert plan.source.count("c.all_reduce") == 1


def test_a_carry_that_layers_hand_on_whole_is_paid_before_the_first() -> None:
    plan, error = compiled([True] * 3, "sharded")
    assert error < 1e-12
    (block,) = plan.program.blocks
    assert str(block.carry[0].spec) == str(block.results[0].spec) == "n d"
    assert plan.source.count("c.all_reduce") == 2


def test_one_layer_of_another_kind_settles_the_carry_of_all() -> None:
    plan, error = compiled([False, True, False], "sharded")
    assert error < 1e-12
    assert {str(code.carry[0].spec) for code in plan.program.blocks} == {"n d"}


@pytest.mark.parametrize("mesh", ["tp=1", "tp=4", "dp=2 tp=2", "tp=(a=2,b=2)"])
def test_meshes_agree(mesh: str) -> None:
    assert compiled([False, True], "sharded", mesh)[1] < 1e-12


def test_layers_and_caches_must_be_as_many() -> None:
    with pytest.raises(TraceError, match=r"test_scan\.py:\d+: scan over 2 layers, 1 caches"):
        scan(layer, [None, None], torch.ones(1), [None])
