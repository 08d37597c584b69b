# SPDX-License-Identifier: MIT
"""What a rank makes of its settings: types, blocks, threads, kernels, plans and executors."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.test_families import saved
from tokenspeed_core import execution as executions
from tokenspeed_core import model_spec, rank, worker
from tokenspeed_core.config import ConfigError, EngineConfig, write_config
from tokenspeed_core.device_executor import DeviceExecutor
from tokenspeed_core.device_gaps import DeviceGaps
from tokenspeed_core.execution import execution
from tokenspeed_core.graphs import Graphs
from tokenspeed_core.ipc.messages import WIRE_VERSION, GroupKind, Welcome
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.kernels import registry
from tokenspeed_core.model_source import ModelNotFoundError
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner
from tokenspeed_core.served_model import ServedModel

CPU = torch.device("cpu")


def loaded(model: Path, **settings: Any) -> Runner:
    few = {"num_blocks": 20, "max_running": 4, "threads": 1, "device": "cpu", **settings}
    return load_rank(EngineConfig(model=str(model), **few), 0, "")


@pytest.fixture
def threads() -> Iterator[int]:
    """The threads of torch, which stay as they were."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_weights_have_the_type_that_is_asked_for(tiny_llama: Path) -> None:
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        runner = loaded(tiny_llama, dtype=dtype)
        assert {each.dtype for each in runner.packs if each.dim() > 1} == {kind}
        assert {each.dtype for each in runner.block(0)} == {kind}


def test_blocks_hold_the_tokens_that_are_asked_for(tiny_llama: Path) -> None:
    small, large = (loaded(tiny_llama, block_size=size) for size in (4, 32))
    assert (small.block_size, large.block_size) == (4, 32)
    assert 8 * small.groups.parent_bytes == large.groups.parent_bytes
    assert 8 * large.max_blocks == small.max_blocks


def test_threads_are_those_asked_for_or_a_share_of_the_cores(
    tiny_llama: Path, threads: int
) -> None:
    for asked in (1, 3):
        loaded(tiny_llama, threads=asked)
        assert torch.get_num_threads() == asked
    loaded(tiny_llama, threads=0)
    assert torch.get_num_threads() == 3  # all of one rank


def test_dummy_weights_need_no_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        ServedModel.of(EngineConfig(model=str(tmp_path), load_format="auto"), serve_http=False)
    config = EngineConfig(model=str(tmp_path), load_format="dummy")
    assert ServedModel.of(config, serve_http=False).vocab_size == 96
    stored, dummy = loaded(tiny_llama), loaded(tmp_path, load_format="dummy")
    assert stored.program_hash == dummy.program_hash
    pairs = list(zip(stored.packs, dummy.packs, strict=True))
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    assert not any(torch.equal(ours, theirs) for ours, theirs in pairs if ours.dim() > 1)


def test_plans_are_kept_where_they_are_asked_for(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, users = tmp_path / "own", tmp_path / "user" / "plans"
    monkeypatch.setattr(model_spec, "cache_directory", lambda: users.parent)
    hashes = set()
    for setting, kept in (("off", []), (str(own), [own]), ("", [own, users])):
        hashes.add(loaded(tiny_llama, plan_cache=setting).program_hash)
        assert [place for place in (own, users) if list(place.glob("*.plan"))] == kept
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"num_blocks": 7}, 7),
        ({"kv_cache_bytes": 50}, 50),  # blocks, here
        ({"num_blocks": 7, "kv_cache_bytes": 50}, 7),
        ({}, 40),
        ({"cache_percent": 10}, 10),
        ({"cache_percent": 90}, 90),
        ({"max_running": 1}, 33),  # more than a slot of 512 tokens would never use
        ({"max_running": 1, "max_model_len": 128}, 9),
    ],
    ids=str,
)
def test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], blocks: int
) -> None:
    size = loaded(tiny_llama).groups.parent_bytes
    monkeypatch.setattr(rank, "_free_memory", lambda: 100 * size)
    asked = {"num_blocks": 0, **settings}
    asked["kv_cache_bytes"] = size * asked.get("kv_cache_bytes", 0)
    assert loaded(tiny_llama, **asked).num_blocks == blocks


def test_states_are_kept_as_often_as_is_asked(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3-next")

    def spans(interval: int) -> dict[GroupKind, int]:
        groups = loaded(tmp_path, state_interval=interval).groups
        return {group.kind: group.span for group in groups}

    assert spans(64) == {GroupKind.FULL: 0, GroupKind.STATE: 64}
    assert spans(250) == {GroupKind.FULL: 0, GroupKind.STATE: 256}  # in whole blocks
    assert spans(0)[GroupKind.STATE] not in (0, 64, 256)


def test_a_rank_runs_where_it_is_told_to(tiny_llama: Path) -> None:
    assert loaded(tiny_llama, device="cpu").device == CPU
    if torch.cuda.is_available():
        assert loaded(tiny_llama, device="cuda").device.type == "cuda"
    else:
        with pytest.raises(ConfigError, match="give --device cpu"):
            loaded(tiny_llama, device="cuda")
    assert [EngineConfig(device=each).step_tokens for each in ("cpu", "cuda")] == [512, 8192]


def test_kernels_are_those_asked_for(tiny_llama: Path) -> None:
    def backend() -> str:
        return registry.choose("rope", "cpu", torch.float32).backend

    for kernels, expected in (("rope=torch", "torch"), ("", "cpu")):
        loaded(tiny_llama, kernels=kernels)
        assert backend() == expected


class OnDevice(SimpleNamespace):
    """A runner that says it is on a GPU, whose tables are on the CPU."""

    device = SimpleNamespace(type="cuda")


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_graphs_are_captured_if_they_are_asked_for(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    """The worker's command says so, and steps of an executor on a device replay them or not."""
    runner, made = loaded(tiny_llama), []
    capture = Graphs.capture
    monkeypatch.setattr(
        executions.Graphs, "capture", lambda _, tables, chunk: capture(runner, tables, chunk)
    )

    def noted(given: Runner, *how: Any) -> Any:
        there = OnDevice(
            plan=given.plan,
            groups=given.groups,
            new_tables=given.new_tables,
            new_slots=given.new_slots,
        )
        made.append(execution(there, *how)(None))
        raise ValueError("that is enough")

    monkeypatch.setattr(worker, "execution", noted)
    config = EngineConfig(
        model=str(tiny_llama), device="cpu", num_blocks=20, max_running=4, max_step_tokens=16,
        threads=1, cuda_graphs=cuda_graphs,
    )  # fmt: skip
    assert started(config, tmp_path) == 1
    (executor,) = made
    assert isinstance(executor, DeviceExecutor)
    assert (executor._graphs is not None) == cuda_graphs


@pytest.mark.parametrize("time_gaps", [True, False])
def test_gaps_are_timed_if_they_are_asked_for(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_gaps: bool
) -> None:
    """The worker's command says so, and what carries out its plans is timed or not."""
    made: list[worker.Worker] = []

    class Noted(worker.Worker):
        def serve(self) -> str:
            self._completions = worker.Completions(lambda: None)
            self._begin_epoch(Welcome(WIRE_VERSION, 1, True, 512, 96, 16, 20))
            made.append(self)
            return "that is enough"

    exits: list[int] = []
    there = OnDevice(ranks=SimpleNamespace(exit=exits.append))
    monkeypatch.setattr(worker, "load_rank", lambda *_: there)
    monkeypatch.setattr(worker, "execution", lambda *_: lambda _: "the executor")
    monkeypatch.setattr(worker, "Worker", Noted)
    assert started(EngineConfig(model=str(tiny_llama), time_gaps=time_gaps), tmp_path) is None
    assert exits == [0]
    assert isinstance(made[0]._executor, DeviceGaps) == time_gaps


def started(config: EngineConfig, folder: Path) -> int | None:
    """Run a worker's command in this process and return its exit code."""
    run = RunDirectory.create(folder)
    write_config(config, folder / "engine.json")
    try:
        arguments = ["--run-dir", run.path, "--rank", 0, "--config", folder / "engine.json"]
        return worker.main(list(map(str, arguments)))
    finally:
        gc.unfreeze()
        run.remove()
