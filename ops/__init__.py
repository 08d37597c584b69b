# SPDX-License-Identifier: MIT
"""Functional ops: what is computed; on tensors they run a kernel, on traced values they record."""

from .activation import silu_mul, silu_mul_packed
from .attention import LayerKV, paged_attention
from .backends import BACKENDS
from .batch import Batch, declared_batch
from .cast import widen
from .einsum import einsum, linear, split
from .embedding import embedding, take_rows, zeros_like
from .norm import add_rms_norm, rms_norm
from .rope import rope, rope_angles, rope_pairs
from .shard import shard

__all__ = [
    "BACKENDS",
    "Batch",
    "LayerKV",
    "add_rms_norm",
    "declared_batch",
    "einsum",
    "embedding",
    "linear",
    "paged_attention",
    "rms_norm",
    "rope",
    "rope_angles",
    "rope_pairs",
    "shard",
    "silu_mul",
    "silu_mul_packed",
    "split",
    "take_rows",
    "widen",
    "zeros_like",
]
