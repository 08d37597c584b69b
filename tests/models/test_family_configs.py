# SPDX-License-Identifier: MIT
"""Configs of the families with grouped-query attention: what is read and what is refused."""

from typing import Any

import pytest

from tokenspeed_core.models import ConfigError, family_of
from tokenspeed_core.models.qwen2 import Qwen2Config
from tokenspeed_core.models.qwen3 import Qwen3Config
from tokenspeed_core.models.qwen3_moe import Qwen3MoeConfig

PLAIN: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
)
EXPERTS: dict[str, Any] = dict(num_local_experts=8, num_experts_per_tok=2)
MOE: dict[str, Any] = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)


def test_a_window_that_is_switched_off_is_no_window() -> None:
    """Released Qwen2.5 files carry `sliding_window` with the flag off."""
    written = {**PLAIN, "sliding_window": 131072, "use_sliding_window": False}
    config = Qwen2Config.from_hf(written)
    assert (config.window, any(config.windowed)) == (0, False)


def test_upper_layers_have_windows_unless_types_say_otherwise() -> None:
    written = {**PLAIN, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    assert Qwen2Config.from_hf(written).windowed == (False, False, False, True)
    types = ["sliding_attention", *["full_attention"] * 3]
    config = Qwen3Config.from_hf({**written, "layer_types": types})
    assert (config.window, config.windowed) == (8, (True, False, False, False))


def test_qwen3_heads_do_not_follow_from_the_hidden_size() -> None:
    assert Qwen3Config.from_hf(PLAIN).head_dim == 128


def test_which_layers_are_sparse_and_how_weights_are_scaled() -> None:
    config = Qwen3MoeConfig.from_hf({**PLAIN, **MOE})
    assert config.sparse == (True,) * 4
    assert not config.renormalise, "the class default; released files say true"
    step = {"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": True}
    config = Qwen3MoeConfig.from_hf({**PLAIN, **MOE, **step})
    assert config.sparse == (False, True, False, False)
    assert config.renormalise


def test_the_rotary_width_of_minimax_is_read_from_either_key() -> None:
    family = family_of("MiniMaxM2ForCausalLM")
    for changes in ({"rotary_dim": 8}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        assert family.config({**PLAIN, **EXPERTS, **changes}).rotary_dim == 8
    assert family.config({**PLAIN, **EXPERTS}).rotary_dim == 16


def test_gpt_oss_starts_with_a_window() -> None:
    family = family_of("GptOssForCausalLM")
    config = family.config({**PLAIN, **EXPERTS, "sliding_window": 8})
    assert config.windowed == (True, False, True, False)
    assert (config.limit, config.slope, config.attention_bias) == (7.0, 1.702, True)


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("Qwen2ForCausalLM", {"attention_bias": True}, "'attention_bias'"),
        ("Qwen2ForCausalLM", {"layer_types": ["full_attention"]}, "'layer_types'"),
        ("Qwen2ForCausalLM", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 4}, "'sliding_window'"),
        ("Qwen3ForCausalLM", {"hidden_act": "gelu"}, "'gelu'"),
        ("Qwen3ForCausalLM", {"num_experts": 8}, "'num_experts'"),
        ("Qwen3MoeForCausalLM", {**MOE, "shared_expert_intermediate_size": 8}, "'shared_expert"),
        ("Qwen3MoeForCausalLM", {**MOE, "num_experts": None}, "'num_experts'"),
        ("GptOssForCausalLM", {**EXPERTS, "quantization_config": {"a": 1}}, "'quantization_con"),
        ("GptOssForCausalLM", EXPERTS, "'sliding_window'"),
        ("MiniMaxM2ForCausalLM", {**EXPERTS, "scoring_func": "softmax"}, "'scoring_func'"),
        ("MiniMaxM2ForCausalLM", {**EXPERTS, "use_qk_norm": False}, "'use_qk_norm'"),
        ("MiniMaxM2ForCausalLM", {**EXPERTS, "shared_intermediate_size": 8}, "'shared_interm"),
        ("MiniMaxM2ForCausalLM", {**EXPERTS, "attn_type_list": [1, 0, 1, 1]}, "'attn_type_list'"),
    ],
)
def test_what_a_family_does_not_compute_is_refused_by_name(
    architecture: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        family_of(architecture).config({**PLAIN, **changes})
    assert named in str(raised.value)
