# SPDX-License-Identifier: MIT
"""Log-probabilities of alternatives and of prompts, SmolLM2's against transformers."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.frontend.conftest import served
from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.checkpoint import open_checkpoint
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
from tokenspeed_core.sampling_params import SamplingError, SamplingParams

MODEL = "smollm2"
PROMPT = "The capital of France is Paris. The capital of Italy is" * 3
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = EngineConfig(
        model=MODEL,
        dtype="fp32",
        num_blocks=700,
        max_model_len=8192,
        threads=1,
        max_running=16,
        max_step_tokens=16,  # a prompt takes several steps
    )
    with Engine.start(config) as engine:
        engine.wait_ready(120)
        yield engine


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> LlamaForCausalLM:
    with open_checkpoint(smollm2) as checkpoint:
        model = LlamaForCausalLM(LlamaConfig(**checkpoint.config)).eval()
        weights = {name: checkpoint.read(name) for name in checkpoint.names}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.float()


@pytest.fixture
async def client(engine: Engine, codec: TextCodec) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        served(engine.run.path, codec) as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def scores(oracle: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Return log-probabilities [t, v] of what follows each token."""
    with torch.inference_mode():
        return oracle(torch.tensor([ids])).logits[0].log_softmax(-1)


async def test_alternatives_whole_and_streamed(
    client: openai.AsyncOpenAI, codec: TextCodec, oracle: LlamaForCausalLM
) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name a colour."}],
        "max_tokens": 8,
        "temperature": 0.9,
        "seed": 4,
        "logprobs": True,
        "top_logprobs": 5,
        "extra_body": {"return_token_ids": True, "presence_penalty": 0.5},
    }
    whole = await client.chat.completions.create(**asked)
    choice = whole.choices[0]
    ids = [*whole.prompt_token_ids, *choice.token_ids]
    every = scores(oracle, ids)
    start = len(whole.prompt_token_ids)
    assert len(choice.logprobs.content) == len(choice.token_ids)
    for place, entry in enumerate(choice.logprobs.content, start - 1):
        values, tops = every[place].topk(5)
        assert entry.logprob == pytest.approx(float(every[place, ids[place + 1]]), abs=TOLERANCE)
        told = [top.logprob for top in entry.top_logprobs]
        assert told == pytest.approx(values.tolist(), abs=TOLERANCE)
        assert entry.top_logprobs[0].token == codec.table.text(int(tops[0]))
    pieces = []
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            pieces += chunk.choices[0].logprobs.content
    assert pieces == choice.logprobs.content


async def test_an_echo_is_scored_token_by_token(
    client: openai.AsyncOpenAI, codec: TextCodec, oracle: LlamaForCausalLM
) -> None:
    ids = codec.tokenizer.encode(PROMPT)
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "echo": True
    }  # fmt: skip
    for _ in range(2):  # what is cached is scored all the same
        answer = await client.completions.create(**asked, logprobs=2)
        told = answer.choices[0].logprobs
        assert answer.choices[0].text.startswith(PROMPT)
        assert told.tokens[: len(ids)] == [codec.table.text(id) for id in ids]
        assert "".join(told.tokens) == answer.choices[0].text
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        every = scores(oracle, ids)
        want = [float(every[place, id]) for place, id in enumerate(ids[1:])]
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(want, abs=TOLERANCE)
        assert len(told.token_logprobs) == len(ids) + 3
        for place, row in enumerate(told.top_logprobs[1 : len(ids)]):
            assert max(row.values()) == pytest.approx(float(every[place].max()), abs=TOLERANCE)
            assert told.tokens[place + 1] in row
    parts = [
        chunk async for chunk in await client.completions.create(**asked, logprobs=2, stream=True)
    ]
    streamed = [x for part in parts for x in part.choices[0].logprobs.token_logprobs]
    assert streamed[1:] == pytest.approx(told.token_logprobs[1:], abs=TOLERANCE)


async def test_prompts_as_vllm_tells_them(
    client: openai.AsyncOpenAI, codec: TextCodec, oracle: LlamaForCausalLM
) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    ids = codec.tokenizer.encode(PROMPT)
    every = scores(oracle, ids)
    told = answer.choices[0].prompt_logprobs
    assert (told[0], len(told)) == (None, len(ids))
    for place, row in enumerate(told[1:]):
        own = row[str(ids[place + 1])]
        assert own["logprob"] == pytest.approx(float(every[place, ids[place + 1]]), abs=TOLERANCE)
        assert own["rank"] >= 1
        assert row[str(int(every[place].argmax()))]["rank"] == 1
    chat = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0, "return_token_ids": True},
    )
    assert len(chat.prompt_logprobs) == len(chat.prompt_token_ids)
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
        await client.completions.create(
            model=MODEL, prompt="x", stream=True, extra_body={"prompt_logprobs": 1}
        )


async def test_bounds_are_named(engine: Engine, codec: TextCodec) -> None:
    async with AsyncLLM(MODEL, run_dir=engine.run.path, codec=codec) as llm:
        with pytest.raises(SamplingError, match="4096"):
            await llm.generate([5] * 5000, SamplingParams(prompt_logprobs=0, max_tokens=1))
        with pytest.raises(SamplingError, match="top_logprobs"):
            SamplingParams(top_logprobs=21)


async def test_many_distinct_tokens_can_be_penalised(engine: Engine, codec: TextCodec) -> None:
    async with AsyncLLM(MODEL, run_dir=engine.run.path, codec=codec) as llm:
        params = SamplingParams(repetition_penalty=1.2, max_tokens=1)
        answer = await llm.generate(list(range(100, 500)), params)
        assert len(answer.token_ids) == 1
