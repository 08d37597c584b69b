# SPDX-License-Identifier: MIT
"""Where the parameters of a Llama stand in Hugging Face and GGUF checkpoints."""

import attrs

from .checkpoint import Source
from .llama import LlamaConfig

# Parameter, Hugging Face name, GGUF name, pattern.  In a GGUF file the rows of each query and key
# head are interleaved for pair-wise rope.
_LAYER = (
    ("attn_norm", "input_layernorm", "attn_norm", "d -> d"),
    ("attn.wq", "self_attn.q_proj", "attn_q", "(k g h) d -> d k g h"),
    ("attn.wk", "self_attn.k_proj", "attn_k", "(k h) d -> d k h"),
    ("attn.wv", "self_attn.v_proj", "attn_v", "(k h) d -> d k h"),
    ("attn.wo", "self_attn.o_proj", "attn_output", "d (k g h) -> k g h d"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm", "d -> d"),
    ("mlp.w_gate", "mlp.gate_proj", "ffn_gate", "f d -> d f"),
    ("mlp.w_up", "mlp.up_proj", "ffn_up", "f d -> d f"),
    ("mlp.w_down", "mlp.down_proj", "ffn_down", "d f -> f d"),
)
_ATTENTION_BIAS = (
    ("attn.bq", "self_attn.q_proj", "attn_q", "(k g h) -> k g h"),
    ("attn.bk", "self_attn.k_proj", "attn_k", "(k h) -> k h"),
    ("attn.bv", "self_attn.v_proj", "attn_v", "(k h) -> k h"),
    ("attn.bo", "self_attn.o_proj", "attn_output", "d -> d"),
)
_MLP_BIAS = (
    ("mlp.b_gate", "mlp.gate_proj", "ffn_gate", "f -> f"),
    ("mlp.b_up", "mlp.up_proj", "ffn_up", "f -> f"),
    ("mlp.b_down", "mlp.down_proj", "ffn_down", "d -> d"),
)
_INTERLEAVED = ("attn.wq", "attn.wk", "attn.bq", "attn.bk")


def hf(config: LlamaConfig) -> dict[str, Source]:
    """Return the checkpoint tensor of each parameter path, as Hugging Face names it."""
    return _table(config, 1, "model.layers", "model.embed_tokens", "model.norm", "lm_head")


def gguf(config: LlamaConfig) -> dict[str, Source]:
    """Return the checkpoint tensor of each parameter path, as GGUF names it."""
    table = _table(config, 2, "blk", "token_embd", "output_norm", "output")
    return {
        path: attrs.evolve(source, interleaved="h") if path.endswith(_INTERLEAVED) else source
        for path, source in table.items()
    }


def _table(
    config: LlamaConfig, column: int, layers: str, embed: str, norm: str, head: str
) -> dict[str, Source]:
    found = {
        "embed": Source(f"{embed}.weight", "v d -> v d"),
        "norm": Source(f"{norm}.weight", "d -> d"),
    }
    if not config.tied:
        found["head"] = Source(f"{head}.weight", "v d -> v d")
    rows = [(row, "weight") for row in _LAYER]
    rows += [(row, "bias") for row in _ATTENTION_BIAS if config.attention_bias]
    rows += [(row, "bias") for row in _MLP_BIAS if config.mlp_bias]
    for index in range(config.num_layers):
        for row, kind in rows:
            name = f"{layers}.{index}.{row[column]}.{kind}"
            found[f"layers.{index}.{row[0]}"] = Source(name, row[3])
    return found
