# SPDX-License-Identifier: MIT
"""The simulated mesh itself: its collectives, and that it sees ranks differ."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core.ops import linear
from tokenspeed_core.sharding import VerificationError, parse_mesh
from tokenspeed_core.sharding.simulate import LockStep, Ranks, agree

MESH = parse_mesh("dp=2 tp=(kv=2,rep=2)")
AXES = st.sampled_from(["dp", "tp", "kv", "rep", "dp+kv"])


def values(seed: int) -> Ranks:
    random = torch.Generator().manual_seed(seed)
    return Ranks([torch.randn(4, 8, generator=random) for _ in range(MESH.num_ranks)])


@given(AXES, st.integers(0, 1), st.integers(0, 99))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(
    axis: str, dim: int, seed: int
) -> None:
    x, c = values(seed), LockStep(MESH)
    whole = c.all_reduce(x, axis)
    parts = c.all_gather(c.reduce_scatter(x, axis, dim), axis, dim)
    for left, right in zip(whole.parts, parts.parts, strict=True):
        assert torch.equal(left, right)
    assert [kind for kind, _ in c.log] == ["all_reduce", "reduce_scatter", "all_gather"]


@given(AXES, st.integers(0, 99))
def test_sums_are_in_rank_order_over_the_group_only(axis: str, seed: int) -> None:
    x = values(seed)
    got = LockStep(MESH).all_reduce(x, axis)
    for group in MESH.groups(MESH.expand(tuple(axis.split("+")))):
        expected = x.parts[group[0]].clone()
        for rank in group[1:]:
            expected += x.parts[rank]
        assert all(torch.equal(got.parts[rank], expected) for rank in group)


def test_ops_run_rank_by_rank() -> None:
    x, w = values(1), Ranks([torch.randn(3, 8) for _ in range(MESH.num_ranks)])
    got = linear(x, w)  # type: ignore[arg-type]
    for rank, part in enumerate(got.parts):  # type: ignore[attr-defined]
        torch.testing.assert_close(part, x.parts[rank] @ w.parts[rank].T)


def test_places_follow_the_mesh() -> None:
    c = LockStep(MESH)
    assert c.rank("dp").parts == (0, 0, 0, 0, 1, 1, 1, 1)
    assert c.rank("tp").parts == (0, 1, 2, 3, 0, 1, 2, 3)
    assert c.rank("rep").parts == (0, 1, 0, 1, 0, 1, 0, 1)


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0 + 2**-23), (0.0, -0.0)])
def test_one_differing_bit_is_seen(left: float, right: float) -> None:
    x = Ranks([torch.tensor([left]), torch.tensor([right])])
    with pytest.raises(VerificationError, match="y is Replicated, but rank 1 differs"):
        agree(x, "y")
    assert agree(Ranks([torch.tensor([float("nan")])] * 2), "y").isnan()


def test_a_value_may_differ_over_the_axes_of_its_placement_only() -> None:
    c = LockStep(MESH)
    by_tp = Ranks([torch.tensor([float(rank % 4)]) for rank in range(8)])
    c.check(by_tp, ("kv", "rep"), "x: n@tp")
    with pytest.raises(VerificationError):
        c.check(by_tp, ("kv",), "x: n@kv")


def test_tokens_that_do_not_divide_are_refused_with_the_fix() -> None:
    x = Ranks([torch.ones(5, 2)] * 8)
    with pytest.raises(VerificationError, match="pad the step's tokens to a multiple of 4"):
        LockStep(MESH).reduce_scatter(x, "tp", 0)
