# SPDX-License-Identifier: MIT
"""Delta nets' references against the recurrence written element by element, in float64."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenspeed_core import ops  # noqa: F401  (registers every backend)
from tokenspeed_core.kernels.delta_rule import chunked, recurrent
from tokenspeed_core.kernels.registry import choose

L, W, P, V = 2, 3, 4, 5  # key heads, value heads a key head, key dim, value dim


def reference(op: str):
    return choose(op, "cpu", torch.float64, "torch").run


def plain(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One value head at a time, with matrices and vectors only."""
    out, state = torch.zeros_like(v), state.clone()
    for key_head in range(L):
        for value_head in range(W):
            s = state[key_head, value_head]
            for t in range(len(q)):
                here = (t, key_head, value_head)
                s = s * torch.exp(decay[here])
                s = s + torch.outer(k[t, key_head], beta[here] * (v[here] - s.T @ k[t, key_head]))
                out[here] = s.T @ q[t, key_head]
            state[key_head, value_head] = s
    return out, state


def drawn(tokens: int, seed: int, fade: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)

    k = torch.nn.functional.normalize(normal(tokens, L, P), dim=-1)
    decay = -torch.rand(tokens, L, W, generator=make, dtype=torch.float64).to(dtype) * fade
    beta = normal(tokens, L, W).sigmoid()
    return normal(tokens, L, P), k, normal(tokens, L, W, V), decay, beta, normal(L, W, P, V)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 200),
    chunk=st.sampled_from([1, 5, 64]),
    fade=st.sampled_from([0.0, 0.1, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_both_forms_are_the_recurrence(tokens: int, chunk: int, fade: float, seed: int) -> None:
    operands = drawn(tokens, seed, fade, torch.float64)
    expected = plain(*operands)
    for found in (recurrent(*operands), chunked(*operands, chunk=chunk)):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [recurrent, chunked])
def test_float32_stays_near_the_recurrence_over_many_chunks(form) -> None:
    operands = drawn(700, 3, 0.05, torch.float64)
    expected = plain(*operands)
    found = form(*(x.float() for x in operands))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_strong_decay_neither_overflows_nor_divides_by_zero() -> None:
    q, k, v, decay, beta, state = drawn(128, 5, 1.0, torch.float32)
    out, after = chunked(q, k, v, decay - 300.0, beta, state)
    assert out.isfinite().all()
    alone = torch.einsum("lp,lwo->lwpo", k[-1], beta[-1].unsqueeze(-1) * v[-1])
    torch.testing.assert_close(after, alone)


@settings(deadline=None, max_examples=30)
@given(
    queries=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    cached=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    padding=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_a_step_reads_and_writes_the_states_of_its_rows(
    queries: list[int], cached: list[int], padding: int, seed: int
) -> None:
    total = sum(queries)
    blocks = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[: len(queries)]
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()])
    lens = torch.tensor([c + q for c, q in zip(cached, queries, strict=False)])
    batch = SimpleNamespace(query_starts=starts, context_lens=lens, state_blocks=blocks)
    q, k, v, decay, beta, _ = drawn(total + padding, seed, 0.5, torch.float64)
    states = torch.randn(6, L, W, P, V, dtype=torch.float64)
    before = states.clone()
    out = reference("gated_delta_rule")(q, k, v, decay, beta, states, batch, 0.25)
    for row, block in enumerate(blocks.tolist()):
        here = slice(int(starts[row]), int(starts[row + 1]))
        if queries[row] == 0:
            assert torch.equal(states[block], before[block])
            continue
        begin = before[block] if cached[row] else torch.zeros_like(before[block])
        rows = (x[here] for x in (q, k, v, decay, beta))
        expected, after = plain(*rows, begin)
        torch.testing.assert_close(out[here], expected * 0.25)
        torch.testing.assert_close(states[block], after)
    others = [b for b in range(6) if b not in blocks.tolist()]
    assert torch.equal(states[others], before[others])
    assert not out[total:].any()


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4), taps=st.integers(2, 5))
def test_a_convolution_in_pieces_is_the_whole_one(cuts: list[int], taps: int) -> None:
    total = sum(cuts)
    x = torch.randn(total, 3, 2, dtype=torch.float64)
    w = torch.randn(3, 2, taps, dtype=torch.float64)
    padded = torch.cat((torch.zeros(taps - 1, 3, 2, dtype=torch.float64), x))
    expected = torch.stack(
        [sum(padded[t + i] * w[..., i] for i in range(taps)) for t in range(total)]
    )
    expected = expected * expected.sigmoid()
    inputs = torch.randn(2, 3, 2, taps - 1, dtype=torch.float64)
    found, done = [], 0
    for count in cuts:
        batch = SimpleNamespace(
            query_starts=torch.tensor([0, count]),
            context_lens=torch.tensor([done + count]),
            state_blocks=torch.tensor([1]),
        )
        found.append(reference("causal_conv")(x[done : done + count], w, inputs, batch))
        done += count
    torch.testing.assert_close(torch.cat(found), expected)
    torch.testing.assert_close(inputs[1].movedim(-1, 0), padded[total : total + taps - 1])


def test_gates_are_negative_logarithms_and_rates() -> None:
    a, b = torch.randn(4, L, W).bfloat16(), torch.randn(4, L, W).bfloat16()
    a_log, dt_bias = torch.randn(L, W), torch.randn(L, W)
    decay, beta = reference("delta_gates")(a, b, a_log, dt_bias)
    assert decay.dtype == beta.dtype == torch.float32
    expected = -a_log.exp() * (1 + (a.float() + dt_bias).exp()).log()
    torch.testing.assert_close(decay, expected)
    assert (decay <= 0).all()
    assert torch.equal(beta.bfloat16().float(), beta), "rounded to the model's dtype, then widened"


def test_norms_of_keys_and_results() -> None:
    x, z, w = torch.randn(3, 2, 4).double(), torch.randn(3, 2, 4).double(), torch.randn(4).double()
    unit = reference("l2_norm")(x, 0.0)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3, 2).double())
    got = reference("gated_rms_norm")(x, z, w, 1e-6)
    torch.testing.assert_close(got, reference("rms_norm")(x, w, 1e-6) * z * z.sigmoid())
