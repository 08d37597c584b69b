# SPDX-License-Identifier: MIT
"""Latent attention in Triton against the torch reference in float64, absorbed and expanded."""

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

from tokenspeed_core.kernels import latent_attention as reference  # noqa: E402
from tokenspeed_core.kernels.triton import latent_attention as triton_latent  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALF = torch.bfloat16 if GPU else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
CASES = [  # counts, contexts, (k, h, r, c, u, s), spare tokens
    ([1], [1], (1, 8, 4, 16, 8, 4), 0),
    ([1, 1, 1], [16, 70, 17], (3, 8, 8, 40, 8, 16), 2),
    ([5, 1, 9], [5, 40, 130], (2, 8, 4, 24, 16, 8), 1),
    ([3, 2], [3, 33], (20, 8, 16, 32, 8, 16), 0),
]


def poisoned(*args, **kwargs) -> torch.Tensor:
    return torch.full_like(torch.zeros(*args, **kwargs), float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("case", CASES)
def test_latents(case, dtype: torch.dtype, monkeypatch) -> None:
    counts, contexts, (k, h, r, c, u, s), spare = case
    torch.manual_seed(random.randrange(2**31))
    count = sum(-(-context // s) for context in contexts) + 2
    free = random.sample(range(1, count), count - 1)
    width = max(-(-context // s) for context in contexts) + 1
    tables, slots, starts = [], [], [0]
    for new, context in zip(counts, contexts, strict=True):
        own = [free.pop() for _ in range(-(-context // s))]
        tables.append(own + [0] * (width - len(own)))
        slots += [own[at // s] * s + at % s for at in range(context - new, context)]
        starts.append(starts[-1] + new)
    n, real = starts[-1] + spare, starts[-1]

    def ints(values: list, kind: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=kind, device=DEVICE)

    batch = SimpleNamespace(
        cache_slots=ints(slots + [0] * spare, torch.int64),
        query_starts=ints(starts),
        context_lens=ints(contexts),
        block_tables=ints(tables),
        max_context=max(contexts),
    )

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE).to(dtype)

    inputs = [normal(n, k, h), normal(n, k, r), normal(n, c), normal(n, r)]
    weights = [normal(k, h, c), normal(k, u, c)]
    cache = normal(count, s, c + r)
    unwritten = torch.ones(count, s, dtype=torch.bool, device=DEVICE)
    for row, context in enumerate(contexts):
        at = torch.arange(context, device=DEVICE)
        unwritten[batch.block_tables[row].long()[at // s], at % s] = False
    cache[unwritten] = float("nan")  # what no request wrote must not be read
    held = cache.double()
    scale = (h + r) ** -0.5
    want = reference.latent_attention(
        *(x.double() for x in (*inputs, *weights)), held, batch, scale
    )
    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))
    got = triton_latent.latent_attention(*inputs, *weights, cache, batch, scale)
    monkeypatch.undo()
    assert (got[:real].double() - want[:real]).norm() / want[:real].norm() < TOLERANCE[dtype]
    assert not got[real:].any()
    assert torch.equal(cache[1:].isnan(), held[1:].isnan())
    assert torch.allclose(cache[1:].double().nan_to_num(), held[1:].nan_to_num())
