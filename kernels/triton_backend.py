# SPDX-License-Identifier: MIT
"""Registers the Triton kernels where torch was built for a GPU and Triton is installed."""

from importlib.util import find_spec

import torch

from .registry import register

BUILT = bool(torch.version.cuda or torch.version.hip) and find_spec("triton") is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _supports(device_type: str, dtype: torch.dtype) -> bool:
    return BUILT and device_type == "cuda" and dtype in _DTYPES


def clear_counters(device: torch.device) -> None:
    """Set back what launches of several streams at once, or ones cut short, may have left behind.

    Kernels count arrivals in memory that all launches of a device share, one after another.
    """
    if BUILT and device.type == "cuda":
        with torch.inference_mode():  # a step that came first may have made them there
            counters(torch.empty(0, device=device)).zero_()


if BUILT:
    from .triton import (
        attention,
        columns,
        delta_net,
        experts,
        latent_attention,
        linear,
        norm,
        pointwise,
        router,
    )
    from .triton.device import counters

    for _function, _features in (
        (linear.linear, ()),
        (linear.norm_linear, ()),
        (linear.linear_add, ()),
        (linear.norm_gate_up, ()),
        (norm.rms_norm, ("wide_weight",)),
        (norm.add_rms_norm, ("wide_weight",)),
        (pointwise.silu_mul, ()),
        (pointwise.embedding, ()),
        (pointwise.rope, ()),
        (experts.experts, ()),
        (experts.norm_moe_add, ()),
        (router.softmax_router, ()),
        (attention.paged_attention, ("window", "sinks")),
        (attention.rope_attention, ()),
        (latent_attention.latent_attention, ()),
        (delta_net.gated_delta_rule, ()),
        (delta_net.causal_conv, ()),
    ):
        register(
            _function.__name__,
            backend="triton",
            supports=_supports,
            preference=10,
            features=_features,
        )(_function)

    register(
        "decode_columns",
        backend="triton",
        supports=lambda device_type, dtype: device_type == "cuda" and dtype == torch.int32,
        preference=10,
    )(columns.decode_columns)
