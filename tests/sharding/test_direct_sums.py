# SPDX-License-Identifier: MIT
"""Direct sums: one dim made of several, `(g|u)`, of which each rank has a shard of every part."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from tests.sharding.compiled import compiled as compare
from tokenspeed_core.ops import einsum, embedding, parts, rms_norm, sigmoid, silu_mul
from tokenspeed_core.sharding import (
    AnnotationError,
    Layout,
    MeshError,
    Placed,
    PlacementError,
    Plan,
    TraceError,
    VerificationError,
    module,
    parse_spec,
)
from tokenspeed_core.sharding.program import Apply, Move
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.verify import verify

SIZES = {"v": 8, "d": 8, "g": 12, "u": 12, "q": 16, "k": 4}
MESHES = ["tp=1", "tp=2", "tp=4", "tp=(a=2,b=2)", "dp=2 tp=2"]


@module
class Params:
    table: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]
    gate_up: Placed[Tensor, "d (g|u)@tp"]
    bias: Placed[Tensor, "(g|u)@tp"]
    down: Placed[Tensor, "g@tp d"]
    uneven: Placed[Tensor, "(q|k)@tp d"]
    back: Placed[Tensor, "(g|u)@tp d"]
    other: Placed[Tensor, "(q|k) d"]


def halves(p: Params, batch: Any) -> Tensor:
    x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
    q, k = parts(einsum("n d, (q|k) d -> n (q|k)", x, p.uneven), 16, 4)
    return einsum("n q, n k -> n q k", q, k)


def gated(p: Params, batch: Any) -> Tensor:
    x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
    gate, _ = parts(einsum("n d, d (g|u) -> n (g|u)", x, p.gate_up) + p.bias, 12, 12)
    return einsum("n g, g d -> n d", silu_mul(gate, gate), p.down)


def contracted(p: Params, batch: Any) -> Tensor:
    """Both parts go through one product, as where attention and its mlp share the last one."""
    x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
    both = sigmoid(einsum("n d, d (g|u) -> n (g|u)", x, p.gate_up))
    return einsum("n (g|u), (g|u) d -> n d", both, p.back)


def compiled(function: Callable[..., Any], layout: Layout, **sizes: int) -> tuple[Plan, float]:
    return compare(Params, {**SIZES, **sizes}, function, layout)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_direct_sum_is_sharded_part_by_part(mesh: str) -> None:
    plan, error = compiled(gated, Layout(mesh))
    assert error < 1e-12
    if mesh == "tp=2":
        packs = {pack.name: pack for pack in plan.storage}
        assert packs["gate_up"].shape == (12, 8)
        members = packs["gate_up"].members
        assert [(m.path, m.start, m.stop) for m in members] == [
            ("gate_up", 0, 6),
            ("gate_up", 6, 12),
        ]
        assert members[1].slices(plan.mesh, 1) == (slice(0, 8), slice(18, 24))
        assert "n (g|u)@tp" in plan.source
        kinds = [step.kind for step in plan.program.driver.steps if isinstance(step, Move)]
        assert kinds == ["all_reduce", "all_reduce"]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("u", [12, 4])
def test_a_direct_sum_is_contracted_over_part_by_part(mesh: str, u: int) -> None:
    plan, error = compiled(contracted, Layout(mesh), u=u)
    assert error < 1e-12
    verify(plan.program)
    recheck(plan, plan.source)
    if mesh == "tp=2":
        packs = {pack.name: pack for pack in plan.storage}
        assert packs["back"].shape == (8, 6 + u // 2)
        first, second = packs["back"].members
        assert (first.columns, second.columns) == ((0, 6), (6, 6 + u // 2))
        assert second.slices(plan.mesh, 1) == (slice(12 + u // 2, 12 + u), slice(0, 8))
        assert second.num_inputs == 12 + u
        kinds = [step.kind for step in plan.program.driver.steps if isinstance(step, Move)]
        assert kinds == ["all_reduce", "all_reduce"], "one sum for both parts"


@pytest.mark.parametrize("names", [("uneven", "other"), ("other", "uneven")])
def test_a_direct_sum_is_not_moved_for_a_product(names: tuple[str, str]) -> None:
    """A slice of it, or a gather in rank order, would mix its parts."""
    first, second = names

    def cut(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        both = einsum("n d, (q|k) d -> n (q|k)", x, getattr(p, first))
        return einsum("n (q|k), (q|k) d -> n d", both, getattr(p, second))

    with pytest.raises(PlacementError, match="side by side"):
        compiled(cut, Layout("tp=2"))


def test_parts_of_other_sizes_keep_their_own_shards() -> None:
    """16 and 4 over two ranks: 8 and 2 each, not 10 and 10; one may not share a product's axis."""
    with pytest.raises(PlacementError, match="another on"):
        compiled(halves, Layout("tp=2"))
    plan, error = compiled(halves, Layout("tp=2", place={"(q|k)": ""}))
    assert error < 1e-12
    assert plan.mesh.num_ranks == 2


def test_a_part_that_does_not_divide_is_named() -> None:
    with pytest.raises(MeshError, match="'k' has size 3, which tp=2 does not divide"):
        compiled(gated, Layout("tp=2"), k=3)


def test_a_shard_of_a_direct_sum_is_not_gathered() -> None:
    def summed(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return einsum("n d, d (g|u) -> n (g|u)", x, p.gate_up)

    with pytest.raises(Exception, match="take its `parts` first"):
        compiled(summed, Layout("tp=2"))
    plan, _ = compiled(gated, Layout("tp=2"))
    code = plan.program.driver
    at = next(i for i, s in enumerate(code.steps) if isinstance(s, Apply) and s.op.name == "parts")
    (both,) = code.steps[at].operands
    whole = attrs.evolve(both, name="whole", spec=parse_spec("n (g|u)"))
    move = Move("all_gather", ("tp",), 1, both, whole, "", both.line, ())
    steps = (*code.steps[:at], move, *code.steps[at:])
    with pytest.raises(VerificationError, match="not side by side"):
        verify(attrs.evolve(plan.program, driver=attrs.evolve(code, steps=steps)))


@pytest.mark.parametrize("sizes", [(12, 6, 6), (24,), (6, 18), (16, 8)])
def test_parts_of_wrong_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    def wrong(p: Params, batch: Any) -> Any:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return parts(einsum("n d, d (g|u) -> n (g|u)", x, p.gate_up), *sizes)[0]

    with pytest.raises(TraceError, match=r"parts of sizes .* of dim \(g\|u\) of size 24"):
        compiled(wrong, Layout("tp=2"))


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("state", ["R", "P", "1", "rows", "parts"])
def test_the_rule_is_true(ways: int, state: str) -> None:
    """By brute force: whatever a rank holds of the sum, it holds of each part."""
    torch.manual_seed(2)
    x = torch.randn(6, 18, dtype=torch.float64)
    whole = parts(x, 12, 6)
    owner = torch.randint(0, ways, x.shape)
    noise = [torch.randn_like(x) for _ in range(ways - 1)]
    local = {
        "R": [x] * ways,
        "P": [*noise, x - sum(noise)],
        "1": [x * (owner == rank) for rank in range(ways)],
        "rows": list(x.chunk(ways)),
        "parts": [torch.cat([p.chunk(ways, 1)[rank] for p in whole], 1) for rank in range(ways)],
    }[state]
    made = [parts(each, 12, 6) for each in local]
    for index, expected in enumerate(whole):
        pieces = [each[index] for each in made]
        got = {
            "R": lambda pieces=pieces: pieces[0],
            "P": lambda pieces=pieces: sum(pieces),
            "1": lambda pieces=pieces: sum(pieces),
            "rows": lambda pieces=pieces: torch.cat(pieces),
            "parts": lambda pieces=pieces: torch.cat(pieces, 1),
        }[state]()
        torch.testing.assert_close(got, expected)


def test_two_underscores_are_kept_for_direct_sums() -> None:
    assert str(parse_spec("n (g|u)@tp")) == "n (g|u)@tp"
    with pytest.raises(AnnotationError, match=r"write \(g\|u\)"):
        parse_spec("n g__u")
