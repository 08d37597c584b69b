# SPDX-License-Identifier: MIT
"""Real ranks under layouts other than plain tensor parallelism: the greedy tokens of one rank."""

from pathlib import Path

import attrs
import pytest

from tests.engine.test_families import saved
from tests.engine.test_ranks import config, local, real_of, tiny_prompts
from tokenspeed_core.config import ConfigError, EngineConfig
from tokenspeed_core.model_spec import ModelSpec, ModelSpecError

LAYOUTS = {"sequence": "tp=2; Hidden=n@tp d", "slots-of-the-cache": "tp=1 cp=2; s:cp"}


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


def test_ranks_are_places_of_the_mesh() -> None:
    assert EngineConfig(layout="tp=(kv=2,rep=4); k:kv g:rep").num_ranks == 8
    assert EngineConfig(tp=3).num_ranks == 3
    with pytest.raises(ConfigError, match="give one of them"):
        EngineConfig(tp=2, layout="tp=2")


@pytest.mark.parametrize(("layout", "idle"), [("pp=2 tp=2", "pp=2"), ("dp=2 tp=1", "dp=2")])
def test_an_axis_that_spreads_nothing_is_refused(tiny_llama: Path, layout: str, idle: str) -> None:
    spec = ModelSpec.of(attrs.evolve(config(tiny_llama), layout=layout))
    with pytest.raises(ModelSpecError, match=f"spread over {idle} of mesh '{layout}'"):
        spec.rank_plan()


def test_an_axis_that_a_dim_stands_on_is_served(tiny_llama: Path) -> None:
    spec = ModelSpec.of(attrs.evolve(config(tiny_llama), layout="dp=2 tp=2; f:tp+dp"))
    assert spec.rank_plan().mesh.num_ranks == 4
