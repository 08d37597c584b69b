# SPDX-License-Identifier: MIT
"""An add and the norm of its result become one call, where that changes nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenspeed_core.ops import Batch, declared_batch, einsum, embedding, rms_norm
from tokenspeed_core.sharding import (
    Layout,
    Placed,
    build,
    declare,
    leaves,
    map_leaves,
    module,
    trace,
)
from tokenspeed_core.sharding.simulate import Simulation


@module
class Weights:
    table: Placed[Tensor, "v d"]
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    first: Placed[Tensor, "d"]
    second: Placed[Tensor, "d"]


def mlp(p: Any, x: Any) -> Any:
    return einsum("n f, f d -> n d", einsum("n d, d f -> n f", x, p.up), p.down)


def pre_norm(p: Any, x: Any) -> Any:
    x = x + mlp(p, rms_norm(x, p.first, 1e-2))
    return x + mlp(p, rms_norm(x, p.second, 1e-2))


def two_norms_of_one_sum(p: Any, x: Any) -> Any:
    y = x + mlp(p, x)
    return rms_norm(y, p.first, 1e-2) + rms_norm(y, p.second, 1e-2)


def norm_of_a_biased_value(p: Any, x: Any) -> Any:
    return rms_norm(x + p.first, p.second, 1e-2)


def sum_used_between(p: Any, x: Any) -> Any:
    y = x + mlp(p, x)
    z = mlp(p, y)
    return rms_norm(y, p.first, 1e-2) + z


@pytest.mark.parametrize("mesh", ["tp=1", "tp=2"])
@pytest.mark.parametrize(
    ("body", "fused", "norms"),
    [
        (pre_norm, 1, 1),
        (two_norms_of_one_sum, 1, 1),
        (norm_of_a_biased_value, 0, 1),
        (sum_used_between, 1, 0),
    ],
)
def test_fusing_keeps_the_result(body: Any, fused: int, norms: int, mesh: str) -> None:
    declared = declare(Weights, {"v": 8, "d": 8, "f": 16}, torch.float64)

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        return body(p, embedding(batch.tokens, p.table)), caches

    plan = build(
        trace(forward, declared, (), declared_batch()),
        Layout(mesh),
        name="small",
        ops="tokenspeed_core.ops",
        params=declared,
        caches=(),
        constants={},
    )
    calls = plan.source.partition("def forward")[2]
    assert calls.count("add_rms_norm(") == fused
    assert calls.count("= rms_norm(") == norms
    torch.manual_seed(2)
    values = {path: torch.randn(leaf.sizes).double() for path, leaf in leaves(declared)}
    ids = torch.arange(8, dtype=torch.int32)
    columns = "positions cache_slots query_starts context_lens block_tables logit_rows state_blocks"
    counts = "num_rows num_decode_rows max_query max_context"
    unused = dict.fromkeys(columns.split(), ids) | dict.fromkeys(counts.split(), 8)
    batch = Batch(tokens=ids, **unused)
    eager, _ = forward(map_leaves(lambda path, _: values[path], declared), (), batch)
    got = Simulation(plan, values, blocks=1).step(batch)
    torch.testing.assert_close(got, eager, rtol=1e-10, atol=1e-10)
