# SPDX-License-Identifier: MIT
"""Checkpoints of every family, as transformers saves them, on our engine against transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.local_engine import LocalEngine, Request
from tests.engine.test_ranks import config, local, real, tiny_prompts
from tests.models.tiny import randomise
from tests.models.tiny_families import FAMILIES
from tokenspeed_core.rank import load_rank

SERVED = ["qwen3", "qwen3-moe", "deepseek-v3", "qwen3-next"]  # by real processes too


def saved(path: Path, family: str) -> AutoModelForCausalLM:
    """Write a random checkpoint of a family and return the model."""
    torch.manual_seed(11)
    tiny = FAMILIES[family]()
    tiny._attn_implementation = tiny._experts_implementation = "eager"
    oracle = AutoModelForCausalLM.from_config(tiny).eval().float()
    randomise(oracle)
    oracle.save_pretrained(path)
    return oracle


def expected(oracle: AutoModelForCausalLM, prompt: list[int], tokens: list[int]) -> list[int]:
    """Return what the oracle picks at each step along `tokens`: equal to them if it is greedy."""
    with torch.inference_mode():
        logits = oracle(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    return logits.argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    oracle = saved(tmp_path, family)
    prompts = tiny_prompts()
    engine = LocalEngine(load_rank(config(tmp_path), 0, ""), max_step_tokens=32)
    found = [engine.submit(Request(prompt, 24)) for prompt in prompts]
    engine.run()
    for prompt, outcome in zip(prompts, found, strict=True):
        assert len(outcome.tokens) == 24
        assert outcome.tokens == expected(oracle, prompt, outcome.tokens)


@pytest.mark.parametrize("family", SERVED)
def test_real_ranks_give_the_same_tokens(tmp_path: Path, family: str) -> None:
    saved(tmp_path, family)
    prompts = tiny_prompts()
    assert real(tmp_path, 2, prompts, 24) == local(tmp_path, prompts, 24)
