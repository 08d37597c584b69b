# SPDX-License-Identifier: MIT
"""Registers the Triton kernels where torch was built for a GPU and Triton is installed."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from .registry import register

BUILT = bool(torch.version.cuda or torch.version.hip) and find_spec("triton") is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _supports(device_type: str, dtype: torch.dtype) -> bool:
    return BUILT and device_type == "cuda" and dtype in _DTYPES


def _multiplies_float8(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a GPU here has products of float8 with float8, and torch a library of them."""
    return (
        _supports(device_type, dtype)
        and dtype == torch.bfloat16
        and bool(torch.version.cuda)
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability() >= (8, 9)
    )


def compile_ahead(
    launches: Callable[[], None], about: str, agreed: Callable[[bool], bool] = bool
) -> None:
    """Compile the kernels that `launches` launches, side by side, without launching them.

    `about` names what the launches depend on: what was compiled before is not looked at again,
    unless another rank must, since `launches` may meet it; `agreed` asks all.
    """
    if BUILT:
        from .triton import compilation

        compilation.compile_ahead(launches, about, agreed)


if BUILT:
    from .triton import (
        all_reduce,
        attention,
        columns,
        delta_net,
        experts,
        latent_attention,
        library,
        linear,
        norm,
        pointwise,
        router,
        sampling,
    )

    for _function, _features in (
        (linear.linear, ()),
        (linear.norm_linear, ("float8",)),
        (linear.linear_add, ("float8",)),
        (linear.norm_gate_up, ("float8",)),
        (norm.rms_norm, ("wide_weight",)),
        (norm.add_rms_norm, ("wide_weight",)),
        (pointwise.silu_mul, ()),
        (pointwise.embedding, ()),
        (pointwise.rope, ()),
        (pointwise.rope_pairs, ()),
        (all_reduce.rank_sum, ()),
        (all_reduce.all_reduce_add, ()),
        (experts.experts, ()),
        (experts.norm_moe_add, ()),
        (router.softmax_router, ()),
        (attention.paged_attention, ("window", "sinks", "float8")),
        (attention.rope_attention, ("float8",)),
        (latent_attention.latent_attention, ("float8",)),
        (linear.float8_linear, ()),
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

    for _product in (
        library.linear,
        library.norm_linear,
        library.linear_add,
        library.norm_gate_up,
    ):
        register(
            _product.__name__, backend="library", supports=_supports, preference=1, contests=True
        )(_product)

    register("draw_tokens", backend="triton", supports=_supports, preference=10)(
        sampling.draw_tokens
    )
    register("float8_linear", backend="scaled_mm", supports=_multiplies_float8, preference=11)(
        linear.scaled_linear
    )
