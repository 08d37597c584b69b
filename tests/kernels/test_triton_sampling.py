# SPDX-License-Identifier: MIT
"""Draws by one kernel, interpreted, against the torch reference: the same tokens."""

import random
from importlib.util import find_spec

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)
if not torch.cuda.is_available():
    from tests.kernels import interpreted  # noqa: F401
from tokenspeed_core.kernels import sampling
from tokenspeed_core.kernels.triton.sampling import draw_tokens
from tokenspeed_core.models.sampling import Choice, choose
from tokenspeed_core.ops.sampling import SamplingRows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(count: int, filtered: bool) -> SamplingRows:
    """Rows of all kinds: greedy, drawn from all, from few, from a mass, from both."""
    pick = torch.arange(count)
    some = torch.rand(count)
    return SamplingRows(
        temperature=torch.where(pick % 5 == 0, 0.0, some + 0.3).to(DEVICE),
        top_k=torch.where(filtered & (pick % 2 == 1), pick + 1, 0).int().to(DEVICE),
        top_p=torch.where(filtered & (pick % 3 > 0), some, 1.0).to(DEVICE),
        seed=torch.randint(-(2**63), 2**63 - 1, (count,)).to(DEVICE),
        position=torch.randint(0, 10**6, (count,)).int().to(DEVICE),
        logprobs=torch.zeros(count, dtype=torch.bool, device=DEVICE),
    )


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["smooth", "equal", "spread", "masked"])
def test_tokens_are_those_of_the_reference(kind: str, filtered: bool) -> None:
    torch.manual_seed(random.randrange(2**31))
    # Few rows, each by several programs or one, and many.
    count, vocabulary = random.choice([1, 3, 17]), random.choice([5, 61, 97])
    logits = torch.randn(count, vocabulary) * 3
    if kind == "equal":  # ties straddle what is kept
        logits = logits.round()
    if kind == "spread":
        logits *= 1e4
    if kind == "masked":
        logits[:, ::2] = -torch.inf
    logits = logits.to(DEVICE)
    asked = rows(count, filtered)
    values = (asked.temperature, asked.top_k, asked.top_p, asked.seed, asked.position, filtered)
    got = draw_tokens(logits, *values)
    for want in (
        sampling.draw_tokens(logits, *values),
        choose(logits, asked, Choice(True, filtered), vocabulary).flip(-1),
    ):
        assert got[:, 1].tolist() == want[:, 1].tolist()
    assert torch.allclose(got[:, 0], sampling.draw_tokens(logits, *values)[:, 0], rtol=1e-12)


def test_rows_that_are_not_finite_have_no_score() -> None:
    logits = torch.randn(4, 33)
    logits[0, 3] = torch.nan
    logits[1, 5] = torch.inf
    logits[2] = -torch.inf
    asked = rows(4, True)
    values = (asked.temperature, asked.top_k, asked.top_p, asked.seed, asked.position)
    pairs = draw_tokens(logits.to(DEVICE), *values, True)
    assert pairs[:, 0].isfinite().tolist() == [False, False, False, True]
    assert sampling.chosen(pairs)[:3, 0].tolist() == [-1, -1, -1]


def test_no_rows() -> None:
    nothing = rows(0, False)
    values = (nothing.temperature, nothing.top_k, nothing.top_p, nothing.seed, nothing.position)
    assert draw_tokens(torch.empty(0, 7, device=DEVICE), *values, False).shape == (0, 2)
