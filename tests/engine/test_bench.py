# SPDX-License-Identifier: MIT
"""`tokenspeed bench` on a tiny model: its rows, and that it times the work that it names."""

import json
from pathlib import Path

import attrs
import pytest
import torch

from tokenspeed_core.__main__ import main
from tokenspeed_core.bench.case import Case
from tokenspeed_core.bench.dummy import dummy_runner
from tokenspeed_core.bench.floor import Floor
from tokenspeed_core.bench.offline import CacheTooSmallError, Offline
from tokenspeed_core.bench.options import Options, ShapeError
from tokenspeed_core.bench.row import Row
from tokenspeed_core.bench.shape import SHAPES
from tokenspeed_core.execution import execution
from tokenspeed_core.model_spec import ModelSpec
from tokenspeed_core.weights import dummy_weights


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


def test_ranks_time_their_collectives_too(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--device", "cpu", "--blocks", "200", "--tp", "2", "--most", "1"]
    assert main(["bench", "decode", *options]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {row["model"] for row in rows} == {"tiny tp=2"}
    step, total, *each = rows
    assert step["metric"] == "step"
    assert total["metric"] == "collectives of a step"
    assert 0 < total["ours"] < step["ours"] * 10
    names = [row["metric"] for row in each]
    assert names == ["all_reduce of 1 x 64 bfloat16", "all_gather of 1 x 128 bfloat16"]
    assert all(row["peer_name"] == "cost on shared-memory" for row in each)


def test_dummy_weights_are_parts_of_one_model_in_every_layout(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["tiny"]))
    engines = (Options("decode", "tiny", "cpu", tp=tp).engine(str(tmp_path)) for tp in (1, 2))
    one, two = (ModelSpec.of(engine).plans().first for engine in engines)
    whole, first, second = dummy_weights(one, 0), dummy_weights(two, 0), dummy_weights(two, 1)
    assert torch.equal(whole["norm"], first["norm"])
    assert torch.equal(first["norm"], second["norm"])
    down = "layers.0.mlp.w_down"
    assert torch.equal(whole[down], torch.cat((first[down], second[down]), 1))


def test_a_rank_that_dies_ends_the_bench(capfd: pytest.CaptureFixture[str]) -> None:
    # Three ranks do not divide two kv heads: each says so and ends.
    assert main(["bench", "decode", "--shape", "tiny", "--device", "cpu", "--tp", "3"]) == 1
    assert "ended with 1" in capfd.readouterr().err


def test_decode_continues_what_was_extended() -> None:
    runner = dummy_runner(Options("decode", "tiny", "cpu", 60))
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
    runner = dummy_runner(Options("decode", "tiny", "cpu", 4))
    offline = Offline(execution(runner, 16)(None), runner.block_size, runner.num_blocks, 256)
    with pytest.raises(CacheTooSmallError, match="needs 9 KV blocks and the cache has 4"):
        offline.admit([128])


def test_an_unknown_shape_names_those_that_are() -> None:
    with pytest.raises(ShapeError, match="qwen3-8b"):
        Options("decode", "qwen4")


def test_a_peer_is_compared_on_its_card_only() -> None:
    case = ("qwen3-8b", "NVIDIA H100 80GB HBM3", "decode", "batch 1, ctx 1024", "step")
    assert Row.of(*case, [6.0, 5.0, 7.0]).peer == 6.89
    assert Row.of(*case, [6.0, 5.0, 7.0]).spread == 2.0
    assert Row.of("qwen3-8b", "cpu", *case[2:], [6.0]).peer is None


def test_a_floor_counts_what_a_step_reads_or_multiplies() -> None:
    card = "NVIDIA H100 80GB HBM3"
    # Qwen3-8B by hand: 6.95e9 parameters in layers and 0.62e9 in the head, 147,456 bytes a key.
    layers, head = 6_946_000_000, 622_329_856
    floor = Floor(2 * layers, layers, 2 * head, head, 0, 0, 1, 0, 147_456, 4 * 128 * 32 * 36)
    assert floor.ms(Case("decode", 1, 1024), card) == pytest.approx(4.563, abs=0.01)
    alone = floor.ms(Case("decode", 32, 16896), card)
    shared = floor.ms(Case("decode", 32, 16896, 0, 16384), card)
    assert alone is not None
    assert shared is not None
    assert alone - shared == pytest.approx(31 * 16384 * 147_456 / 3.35e9)
    prefill = floor.ms(Case("prefill", 1, 0, 8192), card)
    assert prefill == pytest.approx((13_892e6 * 8192 + 589_824 * 8192 * 4096.5) / 989e9, rel=0.001)
    assert floor.ms(Case("decode", 1, 1024), "cpu") is None
    halved = attrs.evolve(floor, weight_bytes=layers)  # in eight bits: as many products
    assert halved.ms(Case("prefill", 1, 0, 8192), card) == prefill


def test_a_floor_reads_the_experts_that_tokens_choose() -> None:
    floor = Floor(0, 0, 0, 0, 100, 50, 8, 2, 0, 0)
    one, many = (floor.ms(Case("decode", n, 0), "NVIDIA H200") for n in (1, 100))
    assert one == pytest.approx(2 * 100 / 4.8e9)
    assert many == pytest.approx(8 * 100 / 4.8e9, rel=1e-6)


def test_a_runner_knows_the_bytes_of_its_floor() -> None:
    runner = dummy_runner(Options("decode", "tiny", "cpu", 4))
    floor = Floor.of(runner, SHAPES["tiny"])
    # In bfloat16, beside a table of angles in float32.
    assert floor.head_bytes == 2 * floor.head_weights == 2 * 256 * SHAPES["tiny"]["hidden_size"]
    assert floor.weight_bytes == pytest.approx(2 * floor.weights, rel=0.01)
    assert floor.weights > 0
    assert floor.key_bytes == runner.groups.parent_bytes // 16
