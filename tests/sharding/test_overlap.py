# SPDX-License-Identifier: MIT
"""Collectives that start early and are waited for late: priced, verified, and the same numbers."""

import attrs
import pytest
import torch
from test_collective_counts import DEEPSEEK_V3, LAYOUTS
from tiny import BLOCK, conversation, tiny_of
from tiny_families import FAMILIES

from tokenspeed_core.models import compile_plan, family_of
from tokenspeed_core.sharding import Layout, Plan, VerificationError, explain, parse_mesh
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.machine import H100
from tokenspeed_core.sharding.overlap import hidden, overlap
from tokenspeed_core.sharding.program import Move
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import LockStep, Ranks, Simulation
from tokenspeed_core.sharding.verify import verify

EXPERTS = Layout(
    "tp=4", place={"j": "", "e": "tp", "f": ""}, types={"Hidden": "n@tp d", "Tokens": "n@tp d"}
)


def started(plan: Plan) -> list[Move]:
    codes = (*plan.program.blocks, plan.program.driver)
    return [s for code in codes for s in code.steps if isinstance(s, Move) and s.started]


def tiny_plan(tokens: int) -> Plan:
    """A tiny DeepSeek-V3; tokens are counted so high that everything is worth hiding."""
    model = tiny_of(FAMILIES["deepseek-v3"](), torch.float64, (12, 9))
    plan = compile_plan(model.family, model.config, EXPERTS, dtype=torch.float64, block_size=BLOCK)
    program = overlap(plan.program, tokens, H100)
    return attrs.evolve(plan, program=program, source=emit(program, "overlapped", plan.ops))


def test_the_routed_sum_goes_on_while_shared_experts_are_computed() -> None:
    family = family_of("DeepseekV3ForCausalLM")
    layout = LAYOUTS["dp8-tp8-ep64"]
    plan = compile_plan(
        family,
        family.config(DEEPSEEK_V3),
        layout,
        dtype=torch.bfloat16,
        block_size=16,
        tokens=64,
    )
    verify(plan.program)
    recheck(plan, plan.source)
    (move,) = started(plan)
    (code,) = (code for code in plan.program.blocks if move in code.steps)
    assert move.kind == "reduce_scatter"
    text = plan.source[plan.source.index(f"def {code.name}") :]
    start, wait = text.index("= c.start("), text.index("= c.wait(")
    assert "silu_mul_packed" in text[start:wait], "the shared expert is in between"
    assert hidden(move, code, plan.mesh, {"n": 64, "m": 64}, H100) > 10
    assert "starts here and goes on meanwhile" in explain(plan, tokens=64)
    plain = compile_plan(
        family, family.config(DEEPSEEK_V3), layout, dtype=torch.bfloat16, block_size=16
    )
    assert not started(plain), "who does not say how many tokens gets what he got"


def test_numbers_are_the_same_and_the_text_is_verified() -> None:
    model = tiny_of(FAMILIES["deepseek-v3"](), torch.float64, (12, 9))
    plain, early = tiny_plan(0), tiny_plan(1 << 24)
    assert started(early)
    verify(early.program)
    recheck(early, early.source)
    found = []
    for plan in (plain, early):
        for checked in (True, False):
            simulation = Simulation(plan, model.params, 17, checked)
            found.append([ours for ours, _ in conversation(model, simulation.step, 4)])
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            assert torch.equal(left, right)


def test_what_nobody_waited_for_is_not_read() -> None:
    plan = tiny_plan(1 << 24)
    lines = plan.source.splitlines(keepends=True)
    at = next(index for index, line in enumerate(lines) if "= c.wait(" in line)
    with pytest.raises((VerificationError, TypeError, AttributeError)):
        recheck(plan, "".join([*lines[:at], *lines[at + 1 :]]))
    twice = "".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    with pytest.raises(VerificationError, match="nothing to wait for"):
        recheck(plan, twice)


def test_a_start_of_what_has_no_two_halves_is_refused() -> None:
    plan = tiny_plan(1 << 24)
    (block,) = (code for code in plan.program.blocks if started(plan)[0] in code.steps)
    for kind in ("slice", "merge"):
        steps = tuple(
            attrs.evolve(step, kind=kind) if isinstance(step, Move) and step.started else step
            for step in block.steps
        )
        broken = attrs.evolve(block, steps=steps)
        blocks = tuple(broken if code is block else code for code in plan.program.blocks)
        with pytest.raises(VerificationError, match="started apart"):
            verify(attrs.evolve(plan.program, blocks=blocks))


def test_the_simulator_refuses_a_write_to_what_is_on_its_way() -> None:
    mesh = LockStep(parse_mesh("tp=2"))
    x = Ranks([torch.ones(2), torch.ones(2)])
    pending = mesh.start("all_reduce", x, "tp")
    x.parts[0].add_(1)
    with pytest.raises(VerificationError, match="written to while"):
        mesh.wait(pending)
