# SPDX-License-Identifier: MIT
"""Latent attention's references: two forms, one meaning, and a cache of one row a token."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenspeed_core import ops  # noqa: F401  (registers every backend)
from tokenspeed_core.kernels.latent_attention import absorbed, absorbed_is_cheaper, expanded
from tokenspeed_core.kernels.registry import choose

K, H, R, C, U, SLOTS = 2, 3, 4, 6, 5, 4


def reference(op: str):
    return choose(op, "cpu", torch.float64, "torch").run


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(cached=st.integers(0, 9), queries=st.integers(1, 9))
def test_both_forms_are_attention_over_expanded_heads(cached: int, queries: int) -> None:
    total = cached + queries
    qh, qr = normal(queries, K, H), normal(queries, K, R)
    latents, kr, w_key, w_value = (
        normal(total, C),
        normal(total, R),
        normal(K, H, C),
        normal(K, U, C),
    )
    ahead = torch.arange(total) > torch.arange(cached, total)[:, None]
    expected = torch.zeros(queries, K, U, dtype=torch.float64)
    for head in range(K):
        keys = torch.cat((latents @ w_key[head].T, kr), dim=-1)
        for q in range(queries):
            seen = slice(0, cached + q + 1)
            logits = keys[seen] @ torch.cat((qh[q, head], qr[q, head])) * 0.3
            expected[q, head] = logits.softmax(0) @ (latents[seen] @ w_value[head].T)
    operands = (qh, qr, latents, kr, w_key, w_value, ahead, 0.3)
    torch.testing.assert_close(absorbed(*operands), expected)
    torch.testing.assert_close(expanded(*operands), expected)


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    padding=st.integers(0, 2),
)
def test_a_request_in_pieces_is_the_whole_request(cuts: list[int], padding: int) -> None:
    total = sum(cuts)
    qh, qr = normal(total, K, H), normal(total, K, R)
    latent, kr, w_key, w_value = (
        normal(total, C),
        normal(total, R),
        normal(K, H, C),
        normal(K, U, C),
    )
    ahead = torch.ones(total, total).triu(1).bool()
    expected = expanded(qh, qr, latent, kr, w_key, w_value, ahead, 0.3)
    cache = normal(8, SLOTS, C + R)
    table = torch.tensor([[7, 2, 5, 3, 6, 1]])
    done = 0
    for count in cuts:
        at = torch.arange(done, done + count)
        slots = torch.cat((table[0, at // SLOTS] * SLOTS + at % SLOTS, torch.zeros(padding).long()))
        batch = SimpleNamespace(
            cache_slots=slots,
            query_starts=torch.tensor([0, count]),
            context_lens=torch.tensor([done + count]),
            block_tables=table,
        )
        here = (torch.cat((x[at], normal(padding, *x.shape[1:]))) for x in (qh, qr, latent, kr))
        got = reference("latent_attention")(*here, w_key, w_value, cache, batch, 0.3)
        torch.testing.assert_close(got[:count], expected[at])
        assert not got[count:].any()
        done += count
    stored = cache[table[0]].flatten(0, 1)[:total]
    torch.testing.assert_close(stored, torch.cat((latent, kr), dim=-1))


@pytest.mark.parametrize(
    ("queries", "context", "cheaper"),
    [
        (1, 8, True),
        (1, 100_000, True),
        (128, 100_000, True),
        (2048, 2048, False),
        (512, 4096, False),
    ],
)
def test_decode_is_absorbed_and_long_prefill_is_not(
    queries: int, context: int, cheaper: bool
) -> None:
    # The sizes of DeepSeek V3: h + u = 256, c = 512.
    assert absorbed_is_cheaper(queries, context, 256, 512) is cheaper
