# SPDX-License-Identifier: MIT
"""Real ranks whose decode steps run one plan and whose prefills run another: the same tokens."""

import random
from pathlib import Path

import attrs
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.engine.local_engine import LocalEngine, Request
from tests.engine.test_ranks import config, real_of
from tests.models.tiny import randomise
from tests.rank_processes import run_ranks
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.execution import execution
from tokenspeed_core.model_spec import ModelSpec
from tokenspeed_core.ops import Batch
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner

CHUNK = 512
ANSWER = 6
# Whole experts of two ranks, one active. Few rows are whole on both, experts' shares are summed.
# Many are sharded: each goes to the rank of its expert, and products are pipelined with the gathers
# of their rows.
LAYOUT = "tp=2; j: e:tp"
LONG = 501  # not even: ranks share it with one padded token


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE whose rows are wide enough that 512 of them are worth a choice."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(3)
    shape = Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_experts=8,
        num_experts_per_tok=1,
        max_position_embeddings=1024,
    )
    model = AutoModelForCausalLM.from_config(shape).eval().float()
    randomise(model)
    model.save_pretrained(path)
    return path


def settings(model: Path, **changes: object) -> EngineConfig:
    engine = attrs.evolve(config(model), max_step_tokens=CHUNK, num_blocks=300)
    return attrs.evolve(engine, **changes)  # type: ignore[arg-type]


def two_ranks(model: Path) -> EngineConfig:
    """Two ranks, priced as if a network joined them: cores that copy can hide nothing."""
    return settings(model, layout=LAYOUT, link="ethernet-100g")


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(96) for _ in range(n)] for n in (3, LONG)]


def answers(runner: Runner) -> list[list[int]]:
    executor = execution(runner, CHUNK)(None)
    engine = LocalEngine(runner, max_step_tokens=CHUNK, executor=executor)
    found = []
    for prompt in prompts():  # one after the other: steps of few tokens, then of many
        found.append(engine.submit(Request(prompt, ANSWER)))
        engine.run()
    return [each.tokens for each in found]


def run_rank(rank: int, model: Path, path: str) -> None:
    torch.set_num_threads(1)
    runner = load_rank(two_ranks(model), rank, f"file://{path}/meet")
    assert runner._chosen is not None
    chosen, taken = runner._chosen, []

    def noted(how: object) -> tuple[object, ...]:
        def note(index: int, forward: object) -> object:
            def run(c: object, w: object, caches: object, batch: Batch) -> object:
                taken.append((len(batch.tokens), index))
                return forward(c, w, caches, batch)  # type: ignore[operator]

            return run

        return tuple(note(*each) for each in enumerate(chosen(how)))  # type: ignore[arg-type]

    found = answers(attrs.evolve(runner, chosen=noted))
    torch.save((found, taken), f"{path}/{rank}")
    runner.ranks.leave()


def test_a_prefill_runs_another_plan_than_decode_steps(wide: Path, tmp_path: Path) -> None:
    run_ranks(run_rank, 2, wide, str(tmp_path))
    (found, taken), other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert (found, taken) == other, "ranks run one plan, step by step"
    assert found == answers(load_rank(settings(wide), 0, ""))
    plans = ModelSpec.of(two_ranks(wide)).plans()
    decode, prefill = plans.first, plans.plans[plans.index(CHUNK)]
    assert {tokens for tokens, index in taken if index == plans.index(CHUNK)} == {LONG + 1}
    assert {index for tokens, index in taken if tokens < 16} == {0}
    assert 1 in {tokens for tokens, _ in taken}, "whole rows need no padding"
    for call in ("c.dispatch(", "c.combine(", "all_gather_linear("):
        assert call in prefill.source
        assert call not in decode.source
    assert "c.reduce_scatter(" not in decode.source


def test_an_engine_serves_the_tokens_of_one_rank(wide: Path) -> None:
    expected = answers(load_rank(settings(wide), 0, ""))
    assert real_of(two_ranks(wide), prompts(), ANSWER) == expected


def test_ranks_that_copy_with_their_own_cores_start_nothing_early(wide: Path) -> None:
    """A chunk would travel by the cores that multiply the other."""
    plans = ModelSpec.of(attrs.evolve(two_ranks(wide), link="")).plans()
    assert all("all_gather_linear(" not in plan.source for plan in plans.plans)
    assert all("c.start(" not in plan.source for plan in plans.plans)
