# SPDX-License-Identifier: MIT
"""Measured selection: contests, agreed times, the file that keeps them, overrides and plug-ins."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenspeed_core.kernels import registry
from tokenspeed_core.kernels.registry import NoKernelError, PlugInError, register, select
from tokenspeed_core.kernels.tuning import SHIPPED, TABLE, Contest, Table, TuningFileError, key_of

CPU, FLOAT = "cpu", torch.float32


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels, wanted = list(registry._kernels), dict(registry._wanted)
    monkeypatch.setattr(TABLE, "times", {})
    yield
    registry._kernels[:] = kernels
    registry._wanted.clear()
    registry._wanted.update(wanted)
    registry.tune(False)


@pytest.fixture
def ran() -> list[str]:
    """An op with a preferred kernel and a rival, which note that they run."""
    found: list[str] = []

    def kernel(name: str) -> object:
        def run(x: Tensor) -> Tensor:
            found.append(name)
            return x + 1

        return run

    register("plus_one", backend="ours", preference=10)(kernel("ours"))  # type: ignore[type-var]
    register("plus_one", backend="rival", contests=True)(kernel("rival"))  # type: ignore[type-var]
    return found


def test_without_tuning_the_preferred_kernel_runs_and_nothing_is_timed(ran: list[str]) -> None:
    assert select("plus_one", CPU, FLOAT)(torch.zeros(3, 4)).sum() == 12
    assert ran == ["ours"]
    assert not TABLE.times


def test_the_kernel_that_all_ranks_found_faster_runs(ran: list[str]) -> None:
    registry.tune(True)
    run = select("plus_one", CPU, FLOAT)
    assert isinstance(run, Contest)
    run(torch.zeros(3, 4))
    assert ran == ["ours"], "nothing was measured yet"
    with TABLE.measuring(lambda spent: [50.0, 20.0]):  # the slowest of each on any rank
        run(torch.zeros(3, 4))
    ran.clear()
    run(torch.zeros(4, 4))  # of the same bucket
    run(torch.zeros(5, 4))  # of one that nobody timed
    run(torch.zeros(3, 5))
    assert ran == ["rival", "ours", "ours"]


def test_the_preferred_kernel_loses_only_to_who_is_clearly_faster(ran: list[str]) -> None:
    kernels = registry.candidates("plus_one")
    for rival, won in ((96.0, "ours"), (94.0, "rival")):
        winner = Table({"key": {"ours": 100.0, "rival": rival}}).winner("key", kernels)
        assert winner is not None
        assert winner.backend == won
    assert not ran


def test_what_comes_with_the_package_decides_without_timing(ran: list[str]) -> None:
    assert not registry.TABLE.tunes
    TABLE.times[key_of("plus_one", (torch.zeros(3, 4),))] = {"ours": 9.0, "rival": 3.0}
    run = select("plus_one", CPU, FLOAT)
    run(torch.zeros(3, 4))
    run(torch.zeros(300, 4))  # of no such size
    assert ran == ["rival", "ours"]
    shipped = Table()
    shipped.load(SHIPPED)
    assert any(key.startswith("norm_linear n<=1 ") for key in shipped.times)
    assert all({"triton", "library"} == set(times) for times in shipped.times.values())


def test_measurements_are_kept_in_a_file(ran: list[str], tmp_path: Path) -> None:
    registry.tune(True)
    with TABLE.measuring(lambda spent: [50.0, 20.0]):
        select("plus_one", CPU, FLOAT)(torch.zeros(3, 4))
    TABLE.save(tmp_path / "kernels.json")
    other = Table()
    other.load(tmp_path / "kernels.json")
    (key,) = other.times
    assert key == key_of("plus_one", (torch.zeros(3, 4),))
    assert "n<=4" in key
    assert torch.__version__ in key
    won = other.winner(key, registry.candidates("plus_one"))
    assert won is not None
    assert won.backend == "rival"
    (tmp_path / "kernels.json").write_text("[1]")
    with pytest.raises(TuningFileError, match=r"kernels.json holds no kernel times"):
        other.load(tmp_path / "kernels.json")


def test_times_are_of_calls_whose_arguments_stay_as_they_were(ran: list[str]) -> None:
    register("plus_one", backend="writes", contests=True)(lambda x: x.add_(1))
    registry.tune(True)
    x = torch.zeros(2, 2)
    with TABLE.measuring(lambda spent: [1.0, 2.0, 3.0]):
        select("plus_one", CPU, FLOAT)(x)
    assert not x.any()


def test_an_override_is_held_to_what_is_legal(ran: list[str]) -> None:
    registry.prefer({"plus_one": "rival"}, CPU, FLOAT)
    registry.tune(True)
    select("plus_one", CPU, FLOAT)(torch.zeros(1, 1))
    assert ran == ["rival"]
    with pytest.raises(NoKernelError, match="from backend 'nobody'"):
        registry.prefer({"plus_one": "nobody"}, CPU, FLOAT)


def test_plug_ins_of_other_distributions_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fast_kernels.py").write_text(
        "from tokenspeed_core.kernels.registry import register\n"
        "register('linear', backend='fast', preference=-5)(lambda x, w: x @ w.T)\n"
    )
    about = tmp_path / "fast_kernels-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-kernels\nVersion: 1\n")
    points = about / "entry_points.txt"
    points.write_text("[tokenspeed.kernels]\nfast = fast_kernels\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert registry.load_plug_ins() == ["fast"]
    assert "fast" in [kernel.backend for kernel in registry.candidates("linear")]
    points.write_text("[tokenspeed.kernels]\nslow = slow_kernels\n")
    with pytest.raises(PlugInError, match="'slow' of slow_kernels cannot be loaded"):
        registry.load_plug_ins()
