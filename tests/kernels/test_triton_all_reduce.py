# SPDX-License-Identifier: MIT
"""Sums over ranks in one launch: real processes that share memory, each in Triton's interpreter."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("programs of ranks on one GPU would wait for each other", allow_module_level=True)
from tests.kernels import interpreted  # noqa: F401
from tests.rank_processes import run_ranks
from tokenspeed_core.kernels.triton import all_reduce as module
from tokenspeed_core.kernels.triton import word_sum
from tokenspeed_core.kernels.triton.all_reduce import (
    MOST_BYTES,
    Exchange,
    all_reduce,
    can_sum,
    exchange_bytes,
    rank_sum,
)
from tokenspeed_core.kernels.triton.word_sum import can_sum_words, sum_by_words, word_bytes

# Of one program, of several, of a part of one, of several turns in a launch, of more turns than
# there are halves; some with a residual.
SIZES = (5, 3000, 7000, 33, 40000, 2048, 33000, 4096)
ADDS = (3000, 33, 33000)
FEW = 4  # programs
TURN = 2**31 - 3  # turns wrap around on the way


def parts(ranks: int, size: int, seed: int) -> torch.Tensor:
    """What each rank adds; the order of a sum of these can be seen in its bits."""
    draw = torch.Generator().manual_seed(seed + size)
    x = torch.randn(ranks, size, generator=draw) * 10.0 ** torch.arange(ranks)[:, None]
    return x.half()


def residual(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed - size)).half()


def sums(rank: int, ranks: int, seed: int, path: Path) -> None:
    """Sum as one rank whose memory is files that all have mapped."""
    module.PROGRAMS = FEW
    count = exchange_bytes(ranks)
    memory = [
        torch.from_file(str(path / f"memory{peer}"), shared=True, size=count, dtype=torch.uint8)
        for peer in range(ranks)
    ]
    exchange = Exchange.of(torch.tensor([each.data_ptr() for each in memory]), rank)
    exchange.turns.fill_(TURN)
    found = []
    for index, size in enumerate(SIZES):
        x = parts(ranks, size, seed)[rank]
        kept = residual(size, seed) if size in ADDS else None
        found.append(all_reduce(x, exchange, index % 2 == 1, kept))
    torch.save(found, path / f"sums{rank}")


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_every_rank_has_the_sum_in_rank_order(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRAMS", FEW)
    seed = random.randrange(2**31)
    memory = torch.zeros(exchange_bytes(ranks) // 4, dtype=torch.int32)
    memory[: 2 * ranks * FEW] = TURN
    for peer in range(ranks):
        (tmp_path / f"memory{peer}").write_bytes(memory.numpy().tobytes())
    run_ranks(sums, ranks, ranks, seed, tmp_path)
    for rank in range(ranks):
        for size, got in zip(SIZES, torch.load(tmp_path / f"sums{rank}"), strict=True):
            want = ordered(parts(ranks, size, seed))
            want = want + residual(size, seed) if size in ADDS else want
            assert torch.equal(got, want), (rank, size)


FEW_WORDS = 32  # of a program
# Less than a program, whole programs, an odd end, more turns than halves; the last in float32.
WORD_SIZES = (5, 64, 255, 33, 256, 200, 100)


def word_sums(rank: int, ranks: int, seed: int, path: Path) -> None:
    """Sum by words as one rank whose memory is files that all have mapped."""
    word_sum.WORDS, word_sum.PROGRAMS = FEW_WORDS, FEW
    memory = [
        torch.from_file(
            str(path / f"memory{peer}"), shared=True, size=word_bytes(ranks), dtype=torch.uint8
        )
        for peer in range(ranks)
    ]
    exchange = Exchange.of(torch.tensor([each.data_ptr() for each in memory]), rank)
    exchange.turns.fill_(TURN)
    found = []
    for size in WORD_SIZES:
        x, kept = parts(ranks, size, seed)[rank], residual(size, seed)
        if size == WORD_SIZES[-1]:
            x, kept = x.float(), kept.float()
        found.append(sum_by_words(x, exchange, kept if size % 2 else None))
    torch.save(found, path / f"sums{rank}")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_words_bring_every_rank_the_sum_in_rank_order(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_sum, "WORDS", FEW_WORDS)
    monkeypatch.setattr(word_sum, "PROGRAMS", FEW)
    seed = random.randrange(2**31)
    old = torch.full((word_bytes(ranks) // 8,), (TURN - 2) << 32, dtype=torch.int64)
    for peer in range(ranks):
        (tmp_path / f"memory{peer}").write_bytes(old.numpy().tobytes())
    run_ranks(word_sums, ranks, ranks, seed, tmp_path)
    for rank in range(ranks):
        for size, got in zip(WORD_SIZES, torch.load(tmp_path / f"sums{rank}"), strict=True):
            x, kept = parts(ranks, size, seed), residual(size, seed)
            if size == WORD_SIZES[-1]:
                x, kept = x.float(), kept.float()
            want = ordered(x) + kept if size % 2 else ordered(x)
            assert torch.equal(got, want), (rank, size)


def test_what_words_can_sum() -> None:
    most = word_sum.PROGRAMS * word_sum.WORDS
    assert can_sum_words(torch.empty(2 * most, dtype=torch.bfloat16))
    assert not can_sum_words(torch.empty(2 * most + 1, dtype=torch.bfloat16))
    assert can_sum_words(torch.empty(most))
    assert not can_sum_words(torch.empty(most + 1))


def ordered(x: torch.Tensor) -> torch.Tensor:
    total = x[0].float()
    for part in x[1:]:
        total = total + part.float()
    return total.to(x.dtype)


@pytest.mark.parametrize("size", [1, 4096, 9001])
def test_parts_of_ranks_are_summed_in_order(size: int) -> None:
    x = parts(3, size, random.randrange(2**31))
    assert torch.equal(rank_sum(x), ordered(x))
    kept = residual(size, size)
    assert torch.equal(rank_sum(x, kept), ordered(x) + kept)


def test_what_one_launch_can_sum() -> None:
    assert can_sum(torch.empty(MOST_BYTES // 2, dtype=torch.bfloat16))
    assert not can_sum(torch.empty(MOST_BYTES // 2 + 1, dtype=torch.bfloat16))
    assert not can_sum(torch.empty(3, dtype=torch.int64))
    assert not can_sum(torch.empty(0))
