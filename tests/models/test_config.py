# SPDX-License-Identifier: MIT
"""Checkpoint configs: what is read, what is let pass, what is refused by name."""

import math
from typing import Any

import pytest
import torch
from tiny import ROPE3

from tokenspeed_core.models import ConfigError, family_of
from tokenspeed_core.models.llama import LlamaConfig
from tokenspeed_core.models.rope import Rope

PLAIN = dict(
    architectures=["LlamaForCausalLM"],
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=100,
    torch_dtype="bfloat16",
)


def test_defaults_are_those_of_the_format() -> None:
    config = LlamaConfig.from_hf(PLAIN)
    assert (config.num_kv_heads, config.head_dim, config.norm_eps) == (4, 16, 1e-6)
    assert not any((config.tied, config.attention_bias, config.mlp_bias))
    assert config.rope == Rope(theta=10000.0)


def test_null_values_mean_the_default() -> None:
    config = LlamaConfig.from_hf({**PLAIN, "head_dim": None, "rope_scaling": None})
    assert config.head_dim == 16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sliding_window": 4096}, "'sliding_window' = 4096"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"logit_scale": 0.5}, "'logit_scale'"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "'longrope'"),
        ({"rope_scaling": {"type": "yarn"}}, "'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0, "beta": 1}}, "'beta'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "'high_freq_factor'"),
        ({"hidden_size": "64"}, "'hidden_size'"),
        ({"vocab_size": None}, "'vocab_size'"),
        ({"num_key_value_heads": 3}, "4 query heads"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LlamaConfig.from_hf({**PLAIN, **changes})
    assert named in str(raised.value)


def test_everything_that_transformers_writes_is_understood() -> None:
    from transformers import LlamaConfig as Oracle

    written = Oracle(num_key_value_heads=8, rope_parameters=ROPE3).to_dict()
    config = LlamaConfig.from_hf(written)
    assert config.num_kv_heads == 8
    assert config.rope == Rope(1e4, "llama3", 8.0, 1.0, 4.0, 16)


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(truncate=False, beta_fast=32.0, beta_slow=1.0, rope_theta=15e4),
        dict(mscale=1.0, mscale_all_dim=0.7),
        dict(mscale=1.0, factor=None),
        dict(attention_factor=1.5, beta_fast=2.0),
        dict(original_max_position_embeddings=4),
    ],
)
def test_yarn_is_that_of_transformers(changes: dict[str, Any]) -> None:
    from transformers import LlamaConfig as Oracle
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"rope_theta": 1e4, **YARN, **changes}
    config = Oracle(hidden_size=256, num_attention_heads=4, max_position_embeddings=256)
    config.rope_parameters = given
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config)
    ours = Rope.from_hf({"rope_parameters": given, "max_position_embeddings": 256})
    torch.testing.assert_close(ours.inv_freq(64), expected, rtol=1e-6, atol=0)
    assert ours.scale == pytest.approx(scale)


def test_yarn_sharpens_the_logits_of_latent_attention_only() -> None:
    deepseek = {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    rope = Rope.from_hf({"rope_parameters": deepseek})
    assert (rope.scale, rope.logit_scale) == (1.0, pytest.approx(0.1352 / 192**-0.5, rel=1e-3))
    assert Rope.from_hf({"rope_parameters": YARN}).logit_scale == 1


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, ROPE3])
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    from transformers import LlamaConfig as Oracle
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    given = {"rope_theta": 1e4, "rope_type": "default"} | (scaling or {})
    oracle = LlamaRotaryEmbedding(
        Oracle(hidden_size=256, num_attention_heads=4, rope_parameters=given)
    )
    ours = Rope.from_hf({"rope_parameters": given}).inv_freq(64)
    torch.testing.assert_close(ours, oracle.inv_freq, rtol=1e-6, atol=0)


def test_old_and_new_rope_keys_read_alike() -> None:
    scaling = {key: value for key, value in ROPE3.items() if key != "rope_theta"}
    old = Rope.from_hf({"rope_theta": 1e4, "rope_scaling": scaling})
    assert old == Rope.from_hf({"rope_parameters": ROPE3})


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    rope = Rope(1e6, "llama3", 8.0, 1.0, 4.0, 8192)
    plain, scaled = Rope(1e6).inv_freq(128), rope.inv_freq(128)
    waves = 2 * math.pi / plain
    assert torch.equal(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    torch.testing.assert_close(scaled[waves > 8192], plain[waves > 8192] / 8)


def test_an_unknown_architecture_is_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"'GPT2LMHeadModel'.*LlamaForCausalLM"):
        family_of("GPT2LMHeadModel")
