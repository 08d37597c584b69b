# SPDX-License-Identifier: MIT
"""The native CPU kernels against plain float64 formulas."""

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenspeed_core.kernels import cpu, registry

pytestmark = pytest.mark.skipif(not cpu.BUILT, reason="the package was not built")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@attrs.frozen
class Rows:
    """The part of a batch that attention reads."""

    cache_slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype)


def close(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert ours.isfinite().all()
    scale = expected.abs().max().clamp(min=1.0)
    assert ((ours.double() - expected).abs().max() / scale) < TOLERANCE[dtype]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 130), st.integers(1, 150), st.integers(0, 2**31))
def test_linear(n: int, i: int, o: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = random(generator, n, i, dtype=torch.bfloat16)
    w = random(generator, o, i, dtype=torch.bfloat16)
    close(cpu.linear(x, w), x.double() @ w.double().T, torch.bfloat16)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 130), dtypes, st.integers(0, 2**31))
def test_rows(n: int, d: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = random(generator, n, d, dtype=dtype)
    residual = random(generator, n, d, dtype=dtype)
    w = random(generator, d, dtype=dtype)

    def norm(value: Tensor) -> Tensor:
        value = value.double()
        return w.double() * value * (value.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    close(cpu.rms_norm(x, w, 1e-5), norm(x), dtype)
    normed, total = cpu.add_rms_norm(x, residual, w, 1e-5)
    assert torch.equal(total, x + residual)
    close(normed, norm(total), dtype)
    both = random(generator, n, 2 * d, dtype=dtype) * 10
    gate, up = both.double().chunk(2, -1)
    close(cpu.silu_mul(both), torch.nn.functional.silu(gate) * up, dtype)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([8, 16, 64]),
    dtypes,
    st.integers(0, 2**31),
)
def test_rope(n: int, k: int, g: int, h: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = random(generator, n, k * g * h + 24, dtype=dtype)
    x = packed[:, 8 : 8 + k * g * h].unflatten(1, (k, g, h))
    angles = torch.rand(n, h // 2, generator=generator) * 7
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.double().chunk(2, -1)
    rotated = torch.cat((-second, first), -1)
    expected = x.double() * cos[:, None, None] + rotated * sin[:, None, None]
    close(cpu.rope(x, cos, sin), expected, dtype)


@settings(deadline=None, max_examples=60)
@given(st.data(), dtypes, st.integers(0, 2**31))
def test_paged_attention(data: st.DataObject, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k = data.draw(st.integers(1, 3))
    g = data.draw(st.integers(1, 4))
    h = data.draw(st.sampled_from([8, 16, 64]))
    s = data.draw(st.sampled_from([1, 4, 16]))
    pairs = st.tuples(st.integers(1, 19), st.sampled_from([0, 1, 3, 16, 300, 700]))
    rows = data.draw(st.lists(pairs, min_size=1, max_size=4))
    queries, cached = [q for q, _ in rows], [c for _, c in rows]
    lens = [q + c for q, c in rows]
    needed = [-(-length // s) for length in lens]
    order = (torch.randperm(sum(needed), generator=generator) + 1).tolist()
    table = torch.zeros(len(rows), max(needed), dtype=torch.int32)
    slots: list[int] = []
    for row, count in enumerate(needed):
        blocks, order = order[:count], order[count:]
        table[row, :count] = torch.tensor(blocks)
        slots += [blocks[p // s] * s + p % s for p in range(cached[row], lens[row])]
    # What no request owns is poison: reading it would show.
    caches = [torch.full((sum(needed) + 1, k, s, h), float("nan"), dtype=dtype) for _ in range(2)]
    history = [[random(generator, n, k, h, dtype=dtype) for n in lens] for _ in range(2)]
    for cache, parts in zip(caches, history, strict=True):
        for row, part in enumerate(parts):
            for position in range(cached[row]):
                cache[table[row, position // s], :, position % s] = part[position]
    padding = data.draw(st.integers(0, 2))
    slots += [0] * padding  # padded tokens write to the scratch block
    q = random(generator, sum(queries) + padding, k, g, h, dtype=dtype)
    pad = random(generator, padding, k, h, dtype=dtype)
    new = [
        torch.cat([*(part[c:] for part, c in zip(parts, cached, strict=True)), pad])
        for parts in history
    ]
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    batch = Rows(
        cache_slots=torch.tensor(slots),
        query_starts=starts,
        context_lens=torch.tensor(lens, dtype=torch.int32),
        block_tables=table,
    )
    out = cpu.paged_attention(q, *new, *caches, batch, h**-0.5)
    expected = []
    for row, length in enumerate(lens):
        query = q[starts[row] : starts[row + 1]].double()
        keys, values = history[0][row].double(), history[1][row].double()
        scores = torch.einsum("nkgh,skh->nkgs", query, keys) * h**-0.5
        visible = torch.arange(length) <= torch.arange(cached[row], length)[:, None]
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        expected.append(torch.einsum("nkgs,skh->nkgh", scores.softmax(-1), values))
    assert not out[sum(queries) :].any()
    close(out[: sum(queries)], torch.cat(expected), dtype)


def test_the_registry_prefers_the_native_kernels() -> None:
    assert registry.choose("rms_norm", "cpu", torch.bfloat16).backend == "cpu"
    assert registry.choose("paged_attention", "cpu", torch.float32).backend == "cpu"
