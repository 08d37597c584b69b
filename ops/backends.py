# SPDX-License-Identifier: MIT
"""The kernel files that ops choose from; importing one registers its kernels."""

from ..kernels import (
    cpu,
    embedding,
    experts,
    linear,
    paged_attention,
    rms_norm,
    rope,
    router,
    silu_mul,
)

BACKENDS = (
    cpu, embedding, experts, linear, paged_attention, rms_norm, rope, router, silu_mul,
)  # fmt: skip
