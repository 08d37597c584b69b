# SPDX-License-Identifier: MIT
"""SmolLM2 on our engine against transformers, both in float32."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine.local_engine import LocalEngine, Request
from tokenspeed_core.checkpoint import open_checkpoint
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.model_source import ModelSource
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner
from tokenspeed_core.slots import Step
from tokenspeed_core.tokenizer import Tokenizer

PROMPTS = [
    "The capital of France is",
    "What is a prefix cache?",
    "def fibonacci(n):\n",
    "Once upon a time, in a land far away,",
    "1, 1, 2, 3, 5, 8,",
    "Les enfants jouent dans le jardin",
    "日本語のテキスト",
    "SELECT name FROM users WHERE",
    "The three laws of robotics are:",
    '{"name": "Ada", "age":',
    "Q: Why is the sky blue?\nA:",
    "🙂🙃 emoji and \t tabs",
    "In 1969, humans first",
    "Dear Sir or Madam,\n\nI am writing to",
    "x",
    "Water boils at 100 degrees. " * 20,
]
ALONE = (6, 15)


@pytest.fixture(scope="module")
def runner(smollm2: Path) -> Runner:
    config = EngineConfig(model=str(smollm2), dtype="fp32", num_blocks=600)
    return load_rank(config, 0, "")


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> LlamaForCausalLM:
    with open_checkpoint(smollm2) as checkpoint:
        model = LlamaForCausalLM(LlamaConfig(**checkpoint.config)).eval()
        weights = {name: checkpoint.read(name) for name in checkpoint.names}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    model.tie_weights()
    return model.float()


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = Tokenizer.load(ModelSource("gguf", smollm2))
    return [tokenizer.encode(text) for text in PROMPTS]


class LogitsEngine(LocalEngine):
    """Keeps the logits of every sampled token."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, prefix_caching=False)
        self.logits: list[torch.Tensor] = []

    def _logits(self, step: Step) -> torch.Tensor:
        self.logits.append(super()._logits(step))
        return self.logits[-1]


@pytest.fixture(scope="module")
def together(runner: Runner, prompts: list[list[int]]) -> list[list[int]]:
    """64 greedy tokens of each prompt, run as one batch."""
    engine = LocalEngine(runner)
    found = [engine.submit(Request(prompt, max_tokens=64)) for prompt in prompts]
    engine.run()
    return [outcome.tokens for outcome in found]


@pytest.fixture(scope="module")
def alone(runner: Runner, prompts: list[list[int]]) -> dict[int, tuple[list[int], torch.Tensor]]:
    """64 greedy tokens of some prompts, each run by itself, and their logits [64, v]."""
    found = {}
    for index in ALONE:
        engine = LogitsEngine(runner)
        outcome = engine.submit(Request(prompts[index], max_tokens=64))
        engine.run()
        # Steps planned ahead of the end are not ours to keep.
        found[index] = (outcome.tokens, torch.cat(engine.logits)[:64])
    return found


def test_greedy_tokens_and_logits(
    oracle: LlamaForCausalLM,
    prompts: list[list[int]],
    together: list[list[int]],
    alone: dict[int, tuple[list[int], torch.Tensor]],
) -> None:
    worst = 0.0
    for index, (prompt, tokens) in enumerate(zip(prompts, together, strict=True)):
        # Forced along our tokens, the oracle picks each of them: so it would have generated them.
        with torch.inference_mode():
            forced = torch.tensor([[*prompt, *tokens[:-1]]])
            expected = oracle(forced).logits[0, len(prompt) - 1 :]
        assert tokens == expected.argmax(-1).tolist()
        if index in alone:
            worst = max(worst, (alone[index][1] - expected).abs().max().item())
    print(f"largest difference of logits over {len(alone)} prompts x 64 tokens: {worst:.2e}")
    assert worst <= 1e-3


def test_a_batch_of_all_prompts_gives_the_same_tokens(
    together: list[list[int]], alone: dict[int, tuple[list[int], torch.Tensor]]
) -> None:
    for index, (tokens, _) in alone.items():
        assert together[index] == tokens
