# SPDX-License-Identifier: MIT
"""The kernel files that ops choose from; importing one registers its kernels."""

from ..kernels import (
    cpu,
    embedding,
    linear,
    paged_attention,
    rms_norm,
    rope,
    silu_mul,
)

BACKENDS = (cpu, embedding, linear, paged_attention, rms_norm, rope, silu_mul)
