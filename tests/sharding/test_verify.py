# SPDX-License-Identifier: MIT
"""Mutations of programs: every wrong collective is refused, or gives a visibly wrong number."""

import re
from collections.abc import Iterator

import attrs
import pytest
import torch
from mutants import mutants, rebuilt, refused, renamed
from tiny import BLOCK, CASES, LAYOUTS, Tiny, conversation, make_tiny

from tokenspeed_core.models import compile_plan
from tokenspeed_core.sharding import Plan, VerificationError
from tokenspeed_core.sharding.program import Code, Loop, Move, Program
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.spec import Spec
from tokenspeed_core.sharding.verify import verify

PARALLEL = [name for name in LAYOUTS if name != "tp1"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny({**CASES["gqa"], "num_hidden_layers": 2}, torch.float64)


def plan_of(tiny: Tiny, layout: str) -> Plan:
    return compile_plan(
        tiny.family, tiny.config, LAYOUTS[layout], dtype=torch.float64, block_size=BLOCK
    )


@pytest.mark.parametrize("layout", PARALLEL)
def test_every_mutant_is_refused(tiny: Tiny, layout: str) -> None:
    program = plan_of(tiny, layout).program
    verify(program)
    found = list(mutants(program))
    assert len(found) > 40
    for label, mutant in found:
        assert refused(mutant), label


def retyped(program: Program, code: Code, index: int, spec: Spec) -> Program:
    """Return the program with a wrong claim about one step's first result, taken over by users."""
    step = code.steps[index]
    old = step.results[0]
    new = attrs.evolve(old, spec=spec)
    steps = [renamed(each, old, new) for each in code.steps]
    return rebuilt(program, code, steps, renamed(code.results, old, new))


@pytest.mark.parametrize("layout", PARALLEL)
def test_a_forged_placement_is_refused(tiny: Tiny, layout: str) -> None:
    program = plan_of(tiny, layout).program
    forged = 0
    for code in (*program.blocks, program.driver):
        for index, step in enumerate(code.steps):
            spec = step.results[0].spec
            if isinstance(step, Loop) or not spec.axes:
                continue
            claim = attrs.evolve(spec.sharded({}), partial=(), reduce="sum")
            with pytest.raises(VerificationError):
                verify(retyped(program, code, index, claim))
            forged += 1
    assert forged > 5


LINE = re.compile(r"^( +)(\w+) = c\.(\w+)\((\w+), (.*)\)(  #.*)?$")


def source_mutants(source: str) -> Iterator[tuple[str, str]]:
    """Yield emitted programs with one collective's line dropped or repeated."""
    lines = source.splitlines()
    for index, line in enumerate(lines):
        found = LINE.match(line)
        if not found:
            continue
        indent, result, kind, operand, rest, _ = found.groups()
        dropped = f"{indent}{result} = {operand}"
        twice = f"{line}\n{indent}{result} = c.{kind}({result}, {rest})"
        for label, text in (("drop", dropped), ("repeat", twice)):
            yield f"{label}: {line.strip()}", "\n".join([*lines[:index], text, *lines[index + 1 :]])


@pytest.mark.parametrize("layout", PARALLEL)
def test_a_mutated_file_gives_a_wrong_number_or_none(tiny: Tiny, layout: str) -> None:
    """The simulator alone, which knows no types, also sees each mutation of the emitted text."""
    plan = plan_of(tiny, layout)

    def logits(candidate: Plan) -> list[torch.Tensor]:
        simulation = Simulation(candidate, tiny.params, 17, checked=False)
        return [ours for ours, _ in conversation(tiny, simulation.step, plan.mesh.num_ranks)]

    expected = logits(plan)
    found = list(source_mutants(plan.source))
    assert len(found) >= 6
    for label, source in found:
        try:
            got = logits(attrs.evolve(plan, source=source))
        except (VerificationError, RuntimeError, ValueError, IndexError):
            continue  # shapes or ranks disagree: seen as well
        worst = max(
            float((a - b).abs().max()) if a.shape == b.shape else 1.0
            for a, b in zip(got, expected, strict=True)
        )
        assert worst > 1e-6, f"not seen: {label}"


def test_reading_a_donated_cache_is_refused(tiny: Tiny) -> None:
    program = plan_of(tiny, "tp2").program
    (block,) = program.blocks
    stale = attrs.evolve(block, cache_results=block.cache)
    with pytest.raises(VerificationError, match="donated"):
        verify(attrs.evolve(program, blocks=(stale,)))


def test_two_step_reductions_are_refused(tiny: Tiny) -> None:
    """Reducing over one factor, then another, gives ranks different bits."""
    program = plan_of(tiny, "factored").program
    (block,) = program.blocks
    index, move = next(
        (i, s) for i, s in enumerate(block.steps) if isinstance(s, Move) and len(s.axes) == 2
    )
    first, second = move.axes
    middle = attrs.evolve(
        move.operand, name="middle", spec=attrs.evolve(move.operand.spec, partial=(second,))
    )
    steps = [
        *block.steps[:index],
        attrs.evolve(move, axes=(first,), result=middle),
        attrs.evolve(move, axes=(second,), operand=middle),
        *block.steps[index + 1 :],
    ]
    with pytest.raises(VerificationError, match="two steps"):
        verify(rebuilt(program, block, steps, block.results))
