# SPDX-License-Identifier: MIT
"""The simulator plays every request, the same way each time, and its cache is the core's."""

import tempfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import BLOCK, H100, SAMPLE, Turn, conversation, deployment, files, load

from tokenspeed_core.scheduler._scheduler import Trace, replay_cache
from tokenspeed_core.simulation.deployment import DeploymentError, Workload, run
from tokenspeed_core.simulation.device_model import CARDS, DeviceModel, DeviceModelError
from tokenspeed_core.simulation.model_shape import MODELS
from tokenspeed_core.simulation.sweep import sweep
from tokenspeed_core.trace import load_trace


def loaded(lines: list[dict[str, Any]]) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        return load(lines, Path(folder) / "trace.jsonl")


@settings(max_examples=60, deadline=None)
@given(
    lines=files,
    pool=st.integers(20, 200),
    host=st.sampled_from([0, 40, 400]),
    eviction=st.sampled_from(["reuse", "lru"]),
    sessions=st.integers(1, 8),
    rate=st.sampled_from([0.0, 0.5]),
    names=st.booleans(),
)
def test_every_request_ends_with_all_its_tokens_in_order_of_time(
    lines: list[dict[str, Any]],
    pool: int,
    host: int,
    eviction: str,
    sessions: int,
    rate: float,
    names: bool,
) -> None:
    place = deployment(pool_tokens=pool * BLOCK, host_tokens=host * BLOCK, eviction=eviction)
    workload = Workload(sessions=sessions, rate=rate, seed=pool, names=names)
    outcome = run(place, workload, loaded(lines))
    expected = {
        (i, j): (row[1], max(row[2], 1))
        for i, line in enumerate(lines)
        for j, row in enumerate(line["rows"])
    }
    assert outcome.refused == 0
    assert {
        (int(request["conversation"]), int(request["row"])): (
            int(request["prompt"]),
            int(request["output"]),
        )
        for request in outcome.requests
    } == expected
    requests = outcome.requests
    assert np.all(requests["arrived"] <= requests["admitted"])
    assert np.all(requests["admitted"] < requests["first"])
    assert np.all(requests["first"] <= requests["last"])
    assert np.all(requests["cached"] < requests["prompt"])
    assert np.all(requests["host"] <= requests["cached"])
    assert outcome.totals["busy_ns"] <= outcome.totals["end_ns"]
    assert np.all(np.diff(requests["arrived"]) >= 0)


@settings(max_examples=30, deadline=None)
@given(lines=files, pool=st.integers(20, 200), rate=st.sampled_from([0.0, 2.0]))
def test_equal_inputs_give_equal_outcomes(
    lines: list[dict[str, Any]], pool: int, rate: float
) -> None:
    place = deployment(pool_tokens=pool * BLOCK, host_tokens=4 * pool * BLOCK)
    workload = Workload(sessions=3, rate=rate, seed=7)
    first, again = (run(place, workload, loaded(lines)) for _ in range(2))
    assert first.requests.tobytes() == again.requests.tobytes()
    assert first.totals == again.totals
    assert first.gaps == again.gaps


@settings(max_examples=60, deadline=None)
@given(lines=files)
def test_a_pool_without_bounds_hits_what_an_ideal_cache_would(lines: list[dict[str, Any]]) -> None:
    outcome = run(deployment(), Workload(sessions=1), loaded(lines))
    for request in outcome.requests:
        # The last token of a prompt is always computed.
        most = (int(request["prompt"]) - 1) // BLOCK * BLOCK
        assert int(request["cached"]) == min(int(request["ideal"]), most)


def test_one_at_a_time_the_hits_are_those_of_the_cache_replay() -> None:
    trace, _ = load_trace(SAMPLE, max_context=80_000)
    place = deployment(pool_tokens=64 * 40_000, block_size=64, max_step_tokens=8192)
    outcome = run(place, Workload(sessions=1, gap_cap_s=60, hints=False), trace)
    requests, prompt, hit, ideal, _, _ = replay_cache(
        trace, sessions=1, pool_blocks=40_000, longest_pause_s=60, policy="reuse", hints=False
    )
    assert len(outcome.requests) == requests
    assert outcome.prompt_tokens == prompt
    assert int(outcome.requests["ideal"].sum()) == ideal
    whole = int((outcome.requests["prompt"] == outcome.requests["ideal"]).sum()) * 64
    assert hit - whole <= int(outcome.requests["cached"].sum()) <= hit
    assert 0.5 < outcome.hit_rate <= outcome.ideal_rate


def test_requests_are_repeated_or_cut_to_the_number_asked_for() -> None:
    trace = loaded([conversation([Turn(0, 50, 3, 0), Turn(3, 20, 3, 1)], tools=32)])
    for number in (1, 2, 3, 50):
        outcome = run(deployment(), Workload(sessions=2, requests=number), trace)
        assert len(outcome.requests) == number
    assert outcome.requests["conversation"].max() >= 24


def test_a_host_tier_takes_what_the_pool_cannot_keep_and_its_link_takes_time() -> None:
    lines = [
        conversation([Turn(0, 200, 8, 5), *[Turn(99, 30, 8, 5) for _ in range(8)]])
        for _ in range(6)
    ]
    trace = loaded(lines)
    workload = Workload(sessions=6)
    without = run(deployment(pool_tokens=40 * BLOCK), workload, trace)
    tier = run(deployment(pool_tokens=40 * BLOCK, host_tokens=800 * BLOCK), workload, trace)
    assert without.host_rate == 0
    assert tier.host_rate > 0.3
    assert tier.hit_rate > without.hit_rate + 0.3
    assert tier.amplification < without.amplification
    device = H100.device()
    block_s = BLOCK * H100.kv_token_bytes / (CARDS["h100"].link * 0.86)
    for copies, ns in (("loaded_blocks", "loading_ns"), ("stored_blocks", "storing_ns")):
        assert tier.totals[ns] * 1e-9 == pytest.approx(tier.totals[copies] * block_s, rel=1e-3)
    assert device.step_seconds(tokens=1, sampled=1, context_read=1, pairs=1) > 0


@pytest.mark.parametrize("eviction", ["reuse", "lru"])
def test_a_link_that_is_slower_than_computing_is_not_waited_for(eviction: str) -> None:
    lines = [
        conversation([Turn(0, 3000, 8, 5), *[Turn(999, 200, 8, 5) for _ in range(8)]])
        for _ in range(6)
    ]
    trace, workload = loaded(lines), Workload(sessions=6)
    sizes = {"pool_tokens": 6000, "max_step_tokens": 2048, "eviction": eviction}
    without = run(deployment(**sizes), workload, trace)
    found = {}
    for link in (64e9, 1e9):
        device = attrs.evolve(H100, card=attrs.evolve(H100.card, link=link))
        tier = run(deployment(device=device, host_tokens=60_000, **sizes), workload, trace)
        found[link] = tier.host_rate, tier.totals["busy_ns"] / without.totals["busy_ns"]
    assert found[64e9][0] > 0.4
    assert found[64e9][1] < 0.9
    assert found[1e9][0] < 0.1
    assert found[1e9][1] < 1.2


def test_rows_that_share_a_prefix_read_it_once() -> None:
    shared = [conversation([Turn(0, 4096, 200, 0)], tools=4096) for _ in range(8)]
    apart = [conversation([Turn(0, 4096, 200, 0)], tools=0) for _ in range(8)]
    place = deployment(max_step_tokens=4096)
    workload = Workload(sessions=8)
    together = run(place, workload, loaded(shared))
    alone = run(place, workload, loaded(apart))
    assert together.gaps.p50 < alone.gaps.p50


def test_steps_take_as_long_as_they_were_measured() -> None:
    device = H100.device()
    for model in ("qwen3-8b", "llama-3.1-8b"):
        step = DeviceModel(MODELS[model], CARDS["h100"]).device()
        seconds = step.step_seconds(tokens=1, sampled=1, context_read=1024, pairs=1024)
        assert 5.1e-3 <= seconds <= 5.6e-3, model
    cold = device.step_seconds(tokens=8192, sampled=1, context_read=8192, pairs=8192**2 / 2)
    assert 0.177 <= cold <= 0.224  # between the floor of arithmetic and a peer's time
    batch = device.step_seconds(tokens=64, sampled=64, context_read=64 * 1024, pairs=64 * 1024)
    assert 8.4e-3 <= batch <= 10.9e-3


def test_a_step_costs_more_with_every_quantity() -> None:
    device = DeviceModel(MODELS["qwen3-30b-a3b"], CARDS["h100"]).device()
    shape = {"tokens": 8.0, "sampled": 8.0, "context_read": 8e4, "pairs": 8e4}
    seconds = device.step_seconds(**shape)
    assert device.step_seconds(**{**shape, "tokens": 16.0}) > seconds  # more experts are touched
    assert device.step_seconds(**{**shape, "context_read": 16e4}) > seconds
    assert device.step_seconds(**{**shape, "pairs": 8e9}) > seconds


def test_what_never_fits_is_refused_and_ends_its_conversation() -> None:
    trace = loaded([conversation([Turn(0, 999, 5, 0), Turn(9, 9, 5, 0)]) for _ in range(3)])
    outcome = run(deployment(pool_tokens=30 * BLOCK), Workload(sessions=1), trace)
    assert outcome.refused == len(outcome.requests) == 3
    assert outcome.hit_rate == outcome.output_rate == outcome.user_rate == 0


def test_a_sweep_is_its_runs_in_order_whatever_runs_at_once() -> None:
    trace = loaded([conversation([Turn(0, 90, 9, 0), Turn(4, 30, 9, 1)]) for _ in range(9)])
    places = [deployment(pool_tokens=pool * BLOCK) for pool in (20, 40)]
    workloads = [Workload(sessions=sessions) for sessions in (1, 4)]
    once = sweep(places, workloads, trace, jobs=1)
    beside = sweep(places, workloads, trace, jobs=4)
    assert [one.totals for one in once] == [one.totals for one in beside]
    assert [(one.deployment, one.workload) for one in once] == [
        (place, workload) for place in places for workload in workloads
    ]


def test_what_does_not_go_together_says_so() -> None:
    with pytest.raises(DeviceModelError, match=r"tp = 3 does not divide the 32 heads of qwen3-8b"):
        DeviceModel(MODELS["qwen3-8b"], CARDS["h100"], tp=3)
    with pytest.raises(DeviceModelError, match=r"dtype = 'int3'; give bf16 or fp8"):
        DeviceModel(MODELS["qwen3-8b"], CARDS["h100"], dtype="int3")
    with pytest.raises(DeviceModelError, match=r"no room for KV; raise --tp above 1"):
        _ = DeviceModel(MODELS["llama-3.3-70b"], CARDS["h100"]).pool_tokens
    with pytest.raises(DeploymentError, match=r"pool_tokens = 3; give 16 to"):
        deployment(pool_tokens=3)
    with pytest.raises(DeploymentError, match=r"decode_stretch is 0\.5"):
        run(deployment(decode_stretch=0.5), Workload(), loaded([conversation([Turn(0, 9, 9, 0)])]))
