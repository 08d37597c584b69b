# SPDX-License-Identifier: MIT
"""Matrices in float8 against float64, and caches in it: references, and kernels interpreted."""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from tokenspeed_core.kernels import composite
from tokenspeed_core.kernels.float8 import FLOAT8, Float8Matrix, float8_linear, kept
from tokenspeed_core.kernels.paged_attention import paged_attention
from tokenspeed_core.ops import backends  # noqa: F401  (registers what composites are made of)

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
    from tokenspeed_core.kernels.triton import attention, float8, linear

    @pytest.mark.parametrize("tokens", [1, 5, 17, 70, 130])
    @pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
    def test_the_kernel_multiplies_as_the_reference(tokens: int, block: tuple[int, int]) -> None:
        w, x = Float8Matrix.of(matrix(), block), torch.randn(tokens, 100).half()
        want = x.double() @ w.dequantised(torch.float64).T
        got = linear.float8_linear(x, w)
        assert (got.double() - want).norm() / want.norm() < 3e-3

    @pytest.mark.parametrize("tokens", [1, 5, 17])
    @pytest.mark.parametrize("block", [(1, 260), (128, 128), (256, 260), (100, 130)])
    def test_products_with_what_stands_around_them(tokens: int, block: tuple[int, int]) -> None:
        w, x = Float8Matrix.of(matrix(256, 260), block), torch.randn(tokens, 260).half()
        gain, residual = torch.randn(260).half(), torch.randn(tokens, 256).half()
        for run, reference, args in (
            (linear.norm_linear, composite.norm_linear, (x, gain, w, 1e-5)),
            (linear.norm_gate_up, composite.norm_gate_up, (x, gain, w, 1e-5)),
            (linear.linear_add, composite.linear_add, (x, w, residual)),
        ):
            wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
            want, got = reference(*wide), run(*args)
            assert (got.double() - want).norm() / want.norm() < 4e-3

    def test_wide_matrices_have_scales_of_many_blocks() -> None:
        w, x = Float8Matrix.of(matrix(40, 300), (128, 128)), torch.randn(3, 300).half()
        want = x.double() @ w.dequantised(torch.float64).T
        assert (linear.float8_linear(x, w).double() - want).norm() / want.norm() < 3e-3
        exact = w.dequantised(torch.float16)
        assert torch.equal(float8.dequantised(w, torch.float16), exact)

    @pytest.mark.parametrize(("k", "width"), [(260, 260), (384, 128)])
    def test_groups_of_activations_are_rounded_to_their_greatest(k: int, width: int) -> None:
        x = torch.randn(7, k).half()
        x[3] = 0
        _, scale = float8.rounded(x, width)
        assert scale.shape == (8, k // width)  # rows to a multiple of 4
        assert scale.t().is_contiguous()
        greatest = x.view(7, -1, width).abs().amax(2).float()
        assert torch.allclose(scale[:7], greatest.clamp(min=1e-12) / 448)
        # Numbers of float8 themselves: the interpreter cuts where it should round.
        x = kept(x.float() * 60, FLOAT8).half()
        x = torch.where(x.abs() < 2**-6, 0, x)
        x[:, ::width] = 448
        factor = 2.0 ** torch.randint(-3, 3, (7, k // width)).repeat_interleave(width, 1)
        small, scale = float8.rounded((x * factor).half(), width)
        assert torch.equal(small[:7].half(), x)
        assert torch.equal(scale[:7].repeat_interleave(width, 1), factor)

    def test_kernels_attend_over_a_cache_in_float8() -> None:
        want = attended(FLOAT8, paged_attention, torch.float32, exact=True)
        got = attended(FLOAT8, attention.paged_attention, torch.float32, exact=True)
        assert (got - want).norm() / want.norm() < 1e-4
