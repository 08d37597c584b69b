# SPDX-License-Identifier: MIT
"""Decode attention that reads shared blocks once, against the torch reference in float64."""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)
GPU = torch.cuda.is_available()
if not GPU:
    from tests.kernels import interpreted  # noqa: F401

from tokenspeed_core import shared_prefix  # noqa: E402
from tokenspeed_core.kernels import paged_attention, rms_norm, rope  # noqa: E402
from tokenspeed_core.kernels.triton import attention  # noqa: E402
from tokenspeed_core.kernels.triton.device import counters  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALF = torch.bfloat16 if GPU else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
SIZE = 4


def tree(shape: list[tuple[int, list[int]]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return tables [r, t], lengths [r] and the count of blocks.

    `shape` has the blocks under a common root of each child, and its rows' own tokens.
    """
    free = iter(random.sample(range(1, 400), 399))
    root = [next(free) for _ in range(9)]
    rows = []
    for blocks, owns in shape:
        path = root + [next(free) for _ in range(blocks)]
        rows += [
            (path + [next(free) for _ in range(-(-own // SIZE))], len(path) * SIZE + own)
            for own in owns
        ]
    random.shuffle(rows)
    tables = np.zeros((len(rows), max(len(blocks) for blocks, _ in rows) + 1), np.int32)
    for at, (blocks, _) in enumerate(rows):
        tables[at, : len(blocks)] = blocks
    return tables, np.array([length for _, length in rows], np.int32), 400


def poisoned(*args, **kwargs) -> torch.Tensor:
    return torch.full_like(torch.zeros(*args, **kwargs), float("nan"))


@pytest.mark.parametrize(
    ("shape", "k", "g", "h", "spare", "dtype"),
    [
        ([(0, [1, 5, 23, 4])], 2, 3, 16, 0, torch.float32),
        ([(0, [1, 5, 23, 4])], 2, 3, 16, 0, HALF),
        ([(6, [3, 1, 30]), (5, [9, 2, 4, 4]), (0, [1])], 1, 4, 24, 2, torch.float32),
        ([(3, [2] * 9), (4, [70] * 10)], 1, 4, 32, 1, HALF),
    ],
)
def test_shared_blocks_are_read_once(shape, k, g, h, spare, dtype, monkeypatch) -> None:
    for name, value in (("MIN_SAVED", 8), ("MIN_ROWS", 2), ("MIN_PART", 8)):
        monkeypatch.setattr(shared_prefix, name, value)
    torch.manual_seed(random.randrange(2**31))
    tables, lens, blocks = tree(shape)
    found = shared_prefix.SharedPrefix.of(tables, lens, SIZE, 9, 7)
    assert found is not None
    requests = len(lens)
    n = requests + spare
    rows, parts = np.zeros((n, 3), np.int32), np.zeros((12, 5), np.int32)
    rows[:requests], parts[: len(found.parts)] = found.rows, found.parts

    def there(values, dtype=torch.int32) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=DEVICE)

    wide = np.concatenate((tables, np.zeros((spare, tables.shape[1]), np.int32)))
    last = [tables[row, (at - 1) // SIZE] * SIZE + (at - 1) % SIZE for row, at in enumerate(lens)]
    batch = SimpleNamespace(
        cache_slots=there([*last, *[0] * spare], torch.int64),
        query_starts=there(range(n + 1)),
        context_lens=there([*lens, *[1] * spare]),
        block_tables=there(wide),
        num_rows=requests,
        num_decode_rows=n,
        max_query=1,
        max_context=int(lens.max()),
        shared_parts=there(parts),
        shared_rows=there(rows),
        most_parts=7,
    )
    caches = [torch.randn(blocks, k, SIZE, h, device=DEVICE).to(dtype) for _ in range(2)]
    for cache in caches:  # what no request wrote must not be read
        unwritten = torch.ones(blocks, SIZE, dtype=torch.bool, device=DEVICE)
        for row, length in enumerate(lens):
            at = torch.arange(length, device=DEVICE)
            unwritten[batch.block_tables[row].long()[at // SIZE], at % SIZE] = False
        cache.transpose(1, 2)[unwritten] = float("nan")
    qkv = torch.randn(n, (k * g + 2 * k) * h, device=DEVICE).to(dtype)
    gains = torch.randn(2, h, device=DEVICE).to(dtype)
    angles = torch.rand(n, h // 2, device=DEVICE).repeat(1, 2) * 6
    q, key, value = qkv.double().split([k * g * h, k * h, k * h], 1)
    q, key, value = q.view(n, k, g, h), key.view(n, k, h), value.view(n, k, h)
    turned = [
        rope.rope(
            rms_norm.rms_norm(x, gain.double(), 1e-6), angles.cos().double(), angles.sin().double()
        )
        for x, gain in ((q, gains[0]), (key, gains[1]))
    ]
    held = [cache.double() for cache in caches]
    want = paged_attention.paged_attention(*turned, value, *held, batch, h**-0.5)
    monkeypatch.setattr(torch, "empty", poisoned)
    got = attention.rope_attention(
        qkv, *gains, angles.cos(), angles.sin(), *caches, batch, h**-0.5, 0, 1e-6
    )
    real = slice(requests)
    error = (got[real].double() - want[real]).norm() / want[real].norm()
    assert error < TOLERANCE[dtype]
    assert not counters(got).any()
    # Sinks, and heads that are turned already.
    sinks = torch.randn(k, g, device=DEVICE).to(dtype)
    plain = [x.to(dtype) for x in (*turned, value)]
    want = paged_attention.paged_attention(
        *(x.double() for x in plain), *held, batch, h**-0.5, 0, sinks.double()
    )
    got = attention.paged_attention(*plain, *caches, batch, h**-0.5, 0, sinks)
    assert (got[real].double() - want[real]).norm() / want[real].norm() < TOLERANCE[dtype]
