# SPDX-License-Identifier: MIT
"""Local regions: per-rank code runs where it declares, and is held to what it declares."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sharding.compiled import compiled as compare
from tokenspeed_core.ops import einsum, embedding, rms_norm
from tokenspeed_core.sharding import (
    AnnotationError,
    Layout,
    Placed,
    PlacementError,
    VerificationError,
    local,
    module,
)
from tokenspeed_core.sharding.program import Move
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.region import prove

MESHES = ["tp=1", "tp=2", "tp=4", "dp=2 tp=2", "tp=(a=2,b=2)"]


@module
class Params:
    table: Placed[Tensor, "v@tp d"]
    norm: Placed[Tensor, "d"]
    up: Placed[Tensor, "d f@tp"]
    down: Placed[Tensor, "f@tp d"]


@local("n f@tp, f@tp d -> n d !tp")
def leaky_down(x: Tensor, w: Tensor) -> Tensor:
    """A product with an activation that no op has."""
    return torch.nn.functional.leaky_relu(x, 0.1) @ w


@local("n, v@tp d -> n d !sum1:tp", over="tp", dtype=torch.float64)
def lookup(ids: Tensor, table: Tensor, place: int = 0, ways: int = 1) -> Tensor:
    """An embedding of its own: told which rows a rank holds."""
    at = ids.long() - place * len(table)
    held = (at >= 0) & (at < len(table))
    return table[at.clamp(0, len(table) - 1)] * held[:, None]


@local("n f@tp -> n f ?tp", over="tp")
def scattered(x: Tensor, place: int = 0, ways: int = 1) -> Tensor:
    """What each rank holds, at its place among zeros: it differs from rank to rank."""
    whole = x.new_zeros(x.shape[0], x.shape[1] * ways)
    whole[:, place * x.shape[1] : (place + 1) * x.shape[1]] = x
    return whole


@local("n f ?tp -> n f !tp")
def summed(x: Tensor) -> Tensor:
    """The zeros of `scattered` make it a sum."""
    return x * 1.0


compiled = partial(compare, Params, {"v": 8, "d": 8, "f": 16})


def model(p: Params, batch: Any) -> Tensor:
    x = rms_norm(lookup(batch.tokens, p.table), p.norm, 1e-2)
    return leaky_down(einsum("n d, d f -> n f", x, p.up), p.down)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_region_runs_on_what_a_rank_holds(mesh: str) -> None:
    plan, error = compiled(model, Layout(mesh))
    assert error < 1e-12
    assert f"from {__name__} import leaky_down, lookup" in plan.source
    if mesh == "tp=2":
        assert 'lookup(batch.tokens, w["table"], c.rank("tp"), 2)' in plan.source
        moves = [step.kind for step in plan.program.driver.steps if isinstance(step, Move)]
        assert moves == ["all_reduce", "all_reduce"]


def test_operands_are_moved_to_where_a_region_takes_them() -> None:
    def function(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        whole = einsum("n d, v d -> n v", x, p.table)  # v@tp
        return sharded_rows(whole)

    @local("n@tp v -> n@tp v")
    def sharded_rows(x: Tensor) -> Tensor:
        return x.softmax(-1)

    globals()["sharded_rows"] = sharded_rows  # where a file that is emitted finds it
    with pytest.raises(PlacementError, match="all-to-all"):
        compiled(function, Layout("tp=2"))

    def gathered(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return einsum("n d, d f -> n f", sharded_rows(x), p.up)

    plan, error = compiled(gathered, Layout("tp=2"))
    assert error < 1e-12
    assert "shard(" in plan.source


@pytest.mark.parametrize("mesh", MESHES)
def test_what_varies_goes_from_region_to_region(mesh: str) -> None:
    def function(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return summed(scattered(einsum("n d, d f -> n f", x, p.up)))

    assert compiled(function, Layout(mesh))[1] < 1e-12


def test_what_varies_is_read_by_no_op() -> None:
    def function(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return scattered(einsum("n d, d f -> n f", x, p.up)) * 2.0

    with pytest.raises(PlacementError, match="only a local region that declares it") as told:
        compiled(function, Layout("tp=2"))
    assert "test_region.py" in str(told.value)

    def result(p: Params, batch: Any) -> Tensor:
        x = rms_norm(embedding(batch.tokens, p.table), p.norm, 1e-2)
        return scattered(einsum("n d, d f -> n f", x, p.up))

    with pytest.raises((PlacementError, VerificationError)):
        compiled(result, Layout("tp=2"))


def test_an_edited_place_is_refused() -> None:
    plan, _ = compiled(model, Layout("tp=2"))
    for edit in ('c.rank("tp") * 1, 2', 'c.rank("tp"), 4', "0, 2"):
        text = plan.source.replace('c.rank("tp"), 2', edit, 1)
        assert text != plan.source
        if edit != 'c.rank("tp") * 1, 2':  # the same place
            with pytest.raises(VerificationError):
                recheck(plan, text)


def op_of(function: Callable[..., Any]) -> Any:
    return function.op  # type: ignore[attr-defined]


@pytest.mark.parametrize("ways", [2, 3])
def test_a_declaration_is_tried_on_random_values(ways: int) -> None:
    wide, ids = torch.float64, torch.int32
    assert prove(op_of(leaky_down), (wide, wide), (), ways)
    assert prove(op_of(lookup), (ids, wide), (), ways)
    assert not prove(op_of(summed), (wide,), (), ways), "what varies means nothing alone"

    @local("n f@tp -> n f@tp")
    def normed(x: Tensor) -> Tensor:
        return x.softmax(-1)

    @local("n f@tp -> n f !tp")
    def kept(x: Tensor) -> Tensor:
        return x

    @local("n f !tp -> n f !tp")
    def squared(x: Tensor) -> Tensor:
        return x * x

    for false in (normed, kept, squared):
        with pytest.raises(VerificationError, match="local region"):
            prove(op_of(false), (wide,), (), ways)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("n f", {}, "no '->'"),
        ("n f -> n z", {}, "no operand of local region"),
        ("n f@@ -> n f", {}, "not a dimension"),
        ("n f@tp -> n f@tp", {"over": "tp"}, "place: int = 0, ways: int = 1"),
    ],
)
def test_a_region_that_is_no_region_is_refused(text: str, options: Any, told: str) -> None:
    with pytest.raises(AnnotationError, match=told):

        @local(text, **options)
        def function(x: Tensor) -> Tensor:
            return x
