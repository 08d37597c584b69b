# SPDX-License-Identifier: MIT
"""Plans for a target that computes several ops in one call: five calls a dense layer, same bits."""

import re
from collections.abc import Iterator
from functools import cache

import attrs
import pytest
import torch
from tiny import BLOCK, CASES, LAYOUTS, Tiny, batch_of, conversation, make_tiny, tiny_of
from tiny_families import FAMILIES, layouts

from tokenspeed_core.models import compile_plan
from tokenspeed_core.ops import (
    WindowKV,
    composites_on,
    paged_attention,
    rope,
    rope_attention,
    split,
)
from tokenspeed_core.sharding import Layout, Plan, VerificationError
from tokenspeed_core.sharding.composite import FORMS
from tokenspeed_core.sharding.explain import explain, step_sizes
from tokenspeed_core.sharding.memory import memory
from tokenspeed_core.sharding.program import Code, Composite, Program, Project
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.verify import verify

FIVE = ["norm_linear", "rope_attention", "linear_add", "norm_gate_up", "linear_add"]
NUM_BLOCKS = 17


@cache
def model(name: str) -> Tiny:
    if name == "llama":
        return make_tiny(CASES["gqa"], torch.float64)
    return tiny_of(FAMILIES[name](), torch.float64, (17, 11))


def plan_of(name: str, layout: Layout, composites: bool = True) -> Plan:
    tiny = model(name)
    return compile_plan(
        tiny.family,
        tiny.config,
        layout,
        dtype=torch.float64,
        block_size=BLOCK,
        composites=FORMS if composites else (),
    )


@pytest.mark.parametrize("name", ["llama", *FAMILIES])
def test_projections_of_one_activation_are_one_product(name: str) -> None:
    """So one weight over a direct sum, in the place of several, would save no product."""
    for block in plan_of(name, Layout(), composites=False).program.blocks:
        read = [step.operands[0] for step in block.steps if isinstance(step, Project)]
        assert read
        assert len(read) == len(set(read))


def cases() -> Iterator[tuple[str, Layout]]:
    for name in ("llama", *FAMILIES):
        known = LAYOUTS if name == "llama" else layouts(name)
        yield name, Layout()
        yield name, known["tp2"]
        yield name, next(known[mesh] for mesh in ("sp2", "sp4", "dp-tp") if mesh in known)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_dense_layer_is_five_calls(name: str) -> None:
    plan = plan_of(name, Layout())
    for code in plan.program.blocks:
        _, _, after = plan.source.partition(f"def {code.name}(")
        body = after.partition("\ndef ")[0]
        calls = re.findall(r"^    [^#\n]*? = (\w+)\(", body, re.MULTILINE)
        assert calls == FIVE
        assert len(code.carry) == 1, "layers hand on one sum"
    assert "add_rms_norm" not in plan.source


@pytest.mark.parametrize(("name", "layout"), list(cases()), ids=lambda value: str(value)[:40])
def test_composites_change_no_bit(name: str, layout: Layout) -> None:
    """What each is made of is checked again from the text; then both programs run on a mesh."""
    runs = []
    for composites in (False, True):
        plan = plan_of(name, layout, composites)
        simulation = Simulation(plan, model(name).params, NUM_BLOCKS)
        runs.append(conversation(model(name), simulation.step, plan.mesh.num_ranks))
    recheck(plan, plan.source)
    for (plain, _), (composed, _) in zip(*runs, strict=True):
        assert torch.equal(plain, composed)


def test_a_sum_is_not_carried_where_one_is_owed() -> None:
    (code,) = plan_of("llama", LAYOUTS["tp2"]).program.blocks
    assert len(code.carry) == 2
    calls = [each.name for each in code.composites]
    assert sorted(calls) == [
        *["all_reduce_add"] * 2, "norm_gate_up", "norm_linear", "rope_attention",
    ]  # fmt: skip


def test_a_layer_with_experts_is_four_calls() -> None:
    plan = plan_of("qwen3-moe", Layout())
    for code in plan.program.blocks:
        assert len(code.carry) == 1
    names = [each.name for code in plan.program.blocks for each in code.composites]
    assert names.count("norm_moe_add") == 1
    assert names.count("norm_gate_up") == 1


def test_under_sequence_parallelism_products_gather_and_scatter() -> None:
    (code,) = plan_of("llama", LAYOUTS["sp2"]).program.blocks
    calls = [each.name for each in code.composites]
    assert calls.count("all_gather_linear") + calls.count("linear_reduce_scatter") == 4


def test_explain_shows_what_a_call_computes() -> None:
    text = explain(plan_of("qwen3", Layout()))
    at = text.index("rope_attention: one call")
    inside = text[at : text.index("linear_add: one call", at)]
    parts = ["rms_norm", "rms_norm", "rope", "rope", "paged_attention"]
    assert re.findall(r"= (\w+)\(", inside) == parts


def forged(program: Program, code: Code, composites: tuple[Composite, ...]) -> Program:
    changed = attrs.evolve(code, composites=composites)
    return attrs.evolve(program, driver=changed)


def test_a_forged_composite_is_refused() -> None:
    """On the driver: a part too few, too many, of another op, twice, or read elsewhere."""
    program = plan_of("llama", Layout()).program
    (head,) = program.driver.composites
    norm, project = head.parts
    wrong = [
        (attrs.evolve(head, parts=(project,)),),
        (attrs.evolve(head, parts=(norm, norm, project)),),
        (attrs.evolve(head, parts=(project, norm)),),
        (attrs.evolve(head, name="linear_add"),),
        (attrs.evolve(head, name="no_such_op"),),
        (head, head),
    ]
    verify(program)
    for composites in wrong:
        with pytest.raises(VerificationError):
            verify(forged(program, program.driver, composites))
    code = program.driver
    leaking = attrs.evolve(code, results=(*code.results, norm.results[0]))
    with pytest.raises(VerificationError, match="another step reads"):
        verify(attrs.evolve(program, driver=leaking))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('norm_linear(residual_1, w["attn_norm"]', 'norm_linear(residual_1, w["attn.wo"]'),
        ('linear_add(q_2.flatten(1), w["attn.wo"]', 'linear_add(q_2.flatten(1), w["mlp.w_down"]'),
        ("norm_gate_up(residual_2", "norm_linear(residual_2"),
        ("rope_attention(q_k_v, None, None, cos", "rope_attention(residual_1, None, None, cos"),
    ],
)
def test_a_wrong_call_is_refused_from_its_text(before: str, after: str) -> None:
    plan = plan_of("llama", Layout())
    assert before in plan.source
    with pytest.raises(VerificationError):
        recheck(plan, plan.source.replace(before, after, 1))


def test_a_call_without_its_reduction_is_refused_from_its_text() -> None:
    plan = plan_of("llama", LAYOUTS["tp2"])
    call = re.compile(r"all_reduce_add\(c, \"tp\", (\w+), (\w+)\)")
    dropped = call.sub(r"(\2 + \1)", plan.source, count=1)
    assert dropped != plan.source
    with pytest.raises(VerificationError):
        recheck(plan, dropped)


def test_a_composite_holds_nothing_between_its_parts() -> None:
    """A step of 64 tokens keeps neither the norms nor gate and up of a layer."""
    held = [
        memory(plan_of("llama", Layout(), each), tokens=step_sizes(64, 1), blocks=2).activations
        for each in (False, True)
    ]
    assert held[1] < held[0]


def test_a_windowed_layer_reads_its_own_blocks() -> None:
    """Their columns of the batch are not those of layers that keep everything."""
    torch.manual_seed(4)
    empty = torch.zeros(9, 2, BLOCK, 8)
    kind = WindowKV(k=empty, v=empty.clone(), span=4)
    own = attrs.evolve(kind, k=kind.k.clone(), v=kind.v.clone())
    plain = batch_of([(torch.arange(6), 0, 0)])
    batch = attrs.evolve(
        plain, window_slots=plain.cache_slots + 2 * BLOCK, window_tables=plain.block_tables + 2
    )
    qkv, cos, sin = torch.randn(6, 8 * 8), torch.rand(6, 8), torch.rand(6, 8)
    q, k, v = split(qkv, (2, 2, 8), (2, 8), (2, 8))
    want, _ = paged_attention(rope(q, cos, sin), rope(k, cos, sin), v, kind, batch, 0.3, 4)
    got, _ = rope_attention(qkv, None, None, cos, sin, own, batch, 0.3, 4, 0.0)
    assert torch.equal(got, want)
    assert torch.equal(own.k, kind.k)
    assert own.k[3].any()
    assert not own.k[1].any()


def test_the_cpu_offers_none() -> None:
    """Its kernels are those of the parts."""
    assert composites_on("cpu", torch.bfloat16) == frozenset()
