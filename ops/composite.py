# SPDX-License-Identifier: MIT
"""Several ops in one call, for targets whose kernels can.

Models never call these: a compiled plan does where its target has a kernel for one
(`sharding/compose.py`).  On recorded values a composite is its definition in other ops, so that
placements are checked op by op.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..kernels.float8 import Float8Matrix, Matrix
from ..kernels.registry import choose
from ..sharding.op import OPS, Op, dispatch
from ..sharding.rule import rule
from .activation import silu_mul_packed
from .attention import LayerKV, kept_in, paged_attention, rows_of
from .batch import Batch
from .collectives import Collectives
from .einsum import linear, split
from .experts import experts
from .kernel import kernel
from .norm import rms_norm
from .rope import rope
from .router import softmax_router

P = ParamSpec("P")
R = TypeVar("R")


def defined_by(
    definition: Callable[P, R], collective: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make the decorated function on tensors an op that is `definition` on recorded values.

    A `collective` one takes the caller of collectives and the name of a group first.
    """

    def add(run: Callable[P, R]) -> Callable[P, R]:
        op = OPS[run.__name__] = Op(
            run.__name__, rule("... -> ..."), run, definition=definition, collective=collective
        )

        @wraps(run)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if isinstance(args[0], Tensor):
                return run(*args, **kwargs)
            result: R = dispatch(op, args, kwargs)
            return result

        return call

    return add


def _form(w: Matrix) -> tuple[str, ...]:
    """Return what a kernel needs beside the plain form of an op to read a matrix."""
    return ("float8",) if isinstance(w, Float8Matrix) else ()


def composites_on(device_type: str, dtype: torch.dtype) -> frozenset[str]:
    """Return the composites with a kernel of their own there, which a plan should then call."""
    return frozenset(
        op.name
        for op in OPS.values()
        if op.definition and choose(op.name, device_type, dtype).backend != "torch"
    )


def _norm_linear(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    return linear(rms_norm(x, w_norm, eps), w)


@defined_by(_norm_linear)
def norm_linear(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `linear(rms_norm(x, w_norm, eps), w)` `[n,o]`: `x[n,d]`, `w_norm[d]`, `w[o,d]`."""
    y: Tensor = kernel("norm_linear", x, *_form(w))(x, w_norm, w, eps)
    return y


def _linear_add(x: Tensor, w: Matrix, residual: Tensor) -> Tensor:
    return residual + linear(x, w)


@defined_by(_linear_add)
def linear_add(x: Tensor, w: Matrix, residual: Tensor) -> Tensor:
    """Return `residual + linear(x, w)` `[n,o]`: `x[n,i]`, `w[o,i]`, `residual[n,o]`."""
    y: Tensor = kernel("linear_add", x, *_form(w))(x, w, residual)
    return y


def _norm_gate_up(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    return silu_mul_packed(norm_linear(x, w_norm, w, eps))


@defined_by(_norm_gate_up)
def norm_gate_up(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `silu(gate) * up` `[n,f]` of `norm_linear(x, w_norm, w, eps)`, gate first."""
    y: Tensor = kernel("norm_gate_up", x, *_form(w))(x, w_norm, w, eps)
    return y


def _rope_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    kv: LayerKV,
    batch: Batch,
    scale: float,
    window: int,
    eps: float,
) -> tuple[Tensor, LayerKV]:
    heads, width = kv.k.shape[1], kv.k.shape[3]
    groups = qkv.shape[1] // (heads * width) - 2
    q, k, v = split(qkv, (heads, groups, width), (heads, width), (heads, width))
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    seen = (window,) if window else ()
    return paged_attention(rope(q, cos, sin), rope(k, cos, sin), v, kv, batch, scale, *seen)


@defined_by(_rope_attention)
def rope_attention(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    kv: LayerKV,
    batch: Batch,
    scale: float,
    window: int,
    eps: float,
) -> tuple[Tensor, LayerKV]:
    """Return what rotated queries read, `o[n,k,g,h]`, and `kv` with the step's keys and values.

    `qkv[n,(k g h)+(k h)+(k h)]` are projections side by side; `q_norm[h]`, `k_norm[h]` norm each
    head before `cos[n,r]`, `sin[n,r]` turn it; then as `paged_attention`.
    """
    run = kernel("rope_attention", qkv, *kept_in(kv.k))
    rows = rows_of(batch, kv)
    o: Tensor = run(qkv, q_norm, k_norm, cos, sin, kv.k, kv.v, rows, scale, window, eps)
    return o, kv


def _norm_moe_add(
    x: Tensor,
    w_norm: Tensor,
    w_router: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    active: int,
    renormalise: bool,
    eps: float,
) -> Tensor:
    normed = rms_norm(x, w_norm, eps)
    ids, weights = softmax_router(linear(normed, w_router), active, renormalise)
    return x + experts(normed, ids, weights, w_gate, w_up, w_down)


@defined_by(_norm_moe_add)
def norm_moe_add(
    x: Tensor,
    w_norm: Tensor,
    w_router: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    active: int,
    renormalise: bool,
    eps: float,
) -> Tensor:
    """Return `x[n,d]` and what the `active` likeliest experts of its norm add to it.

    `w_norm[d]`, `w_router[e,d]`; experts as in `experts`, routing as in `softmax_router`.
    """
    run = kernel("norm_moe_add", x)
    y: Tensor = run(x, w_norm, w_router, w_gate, w_up, w_down, active, renormalise, eps)
    return y


def _all_reduce_add(c: Collectives, axis: str, x: Tensor, residual: Tensor) -> Tensor:
    return residual + c.all_reduce(x, axis)


@defined_by(_all_reduce_add, collective=True)
def all_reduce_add(c: Collectives, axis: str, x: Tensor, residual: Tensor) -> Tensor:
    """Return `residual[n,d]` plus the sum of `x[n,d]` over the ranks of `axis`, in rank order."""
    y: Tensor = kernel("all_reduce_add", x)(c, axis, x, residual)
    return y


def _all_gather_linear(c: Collectives, axis: str, x: Tensor, w: Matrix) -> Tensor:
    return linear(c.all_gather(x, axis, 0), w)


@defined_by(_all_gather_linear, collective=True)
def all_gather_linear(c: Collectives, axis: str, x: Tensor, w: Matrix) -> Tensor:
    """Return `linear(x, w)` of the rows `x[n,i]` of all ranks of `axis`, in rank order."""
    if isinstance(w, Float8Matrix):
        return _all_gather_linear(c, axis, x, w)
    y: Tensor = kernel("all_gather_linear", x)(c, axis, x, w)
    return y


def _linear_reduce_scatter(c: Collectives, axis: str, x: Tensor, w: Matrix) -> Tensor:
    return c.reduce_scatter(linear(x, w), axis, 0)


@defined_by(_linear_reduce_scatter, collective=True)
def linear_reduce_scatter(c: Collectives, axis: str, x: Tensor, w: Matrix) -> Tensor:
    """Return this rank's even part of the rows of `linear(x, w)` summed over `axis`."""
    if isinstance(w, Float8Matrix):
        return _linear_reduce_scatter(c, axis, x, w)
    y: Tensor = kernel("linear_reduce_scatter", x)(c, axis, x, w)
    return y
