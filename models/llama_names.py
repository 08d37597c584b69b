# SPDX-License-Identifier: MIT
"""Where the parameters of a Llama stand in a checkpoint, by Hugging Face names.

GGUF files are read under the same names: `tokenspeed_core/checkpoint/` translates them.
"""

from .checkpoint import Source
from .llama import LlamaConfig

# Parameter, name, pattern.
_LAYER = (
    ("attn_norm", "input_layernorm", "d -> d"),
    ("attn.wq", "self_attn.q_proj", "(k g h) d -> d k g h"),
    ("attn.wk", "self_attn.k_proj", "(k h) d -> d k h"),
    ("attn.wv", "self_attn.v_proj", "(k h) d -> d k h"),
    ("attn.wo", "self_attn.o_proj", "d (k g h) -> k g h d"),
    ("mlp_norm", "post_attention_layernorm", "d -> d"),
    ("mlp.w_gate", "mlp.gate_proj", "f d -> d f"),
    ("mlp.w_up", "mlp.up_proj", "f d -> d f"),
    ("mlp.w_down", "mlp.down_proj", "d f -> f d"),
)
_ATTENTION_BIAS = (
    ("attn.bq", "self_attn.q_proj", "(k g h) -> k g h"),
    ("attn.bk", "self_attn.k_proj", "(k h) -> k h"),
    ("attn.bv", "self_attn.v_proj", "(k h) -> k h"),
    ("attn.bo", "self_attn.o_proj", "d -> d"),
)
_MLP_BIAS = (
    ("mlp.b_gate", "mlp.gate_proj", "f -> f"),
    ("mlp.b_up", "mlp.up_proj", "f -> f"),
    ("mlp.b_down", "mlp.down_proj", "d -> d"),
)


def hf(config: LlamaConfig) -> dict[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    found = {
        "embed": Source("model.embed_tokens.weight", "v d -> v d"),
        "norm": Source("model.norm.weight", "d -> d"),
    }
    if not config.tied:
        found["head"] = Source("lm_head.weight", "v d -> v d")
    rows = [(row, "weight") for row in _LAYER]
    rows += [(row, "bias") for row in _ATTENTION_BIAS if config.attention_bias]
    rows += [(row, "bias") for row in _MLP_BIAS if config.mlp_bias]
    for index in range(config.num_layers):
        for (path, name, pattern), kind in rows:
            source = Source(f"model.layers.{index}.{name}.{kind}", pattern)
            found[f"layers.{index}.{path}"] = source
    return found
