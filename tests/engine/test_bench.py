# SPDX-License-Identifier: MIT
"""`tokenspeed bench` on a tiny model: its rows, and that it times the work that it names."""

import json

import pytest

from tokenspeed_core.__main__ import main
from tokenspeed_core.bench.dummy import ShapeError, dummy_runner
from tokenspeed_core.bench.offline import CacheTooSmallError, Offline
from tokenspeed_core.bench.row import Row
from tokenspeed_core.execution import execution


@pytest.mark.parametrize("bench", ["decode", "prefill", "warm", "shared"])
def test_each_bench_prints_a_row_a_case(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--device", "cpu", "--blocks", "200"]
    assert main(["bench", bench, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == (2 if bench == "decode" else 1)
    for row in rows:
        assert row["bench"] == bench
        assert row["unit"] == "ms"
        assert 0 < row["ours"] < 60_000
        assert row["peer"] is None


def test_decode_continues_what_was_extended() -> None:
    runner = dummy_runner("tiny", "cpu", num_blocks=60)
    offline = Offline(execution(runner, 16)(None), runner.block_size, runner.num_blocks, 256)
    offline.admit([20, 20], shared=16)
    (first, other) = offline.extend(30, chunk=16)
    steps = offline.decode(4)
    assert [len(tokens) for tokens in steps] == [2] * 4
    # The same work again gives the same tokens, whatever was in the slots between.
    again = Offline(execution(runner, 16)(None), runner.block_size, runner.num_blocks, 256)
    again.admit([20, 20], shared=16)
    assert again.extend(30, chunk=16) == [first, other]
    assert again.decode(4) == steps


def test_a_case_beyond_the_cache_is_refused() -> None:
    runner = dummy_runner("tiny", "cpu", num_blocks=4)
    offline = Offline(execution(runner, 16)(None), runner.block_size, runner.num_blocks, 256)
    with pytest.raises(CacheTooSmallError, match="needs 9 KV blocks and the cache has 4"):
        offline.admit([128])


def test_an_unknown_shape_names_those_that_are() -> None:
    with pytest.raises(ShapeError, match="qwen3-8b"):
        dummy_runner("qwen4", "cpu")


def test_a_peer_is_compared_on_its_card_only() -> None:
    case = ("qwen3-8b", "NVIDIA H100 80GB HBM3", "decode", "batch 1, ctx 1024", "step")
    assert Row.of(*case, [6.0, 5.0, 7.0]).peer == 6.89
    assert Row.of(*case, [6.0, 5.0, 7.0]).spread == 2.0
    assert Row.of("qwen3-8b", "cpu", *case[2:], [6.0]).peer is None
