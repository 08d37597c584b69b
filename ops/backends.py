# SPDX-License-Identifier: MIT
"""The kernel files that ops choose from; importing one registers its kernels."""

from ..kernels import (
    causal_conv,
    composite,
    cpu,
    delta_gates,
    delta_rule,
    embedding,
    experts,
    gated_norm,
    l2_norm,
    latent_attention,
    linear,
    paged_attention,
    rms_norm,
    rope,
    router,
    sampling,
    silu_mul,
    triton_backend,
)

BACKENDS = (
    causal_conv,
    composite,
    cpu,
    delta_gates,
    delta_rule,
    embedding,
    experts,
    gated_norm,
    l2_norm,
    latent_attention,
    linear,
    paged_attention,
    rms_norm,
    rope,
    router,
    sampling,
    silu_mul,
    triton_backend,
)
