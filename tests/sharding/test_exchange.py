# SPDX-License-Identifier: MIT
"""Experts spread over ranks: each lowering of the same block equals one device."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from mutants import mutants, refused
from torch import Tensor

from tests.rank_processes import run_ranks
from tokenspeed_core.collectives import Collectives
from tokenspeed_core.ops import Batch, declared_batch, embedding, experts, softmax_router
from tokenspeed_core.ops import einsum as contract
from tokenspeed_core.rank_groups import RankGroups
from tokenspeed_core.sharding import (
    Layout,
    Placed,
    Plan,
    VerificationError,
    build,
    declare,
    leaves,
    map_leaves,
    module,
    spmd,
    trace,
)
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.program import Move, Program
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.verify import verify

SIZES = {"v": 8, "d": 8, "e": 8, "j": 4}
TOKENS = 6
Hidden = Placed[Tensor, "~n d"]


@module
class Mixture:
    embed: Placed[Tensor, "v d"]
    router: Placed[Tensor, "d e"]
    w_gate: Placed[Tensor, "e@dp j d"]
    w_up: Placed[Tensor, "e@dp j d"]
    w_down: Placed[Tensor, "e@dp d j"]


@spmd
def mixture(p: Mixture, x: Hidden) -> Hidden:
    ids, weights = softmax_router(contract("n d, d e -> n e", x, p.router), 2, True)
    return experts(x, ids, weights, p.w_gate, p.w_up, p.w_down)


def forward(p: Mixture, caches: Any, batch: Batch) -> tuple[Tensor, Any]:
    x = embedding(batch.tokens, p.embed)
    return x + mixture(p, x), caches


def batch_of(ids: list[int]) -> Batch:
    column = torch.tensor(ids, dtype=torch.int32)
    fields = dict.fromkeys((field.name for field in attrs.fields(Batch)), column)
    return Batch(
        **{**fields, "num_rows": 1, "num_decode_rows": 0, "max_query": 1, "max_context": 1}
    )


def declared() -> Mixture:
    return declare(Mixture, {**SIZES}, torch.float64)


def plan_of(layout: Layout, tokens: int) -> Plan:
    params = declared()
    return build(
        trace(forward, params, (), declared_batch()),
        layout,
        name="mixture",
        ops="tokenspeed_core.ops",
        params=params,
        caches=(),
        constants={},
        tokens=tokens,
    )


def values() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {path: torch.randn(leaf.sizes).double() for path, leaf in leaves(declared())}


def kinds(program: Program) -> list[str]:
    return [step.kind for step in program.driver.steps if isinstance(step, Move)]


LAYOUTS = {
    "dp2": Layout("dp=2", requests="dp"),
    "dp4": Layout("dp=4", requests="dp"),
    "dp8": Layout("dp=8", requests="dp"),
    "dp-tp": Layout("dp=2 tp=2", place={"e": "dp+tp"}, requests="dp"),
    "dp-tp-streams": Layout(
        "dp=2 tp=2", place={"e": "dp+tp"}, types={"Hidden": "n@tp d"}, requests="dp"
    ),
    "dp-over-j": Layout("dp=2 tp=2", place={"j": "tp"}, requests="dp"),
}
MANY = 1 << 20  # tokens for which bytes decide


def outcome(plan: Plan, rows: list[list[int]]) -> Tensor:
    return Simulation(plan, values(), blocks=1).step(*map(batch_of, rows))


@pytest.mark.parametrize("tokens", [0, MANY])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_lowering_equals_one_device(layout: str, tokens: int) -> None:
    plan = plan_of(LAYOUTS[layout], tokens)
    groups = plan.mesh.size(plan.mesh.requests)
    rows = [[(3 * group + token) % 8 for token in range(TOKENS)] for group in range(groups)]
    weights = map_leaves(lambda path, _: values()[path], declared())
    expected, _ = forward(weights, (), batch_of([token for row in rows for token in row]))
    torch.testing.assert_close(outcome(plan, rows), expected, rtol=1e-12, atol=1e-12)


def test_rows_are_sent_where_that_costs_less() -> None:
    for layout in ("dp8", "dp-tp-streams"):
        assert "dispatch" not in kinds(plan_of(LAYOUTS[layout], 0).program)
        assert "dispatch" not in kinds(plan_of(LAYOUTS[layout], 16).program)
    assert kinds(plan_of(LAYOUTS["dp8"], MANY).program) == ["dispatch"] * 3 + ["combine"]
    # Two active experts over two ranks: three rows in four are wanted on the other one.
    assert "combine" in kinds(plan_of(LAYOUTS["dp2"], MANY).program)


def test_gathers_side_by_side_are_one_collective() -> None:
    plan = plan_of(LAYOUTS["dp4"], 0)
    moves = [step for step in plan.program.driver.steps if isinstance(step, Move)]
    assert [(move.kind, move.joins) for move in moves] == [
        ("all_gather", False),
        ("all_gather", True),
        ("all_gather", True),
        ("reduce_scatter", False),
    ]
    assert "x_1, ids_1, weights_1 = c.all_gathers((x, ids, weights)" in plan.source


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [0, MANY])
def test_mutants_are_refused_or_mean_the_same(layout: str, tokens: int) -> None:
    plan = plan_of(LAYOUTS[layout], tokens)
    groups = plan.mesh.size(plan.mesh.requests)
    rows = [[(5 * group + token) % 8 for token in range(TOKENS)] for group in range(groups)]
    expected = outcome(plan, rows)
    count = 0
    for label, mutant in mutants(plan.program):
        count += 1
        if not refused(mutant):
            other = attrs.evolve(plan, program=mutant, source=emit(mutant, label, plan.ops))
            torch.testing.assert_close(
                outcome(other, rows), expected, rtol=1e-12, atol=1e-12, msg=label
            )
    assert count > 20


def test_rows_elsewhere_are_not_read() -> None:
    plan = plan_of(LAYOUTS["dp8"], MANY)
    driver = plan.program.driver
    steps = list(driver.steps)
    at = next(i for i, s in enumerate(steps) if isinstance(s, Move) and s.kind == "combine")
    assert isinstance(steps[at], Move)
    steps[at] = attrs.evolve(steps[at], kind="reduce_scatter", routed=None)
    with pytest.raises(VerificationError, match="rows of which others are elsewhere"):
        verify(attrs.evolve(plan.program, driver=attrs.evolve(driver, steps=tuple(steps))))
    at = next(i for i, s in enumerate(steps) if isinstance(s, Move) and s.kind == "dispatch")
    steps = list(driver.steps)
    steps[at] = attrs.evolve(steps[at], routed=(2, 2))
    with pytest.raises(VerificationError, match=r"cannot join|other ranks"):
        verify(attrs.evolve(plan.program, driver=attrs.evolve(driver, steps=tuple(steps))))


def run_rank(rank: int, layout: str, tokens: int, rows: list[list[int]], path: str) -> None:
    torch.set_num_threads(1)
    plan = plan_of(LAYOUTS[layout], tokens)
    meet, cpu = f"file://{path}/meet", torch.device("cpu")
    c = Collectives.of(RankGroups.join(plan.groups, plan.mesh.num_ranks, rank, meet, cpu))
    own = plan.mesh.index(rank, plan.mesh.requests)
    result, _ = plan.load()(c, plan.weights(plan.place(values(), rank)), (), batch_of(rows[own]))
    torch.save(result, f"{path}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tokens", [0, MANY])
def test_real_ranks_are_the_simulated_ones_bit_for_bit(tokens: int, tmp_path: Path) -> None:
    layout = "dp-tp-streams"
    rows = [[1, 2, 3, 4], [7, 7, 7, 7]]
    plan = plan_of(LAYOUTS[layout], tokens)
    run_ranks(run_rank, 4, layout, tokens, rows, str(tmp_path))
    expected = outcome(plan, rows).chunk(2)
    for rank in range(4):
        got = torch.load(tmp_path / str(rank))
        assert torch.equal(got, expected[plan.mesh.index(rank, plan.mesh.requests)])
