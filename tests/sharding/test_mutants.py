# SPDX-License-Identifier: MIT
"""Two thousand mutants of compiled families: each is refused, or computes the same numbers."""

from collections import Counter

import attrs
import pytest
import torch
from mutants import mutants, refused
from tiny import BLOCK, conversation, tiny_of
from tiny_families import CASES as EVERY
from tiny_families import FAMILIES, layouts

from tokenspeed_core.models import compile_plan
from tokenspeed_core.sharding import Plan
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.simulate import Simulation

CASES = [
    ("qwen3", "factored-sp"),
    ("qwen3-moe", "experts2-sp"),
    ("gpt-oss", "experts-by-both"),
    ("gpt-oss", "factored-sp"),
    ("minimax-m2", "factored-sp"),
    ("deepseek-v3", "sp4"),
    ("deepseek-v3", "experts2-sp"),
    ("qwen3-next", "factored-sp"),
]


def survivors(family: str, layout: str) -> tuple[int, list[str]]:
    """Return how many mutants a program has, and which of them compute other numbers unseen."""
    model = tiny_of(FAMILIES[family](), torch.float64, (12,))
    plan = compile_plan(
        model.family, model.config, layouts(family)[layout], dtype=torch.float64, block_size=BLOCK
    )

    def logits(candidate: Plan) -> list[torch.Tensor]:
        simulation = Simulation(candidate, model.params, 17)
        return [ours for ours, _ in conversation(model, simulation.step, 4)]

    count, wrong = 0, []
    expected: list[torch.Tensor] = []
    for label, mutant in mutants(plan.program):
        count += 1
        if not refused(mutant):
            expected = expected or logits(plan)
            got = logits(attrs.evolve(plan, program=mutant, source=emit(mutant, label, plan.ops)))
            if any((a - b).abs().max() > 1e-12 for a, b in zip(got, expected, strict=True)):
                wrong.append(f"{family} {layout}: {label}")
    return count, wrong


def hunted(cases: list[tuple[str, str]]) -> int:
    found: Counter[str] = Counter()
    unseen: list[str] = []
    for family, layout in cases:
        count, wrong = survivors(family, layout)
        found[family] += count
        unseen += wrong
    print(f"{found.total()} mutants, {len(unseen)} unseen: {dict(found)}")
    assert not unseen, "\n".join(unseen)
    return found.total()


def test_two_thousand_mutants_are_seen() -> None:
    assert hunted(CASES) >= 2000


@pytest.mark.soak
def test_mutants_of_every_family_and_layout_are_seen() -> None:
    assert hunted(EVERY) >= 5_000
