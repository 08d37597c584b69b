# SPDX-License-Identifier: MIT
"""Real ranks under layouts other than plain tensor parallelism: the greedy tokens of one rank."""

import asyncio
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from tests.engine.local_engine import LocalEngine, Request
from tests.engine.test_families import saved
from tests.engine.test_ranks import config, local, real_of, tiny_prompts
from tokenspeed_core.config import ConfigError, EngineConfig
from tokenspeed_core.ipc.messages import Sampling
from tokenspeed_core.ipc.shaping import Shaping
from tokenspeed_core.launch import Engine
from tokenspeed_core.model_spec import ModelSpec, ModelSpecError
from tokenspeed_core.rank import load_rank
from tokenspeed_core.sdk import Client

LAYOUTS = {
    "sequence": "tp=2; Hidden=n@tp d",
    "slots-of-the-cache": "tp=1 cp=2; s:cp",
    "pipeline": "pp=2 tp=1; stages:pp",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_serves_the_tokens_of_one_rank(tiny_llama: Path, layout: str) -> None:
    prompts = tiny_prompts()
    engine = attrs.evolve(config(tiny_llama), layout=layout)
    assert engine.num_ranks == 2
    assert real_of(engine, prompts, 12) == local(tiny_llama, prompts, 12)


def test_whole_experts_of_two_ranks(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3-moe")
    prompts = tiny_prompts()
    engine = attrs.evolve(config(tmp_path), layout="tp=2; j: e:tp")
    assert real_of(engine, prompts, 12) == local(tmp_path, prompts, 12)


@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_stages_with_layers_of_several_kinds(tmp_path: Path, tp: int) -> None:
    saved(tmp_path, "qwen3-next")
    prompts = tiny_prompts()
    engine = attrs.evolve(config(tmp_path), layout=f"pp=2 tp={tp}; stages:pp")
    assert real_of(engine, prompts, 12) == local(tmp_path, prompts, 12)


def turns_of(
    settings: EngineConfig, turns: list[list[list[int]]], max_tokens: int, sampling: Sampling
) -> list[list[list[int]]]:
    """The tokens of the processes of an engine, all prompts of a turn at once."""

    async def answers(engine: Engine) -> list[list[list[int]]]:
        async with Client(engine.run.path) as client:

            async def one(prompt: list[int]) -> list[int]:
                stream = client.generate(prompt, max_tokens=max_tokens, sampling=sampling)
                return [token async for delta in stream for token in delta.tokens]

            return [list(await asyncio.gather(*map(one, prompts))) for prompts in turns]

    with Engine.start(settings) as engine:
        engine.wait_ready(120)
        return asyncio.run(answers(engine))


# Experts over all ranks behind attention that is spread by requests; and beside a pipeline.
REQUESTS = {
    "qwen3-moe": "dp=2 tp=2; j: e:dp+tp requests:dp",
    "deepseek-v3": "dp=2 pp=2 tp=1; f: j: e:dp requests:dp stages:pp",
}


SHAPING = Shaping(frequency=1.5, top=2)


def local_of(model: Path, prompts: list[list[int]], asked: dict[str, Any]) -> list[list[int]]:
    """The tokens of one rank."""
    engine = LocalEngine(load_rank(config(model), 0, ""), max_step_tokens=32)
    found = [engine.submit(Request(prompt, 12, **asked)) for prompt in prompts]
    engine.run()
    return [each.tokens for each in found]


@pytest.mark.parametrize("family", REQUESTS)
def test_requests_spread_over_ranks_are_served_as_by_one(tmp_path: Path, family: str) -> None:
    """A prompt that one group has seen is found by the other: its blocks are fetched."""
    asked: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "seed": 9}
    shaping = SHAPING if family == "deepseek-v3" else None
    sampling = Sampling(**asked, shaping=msgspec.msgpack.encode(shaping) if shaping else b"")
    saved(tmp_path, family)
    first, *others = tiny_prompts()[::-1]
    again = [[*first, *tail] for tail in ([1], [2, 3], [4, 5, 6])]
    turns = [[first], [*again, *others], [[*again[1], 7, 8]]]
    engine = attrs.evolve(config(tmp_path), layout=REQUESTS[family])
    found = turns_of(engine, turns, 12, sampling)
    asked["shaping"] = shaping
    assert found == [local_of(tmp_path, prompts, asked) for prompts in turns]


def test_what_is_not_served_with_spread_requests_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3-next")
    engine = attrs.evolve(config(tmp_path), layout="dp=2 tp=1; requests:dp")
    with pytest.raises(ConfigError, match="keep different things"):
        load_rank(engine, 0, "")
    with pytest.raises(ConfigError, match="give --host-kv 0"):
        load_rank(attrs.evolve(engine, host_kv=1 << 20), 0, "")


def test_ranks_are_places_of_the_mesh() -> None:
    assert EngineConfig(layout="tp=(kv=2,rep=4); k:kv g:rep").num_ranks == 8
    assert EngineConfig(tp=3).num_ranks == 3
    with pytest.raises(ConfigError, match="give one of them"):
        EngineConfig(tp=2, layout="tp=2")


@pytest.mark.parametrize(("layout", "idle"), [("pp=2 tp=2", "pp=2"), ("dp=2 tp=1", "dp=2")])
def test_an_axis_that_spreads_nothing_is_refused(tiny_llama: Path, layout: str, idle: str) -> None:
    spec = ModelSpec.of(attrs.evolve(config(tiny_llama), layout=layout))
    with pytest.raises(ModelSpecError, match=f"spread over {idle} of mesh '{layout}'"):
        spec.plans()


def test_an_axis_that_a_dim_stands_on_is_served(tiny_llama: Path) -> None:
    spec = ModelSpec.of(attrs.evolve(config(tiny_llama), layout="dp=2 tp=2; f:tp+dp"))
    assert spec.plans().first.mesh.num_ranks == 4
