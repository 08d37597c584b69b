# SPDX-License-Identifier: MIT
"""Sums of a special kind: one rank adds alone (sum1), or all add squares (sumsq)."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sharding.compiled import compiled as compare
from tokenspeed_core.ops import (
    einsum,
    embedding,
    rms_norm,
    rms_norm_by_total,
    silu_mul,
    squares,
    stack_totals,
)
from tokenspeed_core.sharding import (
    Layout,
    Placed,
    Plan,
    VerificationError,
    module,
    parse_mesh,
)
from tokenspeed_core.sharding.program import Apply, Move
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.reduction import KINDS, SUM1, SUMS, passes, reduced, weakest
from tokenspeed_core.sharding.simulate import LockStep, Ranks

SIZES = {"d": 8, "f": 16, "v": 8}


@module
class Params:
    embed: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]
    bias: Placed[Tensor, "d"]
    wide_norm: Placed[Tensor, "f@tp"]


compiled = partial(compare, Params, SIZES)


def issued(plan: Plan) -> list[str]:
    return [step.kind for step in plan.program.driver.steps if isinstance(step, Move)]


def biased(p: Params, batch: Any) -> Tensor:
    x = embedding(batch.tokens, p.embed)
    y = einsum(
        "n f, f d -> n d", einsum("n d, d f -> n f", rms_norm(x, p.norm, 1e-2), p.up), p.down
    )
    return rms_norm(x + (y + p.bias), p.norm, 1e-2)


@pytest.mark.parametrize("mesh", ["tp=2", "tp=4", "tp=(a=2,b=2)", "dp=2 tp=2"])
def test_a_bias_joins_the_sum_that_its_product_owes(mesh: str) -> None:
    """The sum is paid once, with the residual's: at the norm, not before the bias."""
    plan, error = compiled(biased, Layout(mesh))
    assert error < 1e-12
    assert issued(plan) == ["all_reduce", "own", "all_reduce"]
    assert "own(w[" in plan.source


def test_a_bias_that_every_rank_adds_is_refused() -> None:
    plan, _ = compiled(biased, Layout("tp=2"))
    lines = [line for line in plan.source.splitlines() if "own(w[" not in line]
    text = "\n".join(lines).replace("+ bias", '+ w["bias"]')
    assert text != plan.source
    with pytest.raises(VerificationError):
        recheck(plan, text)


def gated(p: Params, batch: Any) -> Tensor:
    x = embedding(batch.tokens, p.embed)
    return silu_mul(x, rms_norm(embedding(batch.tokens, p.embed), p.norm, 1e-2))


def test_what_one_rank_owns_passes_ops_that_keep_zeros() -> None:
    """The gate is not linear in what it gates, yet may be computed before the sum is paid."""
    plan, error = compiled(gated, Layout("tp=2"))
    assert error < 1e-12
    steps = plan.program.driver.steps
    (gate,) = (s for s in steps if isinstance(s, Apply) and s.op.name == "silu_mul")
    assert [str(var.spec) for var in (gate.operands[0], *gate.results)] == ["n d !sum1:tp"] * 2


def wide(p: Params, batch: Any) -> Tensor:
    x = rms_norm(embedding(batch.tokens, p.embed), p.norm, 1e-2)
    y = einsum("n d, d f -> n f", x, p.up)
    totals = stack_totals(squares(y), squares(y * 2.0))
    y = rms_norm_by_total(y, totals, p.wide_norm, 0, SIZES["f"], 1e-2)
    return einsum("n f, f d -> n d", y, p.down)


@pytest.mark.parametrize("mesh", ["tp=2", "tp=4"])
def test_a_norm_over_a_sharded_dim_sums_squares(mesh: str) -> None:
    plan, error = compiled(wide, Layout(mesh))
    assert error < 1e-12
    assert re.search(r'c\.all_reduce\(\w+, "tp", "sumsq"\)', plan.source)
    assert issued(plan).count("all_reduce") == 3


def test_a_sum1_to_which_two_ranks_add_is_refused_by_the_simulator() -> None:
    mesh = LockStep(parse_mesh("tp=2"))
    alone = Ranks([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])])
    assert torch.equal(mesh.all_reduce(alone, "tp", SUM1).parts[1], torch.tensor([1.0, 2.0]))
    with pytest.raises(VerificationError, match="one rank owns alone"):
        mesh.all_reduce(Ranks([torch.ones(2), torch.ones(2)]), "tp", SUM1)
    with pytest.raises(VerificationError, match="one rank owns alone"):
        mesh.reduce_scatter(Ranks([torch.ones(2), torch.ones(2)]), "tp", 0, SUM1)


def test_what_one_rank_adds_to_alone_is_exact_in_any_dtype() -> None:
    x = torch.randn(64).to(torch.bfloat16)
    owner = torch.arange(64) % 3
    assert torch.equal(reduced([x * (owner == rank) for rank in range(3)], SUM1), x)


def test_kinds_of_sums_pass_for_plain_ones_only() -> None:
    for given in KINDS:
        for taken in KINDS:
            expected = given == taken or (taken == "sum" and given in SUMS)
            assert passes(given, taken) == expected
    assert weakest("sum1", "sum1") == "sum1"
    assert weakest("sum1", "sumsq") == weakest("sum", "sum1") == "sum"
    assert weakest("sum", "max") is None
