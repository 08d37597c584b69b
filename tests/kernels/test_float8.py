# SPDX-License-Identifier: MIT
"""Matrices in float8 against float64, and caches in it: references, and kernels interpreted."""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from tokenspeed_core.kernels.float8 import FLOAT8, Float8Matrix, float8_linear, kept
from tokenspeed_core.kernels.paged_attention import paged_attention

BLOCKS = {"output": (1, 100), "block": (128, 128), "whole": (200, 100)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(random.randrange(2**31))


def matrix(o: int = 200, i: int = 100) -> torch.Tensor:
    """A matrix whose rows differ in size."""
    return torch.randn(o, i) * torch.rand(o, 1) * 3


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_elements_are_the_nearest_and_the_greatest_exact(block: tuple[int, int]) -> None:
    w = matrix()
    found = Float8Matrix.of(w, block).dequantised(torch.float32)
    # Of three bits of mantissa the half is a sixteenth; below 2 ** -6 steps are of 2 ** -9.
    scale = Float8Matrix.of(w, block).scale.max()
    assert ((found - w).abs() <= w.abs() / 16 + scale * 2**-10).all()
    assert torch.isclose(found.abs().max(), w.abs().max(), rtol=1e-6)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not Float8Matrix.of(torch.zeros(3, 5), (1, 5)).dequantised(torch.float32).any()


def test_what_is_too_large_saturates() -> None:
    x = torch.tensor([1e6, -1e6, 448.0, 1.0])
    assert kept(x, FLOAT8).float().tolist() == [448.0, -448.0, 448.0, 1.0]


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_product_is_that_of_the_dequantised_matrix(block: tuple[int, int]) -> None:
    w, x = Float8Matrix.of(matrix(), block), torch.randn(5, 100)
    want = x.double() @ w.dequantised(torch.float64).T
    assert torch.allclose(float8_linear(x, w).double(), want, atol=1e-3)


def attended(
    cache_dtype: torch.dtype, attend: object, dtype: torch.dtype, exact: bool = False
) -> torch.Tensor:
    """Attention of a decode row and a chunk over caches that hold 40 and 20 tokens."""
    draw = torch.Generator().manual_seed(1)
    shapes = ((9, 2, 3, 32), (9, 2, 32), (9, 2, 32))
    q, k, v = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    if exact:  # numbers of float8 themselves: the interpreter cuts where it should round
        k, v = (torch.where(x.abs() < 2**-6, 0, kept(x, FLOAT8).to(dtype)) for x in (k, v))
    caches = [kept(torch.randn(6, 2, 16, 32, generator=draw), cache_dtype) for _ in range(2)]
    table = torch.tensor([[1, 2, 3], [4, 5, 0]], dtype=torch.int32)
    places = [3 * 16 + 8, *(4 * 16 + at for at in range(12, 20))]  # of token 40, and 12 to 19
    batch = SimpleNamespace(
        cache_slots=torch.tensor(places),
        query_starts=torch.tensor([0, 1, 9], dtype=torch.int32),
        context_lens=torch.tensor([41, 20], dtype=torch.int32),
        block_tables=table, num_rows=2, num_decode_rows=1, max_query=8, max_context=41,
        shared_parts=None, shared_rows=None, most_parts=0,
    )  # fmt: skip
    return attend(q, k, v, *caches, batch, 32**-0.5)  # type: ignore[operator]


def test_attention_reads_what_a_cache_in_float8_keeps() -> None:
    narrow = attended(FLOAT8, paged_attention, torch.float32)
    wide = attended(torch.float32, paged_attention, torch.float32)
    error = (narrow - wide).norm() / wide.norm()
    assert 1e-3 < error < 0.1


if find_spec("triton") and not torch.cuda.is_available():
    from tests.kernels import interpreted  # noqa: F401
    from tokenspeed_core.kernels.triton import attention, float8

    @pytest.mark.parametrize("tokens", [1, 5, 17, 40, 70])
    @pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
    def test_the_kernel_multiplies_as_the_reference(tokens: int, block: tuple[int, int]) -> None:
        w, x = Float8Matrix.of(matrix(), block), torch.randn(tokens, 100).half()
        want = x.double() @ w.dequantised(torch.float64).T
        got = float8.float8_linear(x, w)
        assert (got.double() - want).norm() / want.norm() < 3e-3

    def test_wide_matrices_have_scales_of_many_blocks() -> None:
        w, x = Float8Matrix.of(matrix(40, 300), (128, 128)), torch.randn(3, 300).half()
        want = x.double() @ w.dequantised(torch.float64).T
        assert (float8.float8_linear(x, w).double() - want).norm() / want.norm() < 3e-3
        exact = w.dequantised(torch.float16)
        assert torch.equal(float8.dequantised(w, torch.float16), exact)

    def test_kernels_attend_over_a_cache_in_float8() -> None:
        want = attended(FLOAT8, paged_attention, torch.float32, exact=True)
        got = attended(FLOAT8, attention.paged_attention, torch.float32, exact=True)
        assert (got - want).norm() / want.norm() < 1e-4
