# SPDX-License-Identifier: MIT
"""Sampling against its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.kernels.sampling import SamplingRows, sample, uniforms


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
        temperature=np.full(m, temperature, np.float32),
        top_k=np.full(m, top_k, np.int32),
        top_p=np.full(m, top_p, np.float32),
        seed=np.full(m, seed, np.uint64),
        position=np.arange(position, position + m, dtype=np.int32),
        logprobs=np.full(m, logprobs),
    )


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(5, 100)
    tokens, logprobs = sample(logits, rows(5, temperature=0.0))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert np.isnan(logprobs).all()


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    m = 20_000
    tokens, _ = sample(logits.repeat(m, 1), rows(m, temperature=0.7, seed=9))
    seen = np.bincount(tokens, minlength=5) / m
    assert np.abs(seen - (logits / 0.7).softmax(-1).numpy()).max() < 0.015


@settings(deadline=None, max_examples=100)
@given(
    st.integers(2, 50),
    st.integers(0, 12),
    st.floats(0.01, 1.0),
    st.floats(0.1, 3.0),
    st.integers(0, 2**64 - 1),
)
def test_only_kept_tokens_are_drawn(
    vocabulary: int, top_k: int, top_p: float, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    logits = torch.randn(vocabulary, generator=generator)
    drawn, _ = sample(logits.repeat(200, 1), rows(200, temperature, top_k, top_p, seed))
    ranked = (logits / np.float32(temperature)).sort(dim=-1, descending=True, stable=True)
    kept = ranked.values[: top_k or vocabulary].double().softmax(-1)
    before = kept.cumsum(-1) - kept
    # A token whose preceding mass equals top_p up to rounding may fall on either side.
    allowed = ranked.indices[: len(kept)][before < np.float32(top_p) + 1e-6]
    assert set(drawn.tolist()) <= set(allowed.tolist()) | {int(ranked.indices[0])}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(1, 16))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int, m: int) -> None:
    generator = torch.Generator().manual_seed(1)
    row = torch.randn(300, generator=generator)
    batch = torch.randn(m, 300, generator=generator)
    batch[m - 1] = row
    alone, _ = sample(row[None], rows(1, seed=seed, position=position))
    params = rows(m, seed=3)
    params.seed[m - 1] = np.uint64(seed)
    params.position[m - 1] = position
    assert sample(batch, params)[0][m - 1] == alone[0]


def test_uniforms_are_uniform_and_distinct() -> None:
    seeds = np.arange(50_000, dtype=np.uint64)
    u = uniforms(seeds, np.zeros(50_000, np.int32))
    assert (u >= 0).all()
    assert (u < 1).all()
    assert len(np.unique(u)) == len(u)
    counts = np.histogram(u, 20, (0, 1))[0]
    assert np.abs(counts - 2500).max() < 300


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(4, 64) * 3
    tokens, logprobs = sample(logits, rows(4, temperature=0.5, top_k=5, logprobs=True))
    expected = logits.log_softmax(-1)[torch.arange(4), torch.from_numpy(tokens).long()]
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_fails_alone(temperature: float, bad: float) -> None:
    logits = torch.randn(3, 64)
    clean, _ = sample(logits, rows(3, temperature))
    logits[1, 7] = bad
    tokens, _ = sample(logits, rows(3, temperature))
    assert tokens[1] == -1
    assert tokens[[0, 2]].tolist() == clean[[0, 2]].tolist()
