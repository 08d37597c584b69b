# SPDX-License-Identifier: MIT
"""Mixtures whose attention is spread by requests and whose experts over all ranks."""

from functools import cache
from pathlib import Path

import attrs
import pytest
import torch
from tiny import BLOCK, Tiny, apart, tiny_of
from tiny_families import FAMILIES, MIXTURES

from tests.rank_processes import run_ranks
from tokenspeed_core.collectives import Collectives
from tokenspeed_core.models import family_of
from tokenspeed_core.models.family import Compilation
from tokenspeed_core.rank_groups import RankGroups
from tokenspeed_core.sharding import Layout, Plan, leaves
from tokenspeed_core.sharding.draft import Draft
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.machine import H100
from tokenspeed_core.sharding.overlap import overlap
from tokenspeed_core.sharding.program import Move, Program
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.way import Way, experts_text

NUM_BLOCKS = 17
MANY = 1 << 20  # tokens for which bytes decide
STREAM = {"Hidden": "n@tp d", "Tokens": "n@tp d"}
LAYOUTS = {
    "experts-over-dp": Layout("dp=2 tp=1", place={"j": "", "e": "dp"}, requests="dp"),
    "experts-over-all": Layout(
        "dp=2 tp=2", place={"j": "", "e": "dp+tp", "f": ""}, types=STREAM, requests="dp"
    ),
    "experts-over-dp-parts-over-tp": Layout(
        "dp=2 tp=2", place={"j": "tp", "e": "dp", "f": ""}, types=STREAM, requests="dp"
    ),
    # How rows lie between layers is open: the tokens of a step decide.
    "open": Layout("dp=2 tp=2", place={"j": "", "e": "dp+tp", "f": ""}, requests="dp"),
}
CASES = [
    (family, layout)
    for family in MIXTURES
    for layout in LAYOUTS
    # Expert biases are summed apart from their products where those are cut: over budget.
    if (family, layout) != ("gpt-oss", "experts-over-dp-parts-over-tp") and layout != "open"
]


@cache
def tiny(family: str) -> Tiny:
    return tiny_of(FAMILIES[family](), torch.float64, (25, 13))


def draft_of(model: Tiny, layout: Layout) -> Draft:
    # Some have no dense MLP beside the experts.
    params = model.family.params(model.config, torch.float64)
    has = {name for _, leaf in leaves(params) for name in leaf.spec.names}
    layout = attrs.evolve(layout, place={k: v for k, v in layout.place.items() if k in has})
    return Compilation(torch.float64, BLOCK).draft(model.family, model.config, layout)


def plan_of(model: Tiny, layout: Layout, tokens: int = 0) -> Plan:
    draft = draft_of(model, layout)
    return draft.plan(draft.program(tokens))


def kinds(plan: Plan) -> set[str]:
    return {
        step.kind
        for code in (*plan.program.blocks, plan.program.driver)
        for step in code.steps
        if isinstance(step, Move)
    }


@pytest.mark.parametrize("tokens", [0, MANY])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_every_lowering_equals_one_device(family: str, layout: str, tokens: int) -> None:
    plan = plan_of(tiny(family), LAYOUTS[layout], tokens)
    one = Simulation(plan_of(tiny(family), Layout()), tiny(family).params, NUM_BLOCKS)
    many = Simulation(plan, tiny(family).params, NUM_BLOCKS)
    for expected, got in apart(tiny(family), one.step, many.step):
        assert (got - expected).abs().max() < 1e-12
    # GPT-OSS' expert biases read the gathered ids too; parts of an expert need all of its rows.
    may = family != "gpt-oss" and layout != "experts-over-dp-parts-over-tp"
    assert ("dispatch" in kinds(plan)) == (may and tokens == MANY)
    recheck(plan, plan.source)


@pytest.mark.parametrize("family", MIXTURES)
def test_every_way_of_an_open_layout_equals_one_device(family: str) -> None:
    draft = draft_of(tiny(family), LAYOUTS["open"])
    reached = {}
    for way in draft.bundled:
        plan = draft.plan(draft.run(way, 16))
        one = Simulation(plan_of(tiny(family), Layout()), tiny(family).params, NUM_BLOCKS)
        many = Simulation(plan, tiny(family).params, NUM_BLOCKS)
        for expected, got in apart(tiny(family), one.step, many.step):
            assert (got - expected).abs().max() < 1e-12
        recheck(plan, plan.source)
        reached[way] = experts_text(plan.program)
    whole, cut = Way(), Way(("tp",))
    assert reached[whole] == "gathered over dp, summed over tp"
    assert draft.best(16)[0].way == whole
    if family in ("qwen3-moe", "deepseek-v3"):
        assert reached[cut] == "gathered over dp+tp"
        assert reached[Way(("tp",), exchanged=True)] == "exchanged over dp+tp"
        assert draft.best(MANY)[0].way == Way(("tp",), exchanged=True)


def test_a_sum_over_all_ranks_is_paid_at_once_where_rows_are_few() -> None:
    """Experts' shares are owed over both axes, and a rank wants its own requests' rows."""
    draft = draft_of(tiny("qwen3-moe"), LAYOUTS["open"])
    few, many = (draft.run(Way(), tokens) for tokens in (16, MANY))

    def sums(program: Program) -> list[tuple[str, tuple[str, ...]]]:
        steps = [step for block in program.blocks for step in block.steps]
        moves = [step for step in steps if isinstance(step, Move)]
        return [(move.kind, move.axes) for move in moves if "dp" in move.axes]

    gather = [("all_gather", ("dp",))] * 3
    assert sums(few) == [*gather, ("all_reduce", ("dp", "tp")), ("slice", ("dp",))]
    assert sums(many) == [*gather, ("reduce_scatter", ("dp",))]


def early(plan: Plan) -> Plan:
    """Return a plan with every collective started early that has anything to do meanwhile."""
    program = overlap(plan.program, 1 << 24, H100)
    return attrs.evolve(plan, program=program, source=emit(program, plan.name, plan.ops))


# Each lowering where it is the cheapest: the layout and the tokens of a step.
LOWERINGS = {
    ("open", 16): "gathered over dp, summed over tp",
    ("experts-over-all", 16): "gathered over dp+tp",
    ("open", MANY): "exchanged over dp+tp",
}


def run_rank(rank: int, architecture: str, path: str) -> None:
    torch.set_num_threads(1)
    config, params, ids = torch.load(f"{path}/model", weights_only=False)
    model = Tiny(None, family_of(architecture), config, params, ids)
    found = []
    for index, ((layout, tokens), lowering) in enumerate(LOWERINGS.items()):
        plan = plan_of(model, LAYOUTS[layout], tokens)
        assert experts_text(plan.program) == lowering
        if architecture.startswith("Deepseek") and layout == "experts-over-all":
            plan = early(plan)
            assert "c.start(" in plan.source
        found.append(logits_of(model, plan, rank, f"file://{path}/meet-{index}"))
    torch.save(found, f"{path}/{rank}")


def logits_of(model: Tiny, plan: Plan, rank: int, meet: str) -> list[torch.Tensor]:
    cpu = torch.device("cpu")
    c = Collectives.of(RankGroups.join(plan.groups, plan.mesh.num_ranks, rank, meet, cpu))
    weights = plan.weights(plan.place(model.params, rank))
    forward, caches = plan.load(), plan.allocate_caches(NUM_BLOCKS)
    results = []
    own = plan.mesh.index(rank, plan.mesh.requests)

    def step(*batches: object) -> torch.Tensor:
        nonlocal caches
        result, caches = forward(c, weights, caches, batches[own])
        results.append(result)
        return result

    for _ in apart(model, lambda batch: batch.tokens, step):
        pass
    torch.distributed.destroy_process_group()
    return results


@pytest.mark.parametrize("family", ["qwen3-moe", "deepseek-v3"])
def test_real_ranks_equal_one_device(family: str, tmp_path: Path) -> None:
    """Two groups of requests by two ranks, experts over all four, in each of the three ways."""
    model = tiny(family)
    torch.save((model.config, model.params, model.tokens), tmp_path / "model")
    name = type(model.oracle).__name__
    run_ranks(run_rank, 4, name, str(tmp_path))
    one = Simulation(plan_of(tiny(family), Layout()), tiny(family).params, NUM_BLOCKS)
    expected = [logits for logits, _ in apart(tiny(family), one.step, lambda *_: torch.empty(0))]
    found = [torch.load(tmp_path / str(rank)) for rank in range(4)]
    for case in range(len(LOWERINGS)):
        for rank, results in enumerate(found):
            for index, wanted in enumerate(expected):
                got = results[case][index]
                assert torch.equal(got, found[rank // 2 * 2][case][index])
                assert (got - wanted[rank // 2]).abs().max() < 1e-12
