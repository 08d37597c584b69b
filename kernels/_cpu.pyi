# SPDX-License-Identifier: MIT
"""Native kernels on raw addresses; shapes and meaning are in `csrc/kernels.h`."""

instruction_set: str

def linear(x: int, w: int, y: int, n: int, i: int, o: int, bf16: bool, /) -> None: ...
def rms_norm(x: int, w: int, y: int, n: int, d: int, eps: float, bf16: bool, /) -> None: ...
def add_rms_norm(
    x: int, residual: int, w: int, y: int, sum: int, n: int, d: int, eps: float, bf16: bool, /
) -> None: ...
def rope(
    x: int, cos: int, sin: int, y: int, n: int, heads: int, h: int, x_stride: int, bf16: bool, /
) -> None: ...
def silu_mul(x: int, y: int, n: int, f: int, bf16: bool, /) -> None: ...
def attention(
    q: int,
    k: int,
    v: int,
    k_cache: int,
    v_cache: int,
    out: int,
    cache_slots: int,
    query_starts: int,
    context_lens: int,
    block_tables: int,
    tokens: int,
    rows: int,
    max_blocks: int,
    kv_heads: int,
    groups: int,
    head_dim: int,
    block_size: int,
    block_stride: int,
    scale: float,
    bf16: bool,
    /,
) -> None: ...
