# SPDX-License-Identifier: MIT
"""Ops on plain tensors: the eager reference of every model."""

import pytest
import torch
from einops import einsum as reference
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed_core import ops
from tokenspeed_core.ops import (
    einsum,
    rope,
    rope_angles,
    shard,
    silu_mul,
    silu_mul_packed,
    split,
    widen,
)
from tokenspeed_core.sharding import AnnotationError


@pytest.mark.parametrize(
    ("equation", "letters"),
    [
        ("n d, d k g h -> n k g h", "nd,dkgh->nkgh"),
        ("n k g h, k g h d -> n d", "nkgh,kghd->nd"),
        ("tokens model, vocabulary model -> tokens vocabulary", "nd,vd->nv"),
    ],
)
def test_einsum_reads_whole_words(equation: str, letters: str) -> None:
    size = dict(zip("ndkghv", (2, 3, 4, 5, 6, 7), strict=True))
    left = letters.partition("->")[0].split(",")
    operands = [torch.randn([size[letter] for letter in side]) for side in left]
    torch.testing.assert_close(einsum(equation, *operands), torch.einsum(letters, *operands))
    torch.testing.assert_close(einsum(equation, *operands), reference(*operands, equation))


def test_einsum_refuses_a_result_dim_from_nowhere() -> None:
    with pytest.raises(AnnotationError, match="'n d, d h -> n x'"):
        einsum("n d, d h -> n x", torch.randn(1, 2), torch.randn(2, 3))


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_split_returns_views_of_consecutive_columns(shapes: list[list[int]]) -> None:
    widths = [int(torch.Size(shape).numel()) for shape in shapes]
    y = torch.randn(4, sum(widths))
    parts = split(y, *map(tuple, shapes))
    assert [list(part.shape) for part in parts] == [[4, *shape] for shape in shapes]
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), y)
    assert all(
        part.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for part in parts
    )


def test_packed_and_plain_silu_mul_agree() -> None:
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.equal(silu_mul(gate, up), silu_mul_packed(torch.cat((gate, up), 1)))


def test_rope_angles_are_float32_and_repeat_in_both_halves() -> None:
    inv_freq = torch.tensor([1.0, 0.01])
    cos, sin = rope_angles(torch.tensor([0, 3, 200_000], dtype=torch.int32), inv_freq)
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos[:, :2], cos[:, 2:])
    exact = torch.tensor([0.0, 3.0, 200_000.0], dtype=torch.float64)[:, None] * inv_freq.double()
    assert (sin[:, :2].double() - exact.float().double().sin()).abs().max() < 1e-6


def test_partial_rope_turns_the_first_elements_and_passes_the_rest() -> None:
    x = torch.randn(5, 2, 8)
    cos, sin = rope_angles(torch.arange(5, dtype=torch.int32), torch.tensor([1.0, 0.1]))
    turned = rope(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], rope(x[..., :4].contiguous(), cos, sin))


def test_widen_keeps_float64_and_lifts_the_rest() -> None:
    assert widen(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widen(torch.ones(1)).dtype == torch.float32
    assert widen(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_shard_is_a_view_and_refuses_a_remainder() -> None:
    x = torch.arange(12).view(6, 2)
    assert torch.equal(shard(x, 1, 3, 0), x[2:4])
    with pytest.raises(ValueError, match="size 6 does not divide into 4"):
        shard(x, 0, 4, 0)


def test_what_ops_exports_exists() -> None:
    assert all(hasattr(ops, name) for name in ops.__all__)
