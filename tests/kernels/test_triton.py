# SPDX-License-Identifier: MIT
"""Triton kernels against the torch references in float64, on odd sizes and fresh random data.

Without a GPU they run in Triton's interpreter, which has no bfloat16 products: float16 stands in.
"""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)
GPU = torch.cuda.is_available()
if not GPU:
    from tests.kernels import interpreted  # noqa: F401

from tokenspeed_core.kernels import (  # noqa: E402
    decode_columns,
    embedding,
    experts,
    paged_attention,
    rms_norm,
    rope,
    router,
    silu_mul,
)
from tokenspeed_core.kernels.triton import (  # noqa: E402
    attention,
    columns,
    expert_order,
    linear,
    norm,
    pointwise,
)
from tokenspeed_core.kernels.triton import experts as triton_experts  # noqa: E402
from tokenspeed_core.kernels.triton import router as triton_router  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALF = torch.bfloat16 if GPU else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
DTYPES = [torch.float32, HALF]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(random.randrange(2**31))


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def assert_near(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    error = (got.double() - want).norm() / want.norm()
    assert torch.isfinite(got).all()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "o", "i"), [(1, 66, 100), (2, 64, 256), (16, 34, 48), (17, 34, 48)])
def test_projections(n: int, o: int, i: int, dtype: torch.dtype) -> None:
    x, w, gain = normal(n, i, dtype=dtype), normal(o, i, dtype=dtype), normal(i, dtype=dtype)
    residual = normal(n, o, dtype=dtype)
    wide = x.double() @ w.double().T
    normed = rms_norm.rms_norm(x.double(), gain.double(), 1e-6) @ w.double().T
    assert_near(linear.linear(x, w), wide, dtype)
    assert_near(linear.norm_linear(x, gain, w, 1e-6), normed, dtype)
    assert_near(linear.linear_add(x, w, residual), wide + residual, dtype)
    gated = silu_mul.silu_mul(normed)
    assert_near(linear.norm_gate_up(x, gain, w, 1e-6), gated, dtype)


def test_a_split_product_leaves_its_counters_at_zero() -> None:
    from tokenspeed_core.kernels.triton.device import counters

    x, w = normal(3, 512, dtype=torch.float32), normal(32, 512, dtype=torch.float32)
    want = x.double() @ w.double().T
    for _ in range(3):
        assert_near(linear.linear(x, w), want, torch.float32)
    assert not counters(x).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(dtype: torch.dtype) -> None:
    x, w = normal(5, 7, 40, dtype=dtype), normal(40, dtype=dtype)
    assert_near(norm.rms_norm(x, w, 1e-6), rms_norm.rms_norm(x.double(), w.double(), 1e-6), dtype)
    got = norm.add_rms_norm(x[:, 0], x[:, 1], w, 1e-6)
    want = rms_norm.add_rms_norm(x[:, 0].double(), x[:, 1].double(), w.double(), 1e-6)
    assert_near(got[0], want[0], dtype)
    assert_near(got[1], want[1], dtype)
    assert_near(pointwise.silu_mul(x[:, 0]), silu_mul.silu_mul(x[:, 0].double()), dtype)
    cos, sin = torch.randn(2, 5, 40, device=DEVICE)
    for part in (x, x[:, :3], x[:, 0]):
        assert_near(pointwise.rope(part, cos, sin), rope.rope(part.double(), cos, sin), dtype)
        want = rope.rope_pairs(part.double(), cos, sin)
        assert_near(pointwise.rope_pairs(part, cos, sin), want, dtype)
    tokens = torch.tensor([3, 4, 13, 25, 14], device=DEVICE, dtype=torch.int32)
    table = normal(10, 40, dtype=dtype)
    assert torch.equal(pointwise.embedding(tokens, table, 4), embedding.embedding(tokens, table, 4))


def batch_of(
    counts: list[int], contexts: list[int], size: int, blocks: int, spare: tuple[int, int], dec: int
) -> SimpleNamespace:
    """Return columns of requests with blocks in random order, and spare tokens and requests."""
    free = random.sample(range(1, blocks), blocks - 1)
    width = max(-(-context // size) for context in contexts) + 1
    tables, slots, starts = [], [], [0]
    for count, context in zip(counts, contexts, strict=True):
        own = [free.pop() for _ in range(-(-context // size))]
        tables.append(own + [0] * (width - len(own)))
        slots += [own[at // size] * size + at % size for at in range(context - count, context)]
        starts.append(starts[-1] + count)
    tokens, requests = spare
    tables += [[0] * width] * requests

    def ints(values: list, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    return SimpleNamespace(
        cache_slots=ints(slots + [0] * tokens, torch.int64),
        query_starts=ints(starts + [starts[-1]] * requests),
        context_lens=ints([*contexts, *[0] * requests]),
        block_tables=ints(tables),
        num_rows=len(counts),
        num_decode_rows=dec,
        max_query=max(counts),
        max_context=max(contexts),
        shared_parts=None,
        shared_rows=None,
        most_parts=0,
    )


CASES = [  # counts, contexts, (k, g, h, s), (spare tokens, requests), decode rows, window
    ([1], [1], (1, 1, 16, 4), (0, 0), 1, 0),
    ([1, 1, 1], [1, 16, 333], (2, 3, 16, 16), (0, 0), 3, 0),
    ([1, 1], [17, 150], (2, 4, 32, 16), (2, 1), 2, 0),
    ([1, 1], [17, 150], (2, 4, 24, 16), (0, 0), 2, 20),
    ([5, 1, 9], [5, 40, 30], (2, 3, 16, 16), (3, 1), 0, 0),
    ([1, 1, 7, 3], [33, 8, 40, 3], (1, 4, 16, 8), (1, 0), 2, 0),
    ([7, 3], [40, 3], (1, 4, 24, 8), (0, 1), 0, 6),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("ranges", "gathered"),
    [(None, False), (3, False), (3, True), pytest.param(None, True, marks=pytest.mark.soak)],
)
def test_attention(
    case, dtype: torch.dtype, ranges: int | None, gathered: bool, monkeypatch
) -> None:
    counts, contexts, (k, g, h, s), spare, dec, window = case
    if ranges or gathered:
        if counts == [1] * len(counts) or dtype == HALF:
            pytest.skip("decoding splits by itself; one dtype is enough")
        if gathered:
            monkeypatch.setattr(attention, "GATHER_TOKENS", 1)
    if ranges:
        monkeypatch.setattr(attention, "_extend_splits", lambda *args: ranges)
        monkeypatch.setattr(attention, "PART_KEYS", random.choice((1, 16, 64)))
        empty = torch.empty

        def poisoned(*shape, **options):  # what no part wrote must not be read
            x = empty(*shape, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        monkeypatch.setattr(torch, "empty", poisoned)
    blocks = sum(-(-context // s) for context in contexts) + 2
    batch = batch_of(counts, contexts, s, blocks, spare, dec)
    n = sum(counts) + spare[0]
    scale = h**-0.5
    caches = [normal(blocks, k, s, h, dtype=dtype) for _ in range(2)]
    for cache in caches:  # what no request wrote must not be read
        written = torch.zeros(blocks * s, dtype=torch.bool, device=DEVICE)
        for row, context in enumerate(contexts):
            at = torch.arange(context, device=DEVICE)
            written[batch.block_tables[row].long()[at // s] * s + at % s] = True
        cache.transpose(1, 2)[~written.view(blocks, s)] = float("nan")
    # Fused: heads are normed and rotated on the way.
    qkv = normal(n, (k * g + 2 * k) * h, dtype=dtype)
    gains = normal(2, h, dtype=dtype) if g > 1 else (None, None)
    width = h // 2 if h == 32 else h
    angles = torch.rand(n, width // 2, device=DEVICE).repeat(1, 2) * 6
    wide = qkv.double()
    q = wide[:, : k * g * h].view(n, k, g, h)
    key, value = wide[:, k * g * h :].view(n, 2, k, h).unbind(1)
    heads = []
    for x, gain in zip((q, key), gains, strict=True):
        if gain is not None:
            x = rms_norm.rms_norm(x, gain.double(), 1e-6)
        turned = rope.rope(x[..., :width], angles.cos().double(), angles.sin().double())
        heads.append(torch.cat((turned, x[..., width:]), -1))
    own, held = [x.clone() for x in caches], [x.double() for x in caches]
    want = paged_attention.paged_attention(*heads, value, *held, batch, scale, window)
    got = attention.rope_attention(
        qkv, *gains, angles.cos(), angles.sin(), *own, batch, scale, window, 1e-6
    )
    assert_near(got, want, dtype)
    assert not got[sum(counts) :].any()
    for mine, theirs in zip(own, held, strict=True):
        at = ~theirs[1:].isnan()
        assert_near(mine[1:][at], theirs[1:][at], dtype)
    # Plain, with sinks.
    q, key, value = (normal(n, *each, h, dtype=dtype) for each in ((k, g), (k,), (k,)))
    sinks = normal(k, g, dtype=dtype)
    own, held = [x.clone() for x in caches], [x.double() for x in caches]
    plain = (q, key, value)
    want = paged_attention.paged_attention(
        *(x.double() for x in plain), *held, batch, scale, window, sinks.double()
    )
    got = attention.paged_attention(*plain, *own, batch, scale, window, sinks)
    assert_near(got, want, dtype)


@pytest.mark.skipif(not GPU, reason="an interpreter has no tensor cores")
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize(
    ("counts", "contexts", "k", "g"),
    [
        ([2100], [2100], 2, 1),
        ([700], [6001], 2, 4),
        ([256, 1, 300], [256, 2000, 3333], 1, 5),
        ([300, 513], [20000, 513], 1, 7),
        ([400], [2048], 2, 8),
        ([300, 290], [2345, 290], 1, 16),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_tokens_over_gathered_keys(
    counts: list[int], contexts: list[int], k: int, g: int, sunk: bool, dtype: torch.dtype
) -> None:
    s, h, n = 16, 128, sum(counts) + 3
    blocks = sum(-(-context // s) for context in contexts) + 2
    batch = batch_of(counts, contexts, s, blocks, (3, 1), 0)
    caches = [normal(blocks, k, s, h, dtype=dtype) for _ in range(2)]
    for cache in caches:
        for row, context in enumerate(contexts):
            block = int(batch.block_tables[row, (context - 1) // s])
            cache[block, :, (context - 1) % s + 1 :] = float("nan")
    plain = [normal(n, *each, h, dtype=dtype) for each in ((k, g), (k,), (k,))]
    sinks = normal(k, g, dtype=dtype) if sunk else None
    held = [x.double() for x in caches]
    wide = [x.double() for x in plain]
    want = paged_attention.paged_attention(*wide, *held, batch, h**-0.5, 0, sinks)
    for _ in range(3):
        torch.full((64 << 20,), float("nan"), device=DEVICE)  # what memory was, nobody may read
        got = attention.paged_attention(*plain, *caches, batch, h**-0.5, 0, sinks)
        assert_near(got, want, dtype)
        assert not got[sum(counts) :].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "start", "here"), [(1, 0, 6), (5, 2, 3), (9, 3, 2), (40, 0, 6), (40, 1, 4)]
)
def test_experts(n: int, start: int, here: int, dtype: torch.dtype) -> None:
    d, j, active = 40, 36, 3
    x, logits = normal(n, d, dtype=dtype), normal(n, 6, dtype=dtype)
    logits[0] = logits[0, 0]  # a tie of all
    ids, weights = triton_router.softmax_router(logits, active, True, factor=1.5)
    want_ids, want_weights = router.softmax_router(logits, active, True, factor=1.5)
    assert torch.equal(ids, want_ids)
    assert_near(weights, want_weights.double(), dtype)
    gate, up = (normal(here, j, d, dtype=dtype) for _ in range(2))
    down = normal(here, d, j, dtype=dtype)
    want = experts.experts(
        x.double(), ids, weights.double(), gate.double(), up.double(), down.double(), start
    )
    got = triton_experts.experts(x, ids, weights, gate, up, down, start)
    assert_near(got, want, dtype)


@pytest.mark.parametrize(("total", "start", "here"), [(1, 0, 3), (31, 2, 5), (300, 0, 40)])
def test_assignments_are_ordered_as_a_stable_sort_orders_them(
    total: int, start: int, here: int
) -> None:
    ids = torch.randint(9 if here < 9 else here, (total, 1), dtype=torch.int32, device=DEVICE)
    order, ends = expert_order.by_expert(ids, start, here)
    own = [int(e) - start if start <= e < start + here else here for e in ids.flatten().tolist()]
    assert order.tolist() == sorted(range(total), key=lambda i: own[i])
    assert ends.tolist() == [sum(each <= e for each in own) for e in range(here)]
    library = expert_order._sorted(ids, start, here)
    assert torch.equal(order, library[0])
    assert torch.equal(ends, library[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 17])
def test_experts_with_norm_and_residual(n: int, dtype: torch.dtype) -> None:
    """The router reads one input an expert, exactly, so that both sides choose alike."""
    d, j, active = 40, 36, 2
    x, gain = normal(n, d, dtype=dtype), normal(d, dtype=dtype)
    w_router = torch.zeros(5, d, device=DEVICE, dtype=dtype)
    w_router[torch.arange(5), torch.randperm(d)[:5]] = 4
    gate, up = (normal(5, j, d, dtype=dtype) for _ in range(2))
    down = normal(5, d, j, dtype=dtype)
    got = triton_experts.norm_moe_add(x, gain, w_router, gate, up, down, active, True, 1e-6)
    wide = [w.double() for w in (x, gain, w_router, gate, up, down)]
    normed = rms_norm.rms_norm(wide[0], wide[1], 1e-6)
    ids, weights = router.softmax_router(normed @ wide[2].T, active, True)
    want = wide[0] + experts.experts(normed, ids, weights, *wide[3:])
    assert_near(got, want, dtype)


@pytest.mark.parametrize(("rows", "width", "size"), [(1, 3, 4), (5, 2000, 16), (16, 1024, 1)])
def test_columns_of_a_decode_step(rows: int, width: int, size: int) -> None:
    slots = torch.randint(20, (rows,), dtype=torch.int32)
    lens = torch.randint(1, width * size + 1, (rows,), dtype=torch.int32)
    lens[0] = width * size
    last_token = torch.randint(1 << 20, (20,), dtype=torch.int32)
    table = torch.randint(1 << 30, (20, width), dtype=torch.int32)
    args = [x.to(DEVICE) for x in (slots, lens, last_token, table)]
    got = columns.decode_columns(*args, size)
    want = decode_columns.decode_columns(*args, size)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
