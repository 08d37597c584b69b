# SPDX-License-Identifier: MIT
"""The core with a simulated worker: what comes out, and at what cost."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from replica import Replica
from simulated_worker import expected_tokens

from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import FinishReason, RefusalCode, StepPlan
from tokenspeed_core.scheduler._scheduler import SchedulerError

VOCAB = 50
plans = Decoder(StepPlan)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def test_one_request_gets_its_tokens() -> None:
    replica = Replica()
    request = replica.submit(prompt(10), max_tokens=20)
    replica.run()
    assert replica.outputs[request] == expected_tokens(prompt(10), 20, VOCAB)
    assert replica.reasons[request] == FinishReason.LENGTH
    replica.check_idle()


# Every variation must give the tokens of the request alone: Replica.check_end compares.
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"depth": 1},
        {"depth": 4},
        {"prefix_caching": False},
        {"max_prefill_tokens": 3},
        {"max_step_tokens": 8},
        {"max_slots": 1},
        {"block_size": 1},
        {"block_size": 16},
        {"num_blocks": 30},
    ],
    ids=str,
)
def test_outputs_do_not_depend_on_how_it_runs(limits: dict[str, Any]) -> None:
    replica = Replica(**{"num_blocks": 200, **limits})
    for i in range(24):
        shared = prompt(5 + i % 7 * 4, seed=i % 3)
        replica.submit(shared + prompt(i % 5, seed=i), max_tokens=1 + i % 11, seed=i % 2)
    replica.run()
    assert set(replica.reasons.values()) == {FinishReason.LENGTH}
    replica.check_idle()


def test_a_stop_id_ends_and_is_delivered() -> None:
    replica = Replica()
    text = expected_tokens(prompt(6), 12, VOCAB)
    request = replica.submit(prompt(6), max_tokens=12, stop_ids=(text[5],))
    replica.run()
    assert replica.outputs[request] == replica.expected(request)
    assert replica.reasons[request] == FinishReason.STOP
    # Depth 2 had planned one token more: it was thrown away and counted nowhere.
    stats = replica.core.stats()
    assert stats["overrun_tokens"] == 1
    assert stats["generated_tokens"] == len(replica.outputs[request])
    replica.check_idle()


def test_the_second_time_is_served_from_the_cache() -> None:
    replica = Replica()
    first = replica.submit(prompt(33))
    replica.run()
    assert replica.cached[first] == 0
    before = replica.worker.computed_tokens
    second = replica.submit(prompt(33))
    replica.run()
    assert replica.cached[second] == 32
    assert replica.worker.computed_tokens - before == 1 + 3
    # A whole prompt is never taken from the cache: the last token gives the logits.
    third = replica.submit(prompt(32))
    replica.run()
    assert replica.cached[third] == 28


def test_a_next_turn_finds_the_generated_tokens() -> None:
    replica = Replica()
    first = replica.submit(prompt(8), max_tokens=10)
    replica.run()
    turn = prompt(8) + replica.outputs[first] + prompt(3, seed=9)
    second = replica.submit(turn)
    replica.run()
    assert replica.cached[second] == 16


@pytest.mark.parametrize("chunk", [0, 8])
def test_many_clients_with_one_new_prefix_compute_it_once(chunk: int) -> None:
    replica = Replica(num_blocks=600, max_slots=64, max_step_tokens=128, max_prefill_tokens=chunk)
    prefix = prompt(101)
    for i in range(64):
        replica.submit(prefix, max_tokens=3, seed=i)
    replica.run()
    # 100 tokens in whole blocks once; each of the 64 its last prompt token and two decodes.
    assert replica.worker.computed_tokens == 100 + 64 * 3
    assert replica.core.stats()["cached_tokens"] == 63 * 100
    replica.check_idle()


def test_salts_share_nothing() -> None:
    replica = Replica()
    one = replica.submit(prompt(30), salt=b"a")
    replica.run()
    other = replica.submit(prompt(30), salt=b"b")
    again = replica.submit(prompt(30), salt=b"a")
    replica.run()
    assert [replica.cached[r] for r in (one, other, again)] == [0, 0, 28]


def test_preempted_requests_give_the_same_tokens() -> None:
    replica = Replica(num_blocks=24, max_slots=8, prefix_caching=False)
    for i in range(8):
        replica.submit(prompt(12, seed=i), max_tokens=40)
    replica.run()
    assert replica.core.stats()["preemptions"] > 0
    assert set(replica.reasons.values()) == {FinishReason.LENGTH}
    replica.check_idle()


def test_a_pool_for_one_request_serves_many() -> None:
    replica = Replica(num_blocks=1 + 14, max_slots=8)
    order: list[int] = []
    for i in range(30):
        replica.submit(prompt(16, seed=i), max_tokens=40)
    while replica.live():
        done = set(replica.reasons)
        while replica.plan():
            replica.core.check()
        assert replica.retire()
        order += sorted(set(replica.reasons) - done)
    assert order == sorted(order), "a later request overtook an earlier one of the same shape"
    # The recompute tax is bounded: a victim comes back only when it fits.
    assert replica.core.stats()["preemptions"] <= 2 * 30


def test_steps_keep_to_the_budget_and_decode_goes_on_during_prefill() -> None:
    replica = Replica(num_blocks=200, max_step_tokens=16)
    runner = replica.submit(prompt(4), max_tokens=30)
    for _ in range(3):
        replica.plan()
        replica.retire()
    replica.submit(prompt(200, seed=5), max_tokens=2)
    for _ in range(10):
        before = len(replica.outputs[runner])
        replica.plan()
        replica.retire()
        assert len(replica.outputs[runner]) == before + 1
    replica.run()
    assert replica.worker.largest_step == 1 + 12  # a chunk ends with a block


@pytest.mark.parametrize(
    ("reported", "reason"), [(-1, FinishReason.NUMERIC), (-2, FinishReason.NO_TOKEN)]
)
def test_a_row_without_a_token_ends_that_request_alone(reported: int, reason: FinishReason) -> None:
    replica = Replica()
    replica.worker.no_token = reported
    replica.worker.nan_when = tuple(prompt(9)[-2:])
    bad = replica.submit(prompt(9))
    good = replica.submit([*prompt(9)[:-1], 3, 4, 5])
    replica.run()
    assert replica.reasons == {bad: reason, good: FinishReason.LENGTH}
    assert replica.outputs[bad] == []
    replica.worker.nan_when = ()
    again = replica.submit(prompt(9))
    replica.run()
    # What the broken request wrote is not trusted; what the good one computed is.
    assert replica.reasons[again] == FinishReason.LENGTH
    replica.check_idle()


@pytest.mark.parametrize("moment", range(14))
def test_abort_in_every_state_gives_all_blocks_back(moment: int) -> None:
    replica = Replica(num_blocks=16, max_slots=4, max_step_tokens=8, prefix_caching=False)
    requests = [replica.submit(prompt(17, seed=i), max_tokens=20) for i in range(5)]
    for i in range(moment):
        if not replica.plan() or i % 3 == 2:
            replica.retire()
    for request in requests:
        replica.abort(request)
        replica.core.check()
    while replica.retire():
        replica.core.check()
    assert not replica.plan()
    replica.check_idle()


def test_lost_workers_end_what_ran_and_keep_what_waited() -> None:
    replica = Replica(max_slots=2)
    requests = [replica.submit(prompt(9, seed=i), max_tokens=6) for i in range(5)]
    replica.plan()
    replica.end_epoch()
    assert replica.reasons == dict.fromkeys(requests[:2], FinishReason.WORKER_LOST)
    replica.core.check()
    replica.begin_epoch()
    replica.run()
    assert [replica.reasons[r] for r in requests[2:]] == [FinishReason.LENGTH] * 3
    replica.check_idle()


def test_a_head_that_was_blocked_is_tried_again_in_the_next_epoch() -> None:
    replica = Replica(num_blocks=6)
    replica.submit([1], max_tokens=1)
    replica.run()
    replica.submit(prompt(8), max_tokens=12)
    blocked = replica.submit(prompt(16, seed=1), max_tokens=4)
    replica.plan()
    assert replica.core.stats()["waiting"] == 1
    replica.end_epoch()
    replica.begin_epoch()
    replica.run()
    assert replica.reasons[blocked] == FinishReason.LENGTH


def test_what_never_fits_is_refused_at_once_or_when_workers_come() -> None:
    replica = Replica(num_blocks=6)  # 5 blocks of 4: 20 positions, and a last token without KV
    replica.submit(prompt(10), max_tokens=11)
    code, _ = replica.core.submit(1, 99, int32_column(prompt(10)), 12) or (0, "")
    assert code == RefusalCode.NEVER_FITS
    replica.run()
    replica.end_epoch()
    assert replica.core.submit(1, 100, int32_column(prompt(10)), 12) is None
    replica.begin_epoch()
    late = [rejected[:3] for rejected in replica.core.take_rejections()]
    assert late == [(1, 100, RefusalCode.NEVER_FITS)]
    assert replica.core.take_rejections() == []
    replica.check_idle()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": []}, RefusalCode.EMPTY_PROMPT),
        ({"prompt": [50]}, RefusalCode.TOKEN_ID),
        ({"prompt": [-1]}, RefusalCode.TOKEN_ID),
        ({"stop_ids": int32_column([77])}, RefusalCode.TOKEN_ID),
        ({"prompt": [1] * 400}, RefusalCode.TOO_LONG),
        ({"max_tokens": 0}, RefusalCode.PARAMETER),
        ({"max_tokens": -(2**62)}, RefusalCode.PARAMETER),
        ({"temperature": -1.0}, RefusalCode.PARAMETER),
        ({"temperature": float("nan")}, RefusalCode.PARAMETER),
        ({"top_k": -1}, RefusalCode.PARAMETER),
        ({"top_k": 2**31}, RefusalCode.PARAMETER),
        ({"top_p": 0.0}, RefusalCode.PARAMETER),
        ({"priority": 101}, RefusalCode.PARAMETER),
    ],
)
def test_bad_requests_are_refused(fields: dict[str, Any], code: int) -> None:
    replica = Replica()
    values: dict[str, Any] = {"prompt": [1], "max_tokens": 1, **fields}
    column = int32_column(values.pop("prompt"))
    refused = replica.core.submit(1, 1, column, values.pop("max_tokens"), **values)
    assert refused is not None
    assert refused[0] == code
    assert replica.core.stats()["rejected"] == 1


def test_queue_bound_duplicates_and_draining() -> None:
    replica = Replica(max_waiting=2)
    replica.submit([1])
    duplicate = replica.core.submit(1, 1, int32_column([1]), 1)
    assert duplicate is not None
    assert duplicate[0] == RefusalCode.DUPLICATE
    replica.submit([2])
    full = replica.core.submit(1, 7, int32_column([1]), 1)
    assert full is not None
    assert full[0] == RefusalCode.QUEUE_FULL
    replica.core.drain()
    drained = replica.core.submit(1, 8, int32_column([1]), 1)
    assert drained is not None
    assert drained[0] == RefusalCode.DRAINING
    replica.run()


def running(replica: Replica) -> int:
    for number in range(6):
        replica.submit([number])
    assert replica.plan()
    return replica.core.stats()["running"]


def step_tokens(replica: Replica) -> int:
    replica.submit(prompt(30))
    frame = replica.core.plan()
    assert frame is not None
    return sum(read_column("i", plans.decode(frame).row_tokens))


def longest(replica: Replica) -> int:
    request = replica.submit(prompt(10), max_tokens=10**12)
    replica.run()
    return 10 + len(replica.outputs[request])


def queued(replica: Replica) -> int:
    column = int32_column([1])
    return next(n for n in range(100) if replica.core.submit(1, n, column, 1) is not None)


def found(replica: Replica) -> int:
    for _ in range(2):
        request = replica.submit(prompt(33))
        replica.run()
    return replica.cached[request]


@pytest.mark.parametrize(
    ("setting", "effect", "expected"),
    [
        ("max_slots", running, {1: 1, 4: 4}),
        ("max_step_tokens", step_tokens, {8: 8, 16: 16}),
        ("max_model_len", longest, {20: 20, 30: 30}),
        ("max_waiting", queued, {1: 1, 7: 7}),
        ("prefix_caching", found, {True: 32, False: 0}),
    ],
)
def test_each_setting_has_its_effect(
    setting: str, effect: Callable[[Replica], int], expected: dict[int, int]
) -> None:
    found = {value: effect(Replica(**{setting: value})) for value in expected}
    assert found == expected


def test_the_longest_request_of_the_model_ends_with_length() -> None:
    replica = Replica(max_model_len=20)
    request = replica.submit(prompt(19), max_tokens=10**12)
    replica.run()
    assert replica.reasons[request] == FinishReason.LENGTH
    assert len(replica.outputs[request]) == 1


def test_a_result_that_breaks_the_contract_changes_nothing() -> None:
    replica = Replica()
    replica.submit(prompt(5))
    assert replica.plan()
    for step, tokens in [(2, [1]), (1, []), (1, [1, 2]), (1, [50]), (1, [-3])]:
        with pytest.raises(SchedulerError):
            replica.core.advance(step, int32_column(tokens))
    replica.run()


def test_slots_that_share_blocks_form_prefix_groups() -> None:
    replica = Replica(num_blocks=200)
    system = prompt(41)
    replica.submit(system + prompt(3, seed=1), max_tokens=30)
    for _ in range(2):
        replica.plan()
        replica.retire()
    replica.submit(system + prompt(4, seed=2), max_tokens=8)
    replica.submit(system + prompt(5, seed=3), max_tokens=5)
    frame = replica.core.plan()
    assert frame is not None
    plan = plans.decode(frame)
    assert sorted(read_column("i", plan.prefix_slots)) == [0, 1, 2]
    assert len(set(read_column("i", plan.prefix_groups))) == 1
    assert list(read_column("i", plan.prefix_blocks)) == [10, 10, 10]
    replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
    replica.run()  # the worker checks every change of the groups
    replica.check_idle()


def test_the_same_events_give_the_same_plans() -> None:
    def frames() -> list[bytes]:
        replica = Replica(num_blocks=40)
        for i in range(12):
            replica.submit(prompt(10 + i, seed=i % 4), max_tokens=9)
        seen = []
        while replica.live():
            while replica.plan():
                seen.append(replica.core.digest)
            replica.retire()
        return seen

    assert frames() == frames()
