# SPDX-License-Identifier: MIT
"""The device path on CPU tensors: tables, buckets and sampling give the host path's tokens."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.local_engine import LocalEngine
from tests.engine.test_equalities import alone, requests, same
from tokenspeed_core import shared_prefix
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.decode_graph import BUCKETS, DecodeGraphs
from tokenspeed_core.device_executor import DeviceExecutor
from tokenspeed_core.device_tables import DeviceTables
from tokenspeed_core.extend_graph import ExtendGraph, ExtendGraphs
from tokenspeed_core.graphs import Graphs
from tokenspeed_core.ops.batch import Batch
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner
from tokenspeed_core.slots import Step
from tokenspeed_core.upload import moved
from tokenspeed_core.warm_up import scratch_batch, warm_up

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runner(tiny_llama: Path) -> Runner:
    config = EngineConfig(
        model=str(tiny_llama), dtype="fp32", block_size=4, num_blocks=800, max_running=16, threads=2
    )
    return load_rank(config, 0, "")


def executor(runner: Runner, graphs: bool = True) -> DeviceExecutor:
    tables = runner.new_tables()
    return DeviceExecutor(runner, tables, Graphs.capture(runner, tables, 40) if graphs else None)


@settings(deadline=None, max_examples=4, derandomize=True)
@given(st.integers(0, 2**32), st.booleans())
def test_tokens_are_those_of_the_host_path(runner: Runner, seed: int, graphs: bool) -> None:
    wanted = requests(seed, 12, shared=9)
    engine = LocalEngine(runner, executor=executor(runner, graphs))
    found = [engine.submit(request) for request in wanted]
    engine.run()
    same(found, alone(runner, wanted))


def test_rows_that_share_blocks_are_told_so(runner: Runner, monkeypatch) -> None:
    for name in ("MIN_SAVED", "MIN_PART"):
        monkeypatch.setattr(shared_prefix, name, 4)
    seen: list[int] = []
    forward = Runner.forward

    def checked(self: Runner, batch: Batch) -> torch.Tensor:
        if batch.shared_parts is not None and batch.shared_parts[:, 1].any():
            order, shared, _ = batch.shared_rows.unbind(1)
            assert (shared < batch.context_lens).all()
            for first, count, begin, end, _ in batch.shared_parts.tolist():
                rows = batch.block_tables[order[first : first + count], begin // 4 : end // 4]
                assert (rows == rows[:1]).all()
                assert rows.all() or not count  # no row is padding
            seen.append(batch.num_rows)
        return forward(self, batch)

    monkeypatch.setattr(Runner, "forward", checked)
    wanted = requests(3, 10, shared=23)
    engine = LocalEngine(runner, executor=executor(runner))
    found = [engine.submit(request) for request in wanted]
    engine.run()
    assert len(seen) > 5
    same(found, alone(runner, wanted))


def test_a_decode_batch_is_that_of_the_slots() -> None:
    tables = DeviceTables.of(num_slots=5, widths=[3], block_size=4, device=CPU)
    # Slot 1 has blocks 7, 9; slot 4 has block 3: three places a slot.
    tables.append([(np.array([3, 4, 12], np.int32), np.array([7, 9, 3], np.int32))])
    tables.record(torch.tensor([4, 1]), torch.tensor([44, -1], dtype=torch.int32))
    slots = torch.tensor([4, 1, tables.padding_slot], dtype=torch.int32)
    batch = tables.decode_batch(slots, torch.tensor([2, 6, 1], dtype=torch.int32))
    assert batch.tokens.tolist() == [44, 0, 0]
    assert batch.positions.tolist() == [1, 5, 0]
    assert batch.cache_slots.tolist() == [3 * 4 + 1, 9 * 4 + 1, 0]
    assert batch.block_tables.tolist() == [[3, 0, 0], [7, 9, 0], [0, 0, 0]]
    assert batch.query_starts.tolist() == [0, 1, 2, 3]


def test_a_padded_row_writes_scratch_only(runner: Runner) -> None:
    tables = runner.new_tables()
    tables.append([(np.array([0], np.int32), np.array([5], np.int32))])
    before = runner.block(5)
    other = runner.block(6)
    graph = DecodeGraphs(runner, tables).of(3)
    assert graph is not None
    graph.logits(np.array([0], np.int32), np.array([1], np.int32))
    changed = [bool((now != was).any()) for now, was in zip(runner.block(5), before, strict=True)]
    assert all(changed)
    assert all(torch.equal(now, was) for now, was in zip(runner.block(6), other, strict=True))


def test_a_batch_arrives_as_it_was(runner: Runner) -> None:
    slots = runner.new_tables()
    batch = slots.decode_batch(torch.tensor([0, 2, 3]), torch.tensor([1, 1, 1]))
    there = moved(batch, CPU)
    for name in ("tokens", "cache_slots", "query_starts", "block_tables", "state_blocks"):
        assert torch.equal(getattr(there, name), getattr(batch, name))


def test_more_rows_than_the_largest_bucket_run_without_a_graph(runner: Runner) -> None:
    graphs = DecodeGraphs(runner, runner.new_tables())
    assert graphs.buckets == tuple(each for each in BUCKETS if each <= 16)
    assert graphs.of(17) is None


@pytest.mark.parametrize("shape", [(1, 0), (5, 0), (3, 40, 2, 3)])
def test_a_step_to_warm_up_stays_in_scratch(runner: Runner, shape: tuple[int, ...]) -> None:
    every = [runner.block(index) for index in range(1, 8)]
    batch = scratch_batch(runner.new_tables(), *shape)
    with torch.inference_mode():
        logits = runner.forward(batch)
    assert logits.shape == (batch.num_rows, 96)
    assert bool(logits.isfinite().all())
    for index, before in enumerate(every, 1):
        after = runner.block(index)
        assert all(torch.equal(now, was) for now, was in zip(after, before, strict=True))


def test_warming_up_needs_scratch_alone_and_a_cache_of_any_size_can_follow(runner: Runner) -> None:
    small = runner.with_blocks(1)
    warm_up(small, 64)
    large = small.with_blocks(9)
    assert (small.num_blocks, large.num_blocks) == (1, 9)
    assert not any(part.any() for part in large.block(8))
    with pytest.raises(IndexError):
        small.block(1)


def test_steps_beyond_the_largest_size_run_without_a_graph(runner: Runner) -> None:
    tables = runner.new_tables()
    graphs = ExtendGraphs(runner, tables, 40, None)
    assert graphs.sizes == (16, 32, 64)
    assert graphs.decodes == (4, 16)

    def of(decodes: int, *chunks: int, context: int = 65) -> ExtendGraph | None:
        rows = decodes + len(chunks)
        lens = torch.tensor([1 << 20] * decodes + [context] * len(chunks))
        batch = SimpleNamespace(max_context=65, num_decode_rows=decodes, context_lens=lens)
        tokens = decodes + sum(chunks)
        return graphs.of(SimpleNamespace(num_tokens=tokens, rows=[0] * rows, batch=batch))

    assert of(0, 65) is None
    assert of(0, 64) is not None
    assert of(0, *[2] * 16) is not None
    assert of(0, *[2] * 17) is None
    assert of(3, 61) is of(4, 64) is not None
    assert of(5, 20) is of(16, 64, context=8192) is not None
    assert of(17, 20) is None
    assert of(5, 65) is None


def test_steps_that_decode_and_prefill_have_graphs_of_their_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that decode stand first there, beside rows that are none."""
    seen: list[tuple[int, int]] = []
    logits = ExtendGraph.logits

    def noted(self: ExtendGraph, step: Step) -> torch.Tensor:
        seen.append((self._decodes, step.batch.num_decode_rows))
        return logits(self, step)

    monkeypatch.setattr(ExtendGraph, "logits", noted)
    wanted = requests(5, 14, shared=9)
    engine = LocalEngine(runner, executor=executor(runner), max_step_tokens=40)
    found = [engine.submit(request) for request in wanted]
    engine.run()
    same(found, alone(runner, wanted))
    assert {places for places, _ in seen} == {0, 4, 16}
    assert any(places > decodes for places, decodes in seen)
