# SPDX-License-Identifier: MIT
"""Sampling against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenspeed_core.kernels.sampling import uniforms
from tokenspeed_core.models.sampling import sample
from tokenspeed_core.ops.sampling import SamplingRows

CRITICAL_99_9 = {4: 18.5, 19: 43.8, 49: 85.4}  # of chi-square, by degrees of freedom


def rows(
    m: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    position: int = 0,
    logprobs: bool = False,
) -> SamplingRows:
    """m equal rows at successive positions."""
    return SamplingRows(
        temperature=torch.full((m,), temperature),
        top_k=torch.full((m,), top_k, dtype=torch.int32),
        top_p=torch.full((m,), top_p),
        seed=torch.from_numpy(np.full(m, seed, np.uint64).view(np.int64)),
        position=torch.arange(position, position + m, dtype=torch.int32),
        logprobs=torch.full((m,), logprobs),
    )


def kept(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution that is sampled, by its definition: a stable sort, most likely first."""
    ranked = (logits.double() / temperature).sort(descending=True, stable=True)
    p = ranked.values[: top_k or len(logits)].softmax(-1)
    p = p * (p.cumsum(-1) - p < top_p)
    result = torch.zeros(len(logits), dtype=torch.float64)
    result[ranked.indices[: len(p)]] = p / p.sum()
    return result


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(5, 100)
    tokens, logprobs = sample(logits, rows(5, temperature=0.0))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert logprobs.isnan().all()


@pytest.mark.parametrize(
    ("vocabulary", "temperature", "top_k", "top_p"),
    [
        (5, 0.7, 0, 1.0),
        (50, 1.0, 0, 1.0),
        (50, 1.3, 20, 1.0),
        (50, 1.0, 0, 0.8),
        (50, 2.0, 30, 0.9),
    ],
)
def test_frequencies_follow_the_distribution(
    vocabulary: int, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(vocabulary, generator=generator)
    expected = kept(logits, temperature, top_k, top_p)
    m = 10_000
    tokens, _ = sample(logits.repeat(m, 1), rows(m, temperature, top_k, top_p, seed=9))
    seen = torch.bincount(tokens, minlength=vocabulary).double()
    assert not seen[expected == 0].any()
    some = expected > 0
    chi = ((seen - m * expected)[some] ** 2 / (m * expected)[some]).sum()
    freedom = min(f for f in CRITICAL_99_9 if f >= int(some.sum()) - 1)
    assert chi < CRITICAL_99_9[freedom]


@settings(deadline=None, max_examples=100)
@given(
    st.integers(2, 50),
    st.integers(0, 12),
    st.floats(0.01, 1.0),
    st.floats(0.1, 3.0),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_only_kept_tokens_are_drawn(
    vocabulary: int, top_k: int, top_p: float, temperature: float, seed: int, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    logits = torch.randn(vocabulary, generator=generator)
    logits = logits.round() if ties else logits
    drawn, _ = sample(logits.repeat(200, 1), rows(200, temperature, top_k, top_p, seed))
    # A token whose preceding mass equals top_p up to rounding may fall on either side.
    allowed = kept(logits, float(np.float32(temperature)), top_k, float(np.float32(top_p)) + 1e-6)
    assert (allowed[drawn.long()] > 0).all()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(1, 16))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int, m: int) -> None:
    generator = torch.Generator().manual_seed(1)
    row = torch.randn(300, generator=generator)
    batch = torch.randn(m, 300, generator=generator)
    batch[m - 1] = row
    one = rows(1, seed=seed, position=position)
    alone, _ = sample(row[None], one)
    params = rows(m, seed=3)
    params.seed[m - 1] = one.seed[0]
    params.position[m - 1] = position
    assert sample(batch, params)[0][m - 1] == alone[0]


def test_uniforms_are_uniform_and_distinct() -> None:
    """Over tokens of a row, over positions of a seed, and over seeds."""
    many = torch.arange(50_000)
    one = torch.tensor([7])
    for seeds, positions, tokens in (
        (many, 0 * many, one),
        (0 * many, many, one),
        (one, one, many),
    ):
        u = uniforms(seeds, positions, tokens).flatten().numpy()
        assert u.min() > 0
        assert u.max() < 1
        assert len(np.unique(u)) == len(u)
        counts = np.histogram(u, 20, (0, 1))[0]
        assert ((counts - 2500) ** 2 / 2500).sum() < CRITICAL_99_9[19]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(4, 64) * 3
    tokens, logprobs = sample(logits, rows(4, temperature=0.5, top_k=5, logprobs=True))
    expected = logits.log_softmax(-1)[torch.arange(4), tokens.long()]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("nan")])
def test_a_row_that_is_not_finite_fails_alone(temperature: float, top_p: float, bad: float) -> None:
    logits = torch.randn(3, 64)
    clean, _ = sample(logits, rows(3, temperature, top_p=top_p))
    logits[1, 7] = bad
    tokens, _ = sample(logits, rows(3, temperature, top_p=top_p))
    assert tokens[1] == -1
    assert tokens[[0, 2]].tolist() == clean[[0, 2]].tolist()
