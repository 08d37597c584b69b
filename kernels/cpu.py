# SPDX-License-Identifier: MIT
"""Native CPU kernels (C++, OpenMP) for float32 and bfloat16, registered where the build has them.

Each function has the name, shapes and meaning of the reference beside it in this folder.  They
take contiguous tensors; what is not contiguous is copied first, but for caches.
"""

import torch  # before `_cpu`: both then share one OpenMP team
from torch import Tensor

from .paged_attention import Rows
from .registry import register

try:
    from . import _cpu

    BUILT = True
except ImportError:  # a checkout that was not built: the torch references compute everything
    BUILT = False

# Above this many tokens oneDNN's blocked GEMM is faster than our inner products.
MAX_LINEAR_TOKENS = 128


def _supports(device_type: str, dtype: torch.dtype) -> bool:
    return BUILT and device_type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def _supports_bfloat16(device_type: str, dtype: torch.dtype) -> bool:
    return _supports(device_type, dtype) and dtype == torch.bfloat16


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x[n, i] . w[o, i]^T -> [n, o]."""
    if x.shape[0] > MAX_LINEAR_TOKENS:
        return torch.nn.functional.linear(x, w)
    assert w.is_contiguous(), "weights are packed [out, in]"
    x = x.contiguous()
    n, i = x.shape
    o = w.shape[0]
    y = torch.empty(n, o, dtype=x.dtype)
    _cpu.linear(x.data_ptr(), w.data_ptr(), y.data_ptr(), n, i, o, True)
    return y


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """w * round(x * rsqrt(mean(x^2) + eps)) over x[n, d]."""
    x = x.contiguous()
    y = torch.empty_like(x)
    d = x.shape[-1]
    bf16 = x.dtype == torch.bfloat16
    _cpu.rms_norm(x.data_ptr(), w.data_ptr(), y.data_ptr(), x.numel() // d, d, eps, bf16)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual), both [n, d]."""
    x, residual = x.contiguous(), residual.contiguous()
    y, total = torch.empty_like(x), torch.empty_like(x)
    n, d = x.shape
    _cpu.add_rms_norm(
        x.data_ptr(),
        residual.data_ptr(),
        w.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        n,
        d,
        eps,
        x.dtype == torch.bfloat16,
    )
    return y, total


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head of x[n, ..., h] by cos, sin [n, h] (float32)."""
    n, h = x.shape[0], x.shape[-1]
    heads = x[0].numel() // h if n else 0
    if not x[:1].is_contiguous():
        x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    _cpu.rope(
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        y.data_ptr(),
        n,
        heads,
        h,
        x.stride(0),
        x.dtype == torch.bfloat16,
    )
    return y


def silu_mul(x: Tensor) -> Tensor:
    """silu(x[n, :f]) * x[n, f:] -> [n, f]."""
    x = x.contiguous()
    n, f = x.shape[0], x.shape[1] // 2
    y = torch.empty(n, f, dtype=x.dtype)
    _cpu.silu_mul(x.data_ptr(), y.data_ptr(), n, f, x.dtype == torch.bfloat16)
    return y


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: Rows,
    scale: float,
) -> Tensor:
    """Write k, v to the cache, then attend causally, reading the blocks in place.

    q [n, k, g, h]; k, v [n, k, h]; caches [b, k, s, h], blocks may stand apart; returns
    [n, k, g, h].
    """
    dtype = q.dtype
    if dtype != k_cache.dtype:  # a cache kept wider or narrower than the activations
        q, k, v = q.to(k_cache.dtype), k.to(k_cache.dtype), v.to(k_cache.dtype)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    assert k_cache[0].is_contiguous()
    assert v_cache.stride() == k_cache.stride()
    out = torch.empty_like(q)
    tokens, kv_heads, groups, head_dim = q.shape
    _cpu.attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out.data_ptr(),
        batch.cache_slots.data_ptr(),
        batch.query_starts.data_ptr(),
        batch.context_lens.data_ptr(),
        batch.block_tables.data_ptr(),
        tokens,
        batch.context_lens.shape[0],
        batch.block_tables.shape[1],
        kv_heads,
        groups,
        head_dim,
        k_cache.shape[2],
        k_cache.stride(0),
        scale,
        q.dtype == torch.bfloat16,
    )
    return out.to(dtype)


for _function in (rms_norm, add_rms_norm, rope, silu_mul, paged_attention):
    register(_function.__name__, backend="cpu", supports=_supports, preference=10)(_function)
register("linear", backend="cpu", supports=_supports_bfloat16, preference=10)(linear)
