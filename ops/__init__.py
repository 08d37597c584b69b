# SPDX-License-Identifier: MIT
"""Functional ops: what is computed; on tensors they run a kernel, on traced values they record."""

from torch import Tensor

from .activation import sigmoid, silu_mul, silu_mul_packed
from .attention import (
    LayerKV,
    WindowKV,
    paged_attention,
    paged_attention_share,
    sink_attention,
    sink_attention_share,
)
from .backends import BACKENDS
from .batch import Batch, declared_batch
from .cache_kind import CacheKind
from .cast import widen
from .collectives import Collectives
from .composite import (
    all_gather_linear,
    all_reduce_add,
    composites_on,
    linear_add,
    linear_reduce_scatter,
    norm_gate_up,
    norm_linear,
    norm_moe_add,
    rope_attention,
)
from .delta_net import (
    LayerState,
    causal_conv,
    delta_gates,
    gated_delta_rule,
    gated_rms_norm,
    l2_norm,
)
from .einsum import einsum, linear, split
from .embedding import embedding, take_rows, zeros_like
from .experts import clamped_experts, expert_bias, experts
from .latent_attention import LayerLatent, latent_attention, latent_attention_share
from .norm import add_rms_norm, rms_norm, rms_norm_by_total, squares, stack_totals
from .parts import parts
from .rope import rope, rope_angles, rope_pairs
from .router import sigmoid_router, softmax_router, topk_softmax_router
from .sampling import (
    chosen,
    count_target,
    descend,
    draw_scores,
    histogram,
    largest,
    logit_of,
    mass_target,
    masses,
    masses_from,
    pick,
    reported,
    scores_from,
    token_keys,
    total_mass,
    units,
)
from .shard import own, shard

__all__ = [
    "BACKENDS",
    "Batch",
    "CacheKind",
    "Collectives",
    "LayerKV",
    "LayerLatent",
    "LayerState",
    "Tensor",
    "WindowKV",
    "add_rms_norm",
    "all_gather_linear",
    "all_reduce_add",
    "causal_conv",
    "chosen",
    "clamped_experts",
    "composites_on",
    "count_target",
    "declared_batch",
    "delta_gates",
    "descend",
    "draw_scores",
    "einsum",
    "embedding",
    "expert_bias",
    "experts",
    "gated_delta_rule",
    "gated_rms_norm",
    "histogram",
    "l2_norm",
    "largest",
    "latent_attention",
    "latent_attention_share",
    "linear",
    "linear_add",
    "linear_reduce_scatter",
    "logit_of",
    "mass_target",
    "masses",
    "masses_from",
    "norm_gate_up",
    "norm_linear",
    "norm_moe_add",
    "own",
    "paged_attention",
    "paged_attention_share",
    "parts",
    "pick",
    "reported",
    "rms_norm",
    "rms_norm_by_total",
    "rope",
    "rope_angles",
    "rope_attention",
    "rope_pairs",
    "scores_from",
    "shard",
    "sigmoid",
    "sigmoid_router",
    "silu_mul",
    "silu_mul_packed",
    "sink_attention",
    "sink_attention_share",
    "softmax_router",
    "split",
    "squares",
    "stack_totals",
    "take_rows",
    "token_keys",
    "topk_softmax_router",
    "total_mass",
    "units",
    "widen",
    "zeros_like",
]
