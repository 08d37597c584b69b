# SPDX-License-Identifier: MIT
"""Gaps between steps, from events of a device that is made of numbers."""

from typing import Any

import pytest

from tokenspeed_core import device_gaps
from tokenspeed_core.device_gaps import DeviceGaps, summary
from tokenspeed_core.ipc.messages import StepPlan


class Clock:
    """A stream: an event happens at the time that the work queued before it ends."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reached = float("inf")  # what the device has come to


class Event:
    """An event of the clock's stream."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.at = clock, clock.now

    def query(self) -> bool:
        return self.at <= self.clock.reached

    def elapsed_time(self, other: "Event") -> float:
        return (other.at - self.at) / 1e3


class Steps:
    """Steps of 10 us each, behind 3 us in which nothing is queued."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def launch(self, plan: StepPlan) -> Any:
        self.clock.now += 10
        return plan.step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(device_gaps, "_event", lambda: Event(made))
    return made


def test_gaps_are_what_lies_between_steps(clock: Clock) -> None:
    timed = DeviceGaps(Steps(clock))  # type: ignore[arg-type]
    for step in range(200):
        assert timed.launch(StepPlan(1, step)) == step
        clock.now += 3
    assert timed.taken() == pytest.approx([3.0] * 199)
    assert timed.taken() == []


def test_a_step_that_has_not_begun_has_no_gap_yet(clock: Clock) -> None:
    timed = DeviceGaps(Steps(clock))  # type: ignore[arg-type]
    for step in range(3):
        timed.launch(StepPlan(1, step))
        clock.now += 3
    clock.reached = 14  # the second has begun
    assert timed.taken() == pytest.approx([3.0])
    clock.reached = 100
    assert timed.taken() == pytest.approx([3.0])


def test_a_summary_names_count_and_percentiles() -> None:
    assert summary([]) == "no gaps"
    assert summary([float(x) for x in range(100)]) == (
        "100 gaps: p50 50.0, p90 90.0, p99 99.0, most 99.0 us"
    )
