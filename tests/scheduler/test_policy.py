# SPDX-License-Identifier: MIT
"""Who runs first, who waits and who goes.  Rows name the cases of the fault matrix."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from replica import Replica
from simulated_worker import whole_rows

from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import ROW_HAS_TOKENS, ROW_SAMPLES, RefusalCode, StepPlan
from tokenspeed_core.scheduler._scheduler import Scheduler, SchedulerError

VOCAB = 50
MS = 1_000_000
S = 1_000 * MS
plans = Decoder(StepPlan)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def first_tokens(replica: Replica) -> list[int]:
    """Run to the end; requests in the order of their first tokens."""
    order: list[int] = []
    while True:
        while replica.plan():
            replica.core.check()
        if not replica.retire():
            break
        order += [r for r, out in replica.outputs.items() if out and r not in order]
    assert not replica.live()
    return order


def one_at_a_time(**limits: Any) -> Replica:
    return Replica(max_slots=1, num_blocks=100, **limits)


def test_larger_priorities_run_earlier_and_equal_ones_in_order_of_arrival() -> None:
    replica = one_at_a_time()
    requests = [replica.submit(prompt(9, i), priority=p) for i, p in enumerate([0, -5, 7, 0, 7])]
    assert first_tokens(replica) == [requests[i] for i in (2, 4, 0, 3, 1)]


@pytest.mark.parametrize("priority", [-101, 101, 2**40])
def test_priorities_out_of_range_are_refused_by_name(priority: int) -> None:
    code, why = Replica().core.submit(1, 1, int32_column([1]), 1, priority=priority) or (0, "")
    assert code == RefusalCode.PARAMETER
    assert "priority" in why


def test_who_waits_gains_a_level_in_the_ageing_time() -> None:
    replica = one_at_a_time(ageing_ns=S)
    old = replica.submit(prompt(9, 1), priority=0, time_ns=1 * S)
    young = replica.submit(prompt(9, 2), priority=3, time_ns=5 * S)
    middle = replica.submit(prompt(9, 3), priority=5, time_ns=5 * S)
    assert first_tokens(replica) == [middle, old, young]


def test_a_stream_of_higher_priorities_does_not_starve() -> None:
    """Whatever arrives, a request of level 0 runs when the others' lead has been waited for."""
    replica = one_at_a_time(ageing_ns=S, max_waiting=10_000)
    low = replica.submit(prompt(9), priority=0, time_ns=0)
    for second in range(1, 100):
        for i in range(3):  # more than the ten steps of a second can serve
            replica.submit(prompt(9, 100 * i + second), priority=10, time_ns=second * S)
        for _ in range(10):
            if not replica.plan():
                replica.retire()
        if replica.outputs[low]:
            break
    else:
        pytest.fail("the request of level 0 has starved")
    assert second >= 10
    replica.run()


def test_the_earliest_deadline_goes_first_within_a_band() -> None:
    replica = one_at_a_time()
    at = {
        i: replica.submit(prompt(9, i), time_ns=S, deadline_ns=d * S)
        for i, d in enumerate([0, 9, 3, 0, 6])
    }
    assert first_tokens(replica) == [at[i] for i in (2, 4, 1, 0, 3)]


def test_a_deadline_that_is_past_does_not_jump_the_queue() -> None:
    replica = one_at_a_time()
    patient = replica.submit(prompt(9, 1), time_ns=5 * S)
    late = replica.submit(prompt(9, 2), time_ns=5 * S, deadline_ns=5 * S + 1)
    frame = replica.core.plan(time_ns=6 * S)
    assert frame is not None
    replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
    assert first_tokens(replica) == [patient, late]


def test_deadlines_of_a_later_band_do_not_starve_a_request_without_one() -> None:
    replica = one_at_a_time(ageing_ns=S, max_waiting=10_000)
    patient = replica.submit(prompt(9), time_ns=0)
    urgent = [
        replica.submit(prompt(9, t), time_ns=t * S, deadline_ns=(t + 1) * S) for t in range(1, 20)
    ]
    assert first_tokens(replica)[0] == patient
    assert set(urgent) <= set(replica.reasons)


def test_a_prefill_is_finished_before_the_next_of_its_level_begins() -> None:
    replica = Replica(num_blocks=400, max_step_tokens=16, max_prefill_tokens=8)
    long = replica.submit(prompt(100, 1), max_tokens=1)
    replica.plan()
    equal = replica.submit(prompt(8, 2), max_tokens=1)
    higher = replica.submit(prompt(8, 3), max_tokens=1, priority=1)
    assert first_tokens(replica) == [higher, long, equal]


def test_small_requests_pass_a_head_that_does_not_fit_and_do_not_delay_it() -> None:
    """The head is admitted in the same step with guests as without, but for the steps in flight."""

    def admitted(guests: int) -> tuple[int, int]:
        replica = Replica(num_blocks=41, block_size=4, max_step_tokens=64, max_slots=12)
        replica.submit(prompt(80, 1), max_tokens=30)  # 28 blocks of 40 in the end
        replica.plan()
        head = replica.submit(prompt(120, 2), max_tokens=8)  # needs the first one's
        small = [replica.submit(prompt(4, 10 + i), max_tokens=20) for i in range(guests)]
        step = 0
        passed = 0
        while not replica.outputs[head]:
            while replica.plan():
                replica.core.check()
            step += 1
            replica.retire()
            passed = sum(1 for r in small if replica.outputs[r])
        replica.run()
        assert not replica.live()
        return step, passed

    alone, _ = admitted(0)
    beside, passed = admitted(6)
    assert passed > 0, "nobody passed the head"
    assert beside <= alone + 2


def test_the_victim_is_who_costs_least_to_compute_again() -> None:
    """The oldest never goes; of the others the one with the shortest context does."""
    replica = Replica(num_blocks=31, block_size=4, max_slots=4, max_step_tokens=200)
    oldest = replica.submit(prompt(8, 1), max_tokens=60)
    short = replica.submit(prompt(20, 2), max_tokens=60)
    long = replica.submit(prompt(48, 3), max_tokens=40)
    outputs: dict[int, int] = {}
    while not replica.core.stats()["preemptions"]:
        outputs = {r: len(replica.outputs[r]) for r in (oldest, short, long)}
        while replica.plan():
            replica.core.check()
        replica.retire()
    for _ in range(4):
        while replica.plan():
            replica.core.check()
        replica.retire()
    grown = {r: len(replica.outputs[r]) - outputs[r] for r in outputs}
    assert grown[oldest] > grown[short]
    assert grown[long] > grown[short]
    replica.run()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_preempt_storm_ends_row_27(depth: int) -> None:
    """Row 27: a pool for 1.1 requests and 64 of them; the oldest always comes to its end."""
    block, length, answer = 4, 40, 40
    replica = Replica(
        num_blocks=int(1.1 * (length + answer) / block) + 2,
        block_size=block,
        depth=depth,
        max_slots=16,
        max_step_tokens=64,
    )
    requests = [replica.submit(prompt(length, i), max_tokens=answer) for i in range(64)]
    finished: list[int] = []
    for _ in range(64 * 200):
        while replica.plan():
            replica.core.check()
        if not replica.retire():
            break
        finished += [r for r in requests if r in replica.reasons and r not in finished]
    assert not replica.live()
    assert finished == requests, "an older request ended behind a later one"
    stats = replica.core.stats()
    useful = 64 * (length + answer)
    tax = stats["recomputed_tokens"] / useful
    assert stats["preemptions"] <= 4 * 64
    assert tax < 0.5, f"{tax:.0%} of the work was done twice"
    replica.check_idle()


def test_a_full_pool_goes_on_every_step_row_26() -> None:
    """Row 26: long decodes and waiting prefills at a full pool; tokens come with every result."""
    replica = Replica(num_blocks=41, block_size=4, max_slots=8, max_step_tokens=64)
    for i in range(30):
        replica.submit(prompt(10 + i, i), max_tokens=60)
    idle = 0
    while replica.live():
        before = sum(map(len, replica.outputs.values())), replica.core.stats()["steps"]
        while replica.plan():
            replica.core.check()
        if not replica.retire():
            pytest.fail("live requests and nothing in flight")
        after = sum(map(len, replica.outputs.values())), replica.core.stats()["steps"]
        idle = 0 if after[0] > before[0] else idle + 1
        assert after[1] > before[1]
        assert idle <= 8, "steps without a token"
    replica.check_idle()


@pytest.mark.parametrize(
    ("length", "max_tokens", "code"),
    [
        (0, 1, RefusalCode.EMPTY_PROMPT),
        (400, 1, RefusalCode.TOO_LONG),
        (401, 1, RefusalCode.TOO_LONG),
        (399, 1, 0),
        (398, 2, 0),
        (398, 50, 0),
    ],
)
def test_prompts_at_the_limit_of_the_model_row_6(length: int, max_tokens: int, code: int) -> None:
    """Row 6: longer than the model takes, exactly that, one less, none at all."""
    replica = Replica(num_blocks=120)
    refused = replica.core.submit(1, 1, int32_column(prompt(length)), max_tokens)
    assert (refused[0] if refused else 0) == code
    if not refused:
        frames = []
        while (frame := replica.core.plan()) is not None:
            report = replica.worker.apply(frame, replica.core.digest)
            replica.core.advance(report.result.step, report.result.tokens)
            frames.append(frame)
        assert sum(1 for e in replica.core.take_events() if e[2] >= 0) == min(
            max_tokens, 400 - length
        )


def test_what_never_fits_is_refused_at_once_row_7() -> None:
    """Row 7: never queued, and those behind it are served."""
    replica = Replica(num_blocks=11, block_size=4)
    refused = replica.core.submit(1, 1000, int32_column(prompt(20)), 22)
    assert refused is not None
    assert refused[0] == RefusalCode.NEVER_FITS
    fits = replica.submit(prompt(20), max_tokens=21)
    replica.run()
    assert len(replica.outputs[fits]) == 21


def test_64_clients_with_one_prefix_compute_it_once_row_28() -> None:
    """Row 28: every output is that of the request alone (Replica.check_end)."""
    replica = Replica(num_blocks=400, max_slots=64, max_step_tokens=4096)
    shared = prompt(120)
    for i in range(64):
        replica.submit(shared + prompt(5, i), max_tokens=5)
    replica.run()
    assert replica.worker.computed_tokens <= 120 + 64 * (5 + 4 + 4)


def test_tenants_with_other_salts_share_nothing_row_31() -> None:
    """Row 31: the same text under two salts."""
    replica = Replica(num_blocks=200)
    text = prompt(64)
    first = replica.submit(text, salt=b"one")
    replica.run()
    second = replica.submit(text, salt=b"two")
    again = replica.submit(text, salt=b"one")
    replica.run()
    assert replica.cached[first] == replica.cached[second] == 0
    assert replica.cached[again] > 0


@dataclass
class Device:
    """A machine in virtual time: a step lasts as its rows and their contexts say, in order."""

    core: Scheduler
    base_ms: float = 8.0
    row_ms: float = 0.02
    token_ms: float = 0.03
    pair_ms: float = 2e-7  # a token and a context token
    depth: int = 2
    now: float = 0.0  # ms
    free: float = 0.0  # when the device ends what it has
    contexts: dict[int, int] = field(default_factory=dict)
    in_flight: deque[tuple[float, int, int]] = field(default_factory=deque)
    prefill_tokens: int = 0
    rows: list[int] = field(default_factory=list)  # slots of the last step's

    def plan(self) -> bool:
        frame = self.core.plan(time_ns=int(self.now * MS) + 1)
        if frame is None:
            return False
        plan = plans.decode(frame)
        for slot, context in zip(
            read_column("i", plan.added_slots), read_column("i", plan.added_context), strict=True
        ):
            self.contexts[slot] = context
        time = self.base_ms
        sampled = 0
        rows = whole_rows(plan, self.rows)
        self.rows = [slot for slot, _, _ in rows]
        for slot, tokens, flags in rows:
            if flags & ROW_HAS_TOKENS:
                time += tokens * (self.token_ms + self.pair_ms * self.contexts[slot])
                self.prefill_tokens += tokens
            else:
                time += self.row_ms
            self.contexts[slot] += tokens
            sampled += bool(flags & ROW_SAMPLES)
        self.free = max(self.free, self.now) + time
        self.in_flight.append((self.free, plan.step, sampled))
        return True

    def step(self) -> list[tuple[int, float]]:
        """Let the oldest step end; (request, time) of the tokens that came."""
        while len(self.in_flight) < self.depth and self.plan():
            pass
        self.now, step, sampled = self.in_flight.popleft()
        self.core.advance(step, int32_column([7] * sampled), time_ns=int(self.now * MS))
        return [(event[1], self.now) for event in self.core.take_events() if event[2] >= 0]


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def busy_device(token_ms: float, decoding: int = 32, **limits: float) -> Device:
    """Return a device in whose core so many requests decode for long."""
    core = Scheduler(
        max_slots=64,
        max_step_tokens=8192 + 64,
        max_model_len=150_000,
        vocab_size=VOCAB,
        hash_key=bytes(16),
        **limits,
    )
    core.begin_epoch(1, 250_000, 16)  # for the longest answers of all
    device = Device(core, token_ms=token_ms)
    for request in range(decoding):
        assert core.submit(1, request, int32_column(prompt(64, request)), 100_000) is None
    for _ in range(300):
        device.step()
    return device


def long_prefill(device: Device) -> tuple[float, float, float]:
    """Return the 99th percentile of the others' gaps without and beside a prefill, and its time."""
    core = device.core
    idle: dict[int, list[float]] = {}
    for _ in range(300):
        for request, time in device.step():
            idle.setdefault(request, []).append(time)
    long, now = int32_column(prompt(100_000)), int(device.now * MS)
    assert core.submit(1, 99, long, 10, time_ns=now) is None
    before, device.prefill_tokens = device.now, 0
    busy: dict[int, list[float]] = {}
    while 99 not in busy:
        for request, time in device.step():
            busy.setdefault(request, []).append(time)
    usual = quantile([gap for times in idle.values() for gap in gaps(times)], 0.99)
    during = quantile([gap for r, times in busy.items() if r != 99 for gap in gaps(times)], 0.99)
    return usual, during, device.now - before


@pytest.mark.parametrize(("token_ms", "stretch"), [(0.01, 1.5), (0.03, 1.5), (0.03, 3.0)])
def test_a_long_prefill_leaves_the_cadence_of_others_alone(token_ms: float, stretch: float) -> None:
    """While 100k tokens are prefilled the others' gaps stay within what the limits allow."""
    device = busy_device(token_ms, decode_stretch=stretch)
    usual, during, took = long_prefill(device)
    assert during <= stretch * usual, f"gaps of {during:.1f} ms, {usual:.1f} ms when idle"
    # And the prefill gets what the bound leaves: of 1.5 a third of the time of a step.
    alone = 100_000 * (token_ms + device.pair_ms * 50_000)
    share = (stretch - 1) / stretch
    assert took < 1.5 * alone / share, f"it took {took / 1e3:.1f} s, {alone / 1e3:.1f} s alone"
    if stretch > 1.5:
        assert took < 2.5 * alone, "more than a stretch of 1.5 could give"


def test_a_short_prompt_is_read_at_once_beside_a_long_prefill() -> None:
    """It takes what steps left of their share; the long one, and those who decode, go on."""
    device = busy_device(0.03)
    core, now = device.core, int(device.now * MS)
    # The cost of prefill is learnt from this one.
    assert core.submit(1, 98, int32_column(prompt(5_000, 1)), 10, time_ns=now) is None
    for _ in range(400):
        device.step()
    now = int(device.now * MS)
    assert core.submit(1, 99, int32_column(prompt(100_000, 2)), 10, time_ns=now) is None
    for _ in range(50):
        device.step()
    began, waited, times = device.now, 0.0, []
    assert core.submit(1, 100, int32_column(prompt(600, 3)), 10, time_ns=int(began * MS)) is None
    first: dict[int, float] = {}
    while 99 not in first:
        for request, time in device.step():
            first.setdefault(request, time)
            times += [time] * (request == 0)
        waited = max(waited, *gaps(times[-2:]), 0.0)
    # Two steps are in flight when it comes; its own lasts as long as it takes, 600 x 0.03 ms more.
    assert first[100] - began < 3 * 1.5 * 9 + 600 * 0.03
    assert first[99] > first[100] + 1000
    assert waited <= 100 + 1.5 * 9, "nobody waits longer than a pause for one step"


@pytest.mark.parametrize("ageing_ms", [100, 10_000])
def test_who_has_waited_for_an_ageing_time_is_passed_no_more(ageing_ms: int) -> None:
    device = busy_device(0.03, ageing_ns=ageing_ms * MS)
    order: list[int] = []
    for request, length in ((97, 5_000), (98, 60_000), (99, 20_000), (100, 600)):
        now, ids = int(device.now * MS), int32_column(prompt(length, request))
        assert device.core.submit(1, request, ids, 10, time_ns=now) is None
        for _ in range(400 if request == 97 else 50):
            order += [each for each, _ in device.step() if each >= 98]
    assert 98 not in order, "it is prefilled still, and 99 waits for it"
    while 98 not in order:
        order += [each for each, _ in device.step() if each >= 98]
    assert (100 in order) == (ageing_ms == 10_000)


def test_short_prompts_that_keep_coming_do_not_stop_those_who_decode() -> None:
    """Beyond what was saved they have the share of a crowd."""
    device = busy_device(0.03)
    times: list[float] = []
    for i in range(1000):
        now = int(device.now * MS)
        assert device.core.submit(1, 100 + i, int32_column(prompt(500, i)), 1, time_ns=now) is None
        times += [time for request, time in device.step() if request == 0]
    settled = gaps(times)[300:]
    assert sum(settled) / len(settled) <= 2 * 9


@pytest.mark.parametrize(("decoding", "few", "many"), [(32, 16, 60), (8, 4, 24)])
def test_a_crowd_that_waits_has_twice_the_share_of_a_long_prefill(
    decoding: int, few: int, many: int
) -> None:
    means = {}
    for count in (few, many):
        device = busy_device(0.03, decoding)
        idle = [time for _ in range(100) for request, time in device.step() if request == 0]
        now = int(device.now * MS)
        for i in range(count):
            ids = int32_column(prompt(50_000, i))
            assert device.core.submit(1, 100 + i, ids, 2, time_ns=now) is None
        times = [time for _ in range(200) for request, time in device.step() if request == 0]
        means[count] = sum(gaps(times)) / len(gaps(times)) / gaps(idle)[-1]
    assert means[many] <= 2
    assert 1.8 < (means[many] - 1) / (means[few] - 1) < 2.2


def test_stretches_below_one_are_refused() -> None:
    with pytest.raises(SchedulerError, match=r"decode_stretch is 0\.5"):
        Replica(decode_stretch=0.5)
