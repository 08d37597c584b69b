# SPDX-License-Identifier: MIT
"""Real ranks over gloo, and simulated ones, against one rank: the same greedy tokens."""

import asyncio
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.local_engine import LocalEngine, Request
from tokenspeed_core.checkpoint import open_checkpoint
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.ipc.messages import Sampling
from tokenspeed_core.launch import Engine
from tokenspeed_core.model_spec import ModelSpec
from tokenspeed_core.rank import load_rank
from tokenspeed_core.sdk import Client
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.slots import Step

SMOLLM2_PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 30, 2, 198, 1, 4093, 198]


def config(model: Path, tp: int = 1) -> EngineConfig:
    return EngineConfig(
        model=str(model), tp=tp, dtype="fp32", num_blocks=200, max_running=8, max_step_tokens=32
    )


def tiny_prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(96) for _ in range(n)] for n in (1, 7, 40, 75)]


def local(model: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy tokens of one rank."""
    engine = LocalEngine(load_rank(config(model), 0, ""), max_step_tokens=32)
    found = [engine.submit(Request(prompt, max_tokens)) for prompt in prompts]
    engine.run()
    return [each.tokens for each in found]


def real(model: Path, tp: int, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy tokens of tp processes."""
    return real_of(config(model, tp), prompts, max_tokens)


def real_of(settings: EngineConfig, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy tokens of the processes of an engine."""

    async def answers(engine: Engine) -> list[list[int]]:
        async with Client(engine.run.path) as client:

            async def one(prompt: list[int]) -> list[int]:
                tokens: list[int] = []
                async for delta in client.generate(
                    prompt, max_tokens=max_tokens, sampling=Sampling()
                ):
                    tokens += delta.tokens
                return tokens

            return list(await asyncio.gather(*map(one, prompts)))

    with Engine.start(settings) as engine:
        engine.wait_ready(120)
        return asyncio.run(answers(engine))


class SimulatedEngine(LocalEngine):
    """The local engine, its one rank replaced by a simulated mesh."""

    def __init__(self, model: Path, tp: int) -> None:
        super().__init__(load_rank(config(model), 0, ""), max_step_tokens=32)
        spec = ModelSpec.of(config(model, tp))
        sizes = {name: size for name, size in spec.config.sizes().items() if size}
        params: dict[str, Tensor] = dict(spec.family.derived(spec.config))
        with open_checkpoint(spec.path) as checkpoint:
            for path, source in spec.family.hf(spec.config).items():
                params[path] = source.among(checkpoint.names).whole(checkpoint.read, sizes)
        self._simulation = Simulation(spec.plan(), params, self.runner.num_blocks)

    @torch.inference_mode()
    def _logits(self, step: Step) -> Tensor:
        return self._simulation.step(step.batch)


@pytest.mark.parametrize("tp", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_real_and_simulated_ranks_of_a_tiny_model(tiny_llama: Path, tp: int) -> None:
    prompts = tiny_prompts()
    expected = local(tiny_llama, prompts, 24)
    assert real(tiny_llama, tp, prompts, 24) == expected
    engine = SimulatedEngine(tiny_llama, tp)
    found = [engine.submit(Request(prompt, 24)) for prompt in prompts]
    engine.run()
    assert [each.tokens for each in found] == expected


def test_three_real_ranks_of_smollm2(smollm2: Path) -> None:
    prompts = [SMOLLM2_PROMPT, SMOLLM2_PROMPT[:7]]
    assert real(smollm2, 3, prompts, 12) == local(smollm2, prompts, 12)
