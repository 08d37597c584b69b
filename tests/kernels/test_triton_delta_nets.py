# SPDX-License-Identifier: MIT
"""Delta nets in Triton against the torch references in float64."""

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

from tokenspeed_core.kernels import causal_conv, delta_rule  # noqa: E402
from tokenspeed_core.kernels.triton import delta_net  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALF = torch.bfloat16 if GPU else torch.float16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
CASES = [  # new tokens and context of each request, tokens of none
    ([(1, 1)], 0),
    ([(1, 9), (1, 1), (0, 0), (1, 300)], 2),
    ([(4, 4), (1, 5), (2, 13)], 3),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(random.randrange(2**31))


def batch_of(rows: list[tuple[int, int]]) -> tuple[SimpleNamespace, int]:
    starts = [0]
    for count, _ in rows:
        starts.append(starts[-1] + count)
    blocks = random.sample(range(1, 9), len(rows))
    batch = SimpleNamespace(
        query_starts=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        context_lens=torch.tensor([c for _, c in rows], dtype=torch.int32, device=DEVICE),
        state_blocks=torch.tensor(blocks, device=DEVICE),
    )
    return batch, starts[-1]


def states_of(batch: SimpleNamespace, rows: list[tuple[int, int]], *shape: int) -> torch.Tensor:
    """Return random states; those of nobody and of requests that begin must not be read."""
    states = torch.full((9, *shape), float("nan"), device=DEVICE)
    for block, (count, context) in zip(batch.state_blocks.tolist(), rows, strict=True):
        if count != context:
            states[block] = torch.randn(*shape, device=DEVICE)
    return states


def near(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert torch.equal(got.isnan(), want.isnan())
    got, want = got.double().nan_to_num(), want.nan_to_num()
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("rows", "spare"), CASES)
def test_delta_rule(rows, spare: int, dtype: torch.dtype) -> None:
    heads, per, p, u = 2, 3, 12, 20
    batch, real = batch_of(rows)
    n = real + spare
    q, k = (torch.randn(n, heads, p, device=DEVICE) for _ in range(2))
    k = torch.nn.functional.normalize(k, dim=-1)
    v = torch.randn(n, heads, per, u, device=DEVICE).to(dtype)
    decay, beta = (
        -torch.rand(n, heads, per, device=DEVICE),
        torch.rand(n, heads, per, device=DEVICE),
    )
    states = states_of(batch, rows, heads, per, p, u)
    held = states.double()
    want = delta_rule.gated_delta_rule(
        *(x.double() for x in (q, k, v, decay, beta)), held, batch, 0.3
    )
    got = delta_net.gated_delta_rule(q, k, v, decay, beta, states, batch, 0.3)
    near(got, want, dtype)
    assert not got[real:].any()
    near(states, held, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("rows", "spare"), CASES)
@pytest.mark.parametrize("taps", [2, 4])
def test_convolution(rows, spare: int, taps: int, dtype: torch.dtype) -> None:
    batch, real = batch_of(rows)
    x = torch.randn(real + spare, 3, 30, device=DEVICE).to(dtype)
    w = torch.randn(3, 30, taps, device=DEVICE).to(dtype)
    inputs = states_of(batch, rows, 3, 30, taps - 1).to(dtype)
    held = inputs.double()
    want = causal_conv.causal_conv(x.double(), w.double(), held, batch)
    got = delta_net.causal_conv(x, w, inputs, batch)
    near(got, want, dtype)
    assert not got[real:].any()
    near(inputs, held, dtype)
