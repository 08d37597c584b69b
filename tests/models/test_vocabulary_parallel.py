# SPDX-License-Identifier: MIT
"""Tokens under a sharded vocabulary: those of one device, without gathering logits."""

import pytest
import torch
from tiny import BLOCK, batch_of, make_tiny
from torch import Tensor

from tokenspeed_core.models.family import compile_plan
from tokenspeed_core.models.sampling import Choice, sample, sampled_batch
from tokenspeed_core.ops.sampling import SamplingRows
from tokenspeed_core.sharding import Layout, Plan
from tokenspeed_core.sharding.cost import moves
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation

CHOICES = [Choice(), Choice(drawn=True), Choice(drawn=True, filtered=True, reported=True)]
TINY = make_tiny({})


def plan_of(layout: Layout, choice: Choice | None) -> Plan:
    return compile_plan(
        TINY.family,
        TINY.config,
        layout,
        dtype=torch.float32,
        block_size=BLOCK,
        choice=choice,
    )


def rows(choice: Choice, m: int) -> SamplingRows:
    """Every other row is drawn, each with parameters of its own."""
    drawn = torch.arange(m) % 2 * choice.drawn
    cut = drawn * choice.filtered
    return SamplingRows(
        temperature=drawn * 1.5,
        top_k=(cut * (torch.arange(m) % 9)).int(),
        top_p=1 - cut * 0.2,
        seed=torch.arange(m) * 7919 - 3,
        position=torch.arange(m).int(),
        logprobs=torch.full((m,), choice.reported),
    )


def stepped(layout: Layout, choice: Choice) -> tuple[Tensor, Tensor]:
    """Return (what the program chooses, what is sampled from the whole logits)."""
    requests = [(ids, 0, i) for i, ids in enumerate(TINY.tokens)]
    batch = batch_of(requests, every=True)
    asked = rows(choice, len(batch.logit_rows))
    logits = Simulation(plan_of(Layout(), None), TINY.params, 20).step(batch)
    found = Simulation(plan_of(layout, choice), TINY.params, 20).step(sampled_batch(batch, asked))
    return found, torch.stack(sample(logits, asked), -1)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("mesh", ["tp=1", "tp=2", "tp=4"])
def test_tokens_are_those_of_one_device(mesh: str, choice: Choice) -> None:
    found, expected = stepped(Layout(mesh), choice)
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    assert len(set(found[:, 0].tolist())) > 5
    torch.testing.assert_close(
        found[:, 1].float(), expected[:, 1], equal_nan=True, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_program_is_checked_from_its_text(choice: Choice) -> None:
    plan = plan_of(Layout("tp=4"), choice)
    recheck(plan, plan.source)
    wrong = plan.source.replace('"argmax")', '"max")')
    assert wrong != plan.source
    with pytest.raises(Exception, match="reduced by max"):
        recheck(plan, wrong)


@pytest.mark.parametrize(("choice", "count"), [(0, 1), (1, 1), (2, 12)])
def test_no_logits_travel(choice: int, count: int) -> None:
    """One pair a row; of a filtered row its digits' masses too, and of a reported one two sums."""
    every = [m for m, _ in moves(plan_of(Layout("tp=4"), CHOICES[choice]).program.driver)]
    rows = [m for m in every if m.operand.spec.names[0] == "m" and "d" not in m.operand.spec.names]
    assert {move.kind for move in rows} == {"all_reduce"}
    assert all("v" not in move.operand.spec.names for move in rows)
    assert len(rows) == count
