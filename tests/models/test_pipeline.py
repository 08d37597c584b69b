# SPDX-License-Identifier: MIT
"""Pipelines: programs cut between layers, each stage with its own layers' weights and caches."""

from pathlib import Path

import attrs
import pytest
import torch
from test_expert_parallel import tiny
from tiny import BLOCK, Tiny, apart, conversation
from tiny_families import FAMILIES

from tokenspeed_core.models import compile_plan
from tokenspeed_core.sharding import (
    AnnotationError,
    Layout,
    MeshError,
    Plan,
    VerificationError,
    explain,
)
from tokenspeed_core.sharding.layout_text import parse_layout, text_of
from tokenspeed_core.sharding.memory import memory
from tokenspeed_core.sharding.plan_cache import PlanCache
from tokenspeed_core.sharding.plan_table import PlanTable
from tokenspeed_core.sharding.program import Loop, Stage
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.verify_stages import verify_stages
from tokenspeed_core.sharding.way import Way

NUM_BLOCKS = 17
LAYOUTS = {
    "stages": "pp=2 tp=1; stages:pp",
    "stages-tp": "pp=2 tp=2; stages:pp",
    "tp-stages": "tp=2 pp=2; stages:pp",
    "stages-sp": "pp=2 tp=2; stages:pp; Hidden=n@tp d",
    "stages-requests": "dp=2 pp=2 tp=2; requests:dp stages:pp",
}


def plan_of(model: Tiny, layout: str) -> Plan:
    return compile_plan(
        model.family,
        model.config,
        parse_layout(layout),
        dtype=torch.float64,
        block_size=BLOCK,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3-next"])
def test_stages_together_are_one_device(family: str, layout: str) -> None:
    model, plan = tiny(family), plan_of(tiny(family), LAYOUTS[layout])
    one, many = (
        Simulation(each, model.params, NUM_BLOCKS) for each in (plan_of(model, "tp=1"), plan)
    )
    if plan.mesh.requests:
        pairs = list(apart(model, one.step, many.step))
    else:
        ours, others = (conversation(model, each.step, 4) for each in (one, many))
        pairs = [(left, right) for (left, _), (right, _) in zip(ours, others, strict=True)]
    for expected, got in pairs:
        assert (got - expected).abs().max() < 1e-12
    recheck(plan, plan.source)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_cut_without_a_change(family: str) -> None:
    model = tiny(family)
    whole, plan = plan_of(model, "tp=1"), plan_of(model, "pp=2 tp=1; stages:pp")
    names = [pack.name for part in plan.stages() for pack in part.storage]
    assert set(names) == {pack.name for pack in whole.storage}
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= {"inv_freq", "embed"}, "layers are on one stage only"
    assert sum(len(part.cache) for part in plan.stages()) == len(whole.cache)
    assert {part.hash for part in plan.stages()} == {plan.hash}


def refused(plan: Plan, *stages: Stage) -> str:
    with pytest.raises(VerificationError) as raised:
        verify_stages(attrs.evolve(plan.program, stages=stages))
    return str(raised.value)


def test_stages_that_do_not_make_the_program_are_refused() -> None:
    plan = plan_of(tiny("qwen3"), "pp=2 tp=2; stages:pp")
    first, last = plan.program.stages
    code = first.code
    swapped = attrs.evolve(code, results=code.results[::-1])
    assert "receives" in refused(plan, attrs.evolve(first, code=swapped), last)
    assert "begin or end" in refused(plan, last, first)
    assert "1 stages on 2 places" in refused(plan, last)
    assert "0 stages on 2 places" in refused(plan)
    skipped = [step for step in code.steps if not isinstance(step, Loop)]
    early = attrs.evolve(code, steps=tuple(skipped))
    assert "read before it is defined" in refused(plan, attrs.evolve(first, code=early), last)
    assert "caches from layer" in refused(
        plan, first, attrs.evolve(last, start=last.start - 1)
    ) or ("runs after" in refused(plan, first, attrs.evolve(last, start=last.start - 1)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('c.send("pp", residual, update)', 'c.send("pp", residual)', "are sent"),
        ('c.send("pp", residual, update)', "pass", "must receive once"),
        ("// 2, 32", ", 32", "comes as"),
        ('("float64", batch.tokens', '("float32", batch.tokens', "comes as"),
        ('c.publish("pp", logits_2)', "logits_2", "must receive once"),
        ("(stage_0, stage_1)", "(stage_0, stage_0)", "reads weight 'embed'"),
    ],
)
def test_an_edited_seam_is_refused(old: str, new: str, said: str) -> None:
    plan = plan_of(tiny("qwen3"), LAYOUTS["stages-sp"])
    assert old in plan.source
    with pytest.raises(VerificationError, match=said):
        recheck(plan, plan.source.replace(old, new))


def test_the_heaviest_stage_is_as_light_as_can_be() -> None:
    model = tiny("deepseek-v3")  # a dense layer, then mixtures
    plan = plan_of(model, "pp=2 tp=1; stages:pp")
    held = [memory(part, tokens={"n": 1, "m": 1}, blocks=1) for part in plan.stages()]
    weights = [sum(each.weights.values()) for each in held]
    whole = memory(plan, tokens={"n": 1, "m": 1}, blocks=1)
    assert sum(whole.weights.values()) == max(weights)
    assert "stage_1, the heaviest," in str(whole) or "stage_0, the heaviest," in str(whole)
    layers = [part.stop - part.start for part in plan.parts]
    assert sum(layers) == model.config.num_layers
    assert min(layers) >= 1


def test_a_carry_of_shards_sends_its_part_of_the_bytes() -> None:
    def sent(layout: str) -> str:
        text = explain(plan_of(tiny("qwen3"), layout), tokens=64)
        return next(line for line in text.splitlines() if line.startswith("stage_0: "))

    assert "n@tp d to stage_1: 16.38 KB" in sent("pp=2 tp=2; stages:pp; Hidden=n@tp d")
    assert "!tp to stage_1: 32.77 KB" in sent("pp=2 tp=2; stages:pp")


def test_pipelines_that_cannot_be_are_refused() -> None:
    with pytest.raises(MeshError, match=r"pipeline of 5 stages is longer than the model's 4"):
        plan_of(tiny("qwen3"), "pp=5 tp=1; stages:pp")
    with pytest.raises(AnnotationError, match=r"dim 'f' on pp, the axis of its pipeline"):
        Layout("pp=2 tp=2", place={"f": "tp+pp"}, stages="pp")
    with pytest.raises(AnnotationError, match="type Hidden on pp"):
        Layout("pp=2 tp=2", types={"Hidden": "n@pp d"}, stages="pp")
    with pytest.raises(MeshError, match="'pp' is not in mesh 'tp=2'"):
        Layout("tp=2", stages="pp")


def test_a_kept_plan_knows_its_stages(tmp_path: Path) -> None:
    plan, kept = plan_of(tiny("qwen3"), LAYOUTS["stages-tp"]), PlanCache(tmp_path)
    kept.put("0" * 64, PlanTable(starts=(0,), plans=(plan,), ways=(Way(),)))
    found = kept.get("0" * 64, plan.caches, plan.constants)
    assert found is not None
    assert (found.first.parts, found.hash) == (plan.parts, plan.hash)
    assert found.of_rank(3).first.storage == plan.of_rank(3).storage
    assert found.of_rank(3).hash == found.of_rank(0).hash == plan.hash, "stages of one program"


def test_a_pipeline_is_written_on_one_line() -> None:
    layout = parse_layout("dp=2 pp=2 tp=(kv=2,rep=2); k:kv g:rep requests:dp stages:pp; Hidden=n d")
    assert (layout.requests, layout.stages, layout.place["k"]) == ("dp", "pp", "kv")
    assert parse_layout(text_of(layout)) == layout
