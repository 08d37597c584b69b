# SPDX-License-Identifier: MIT
"""Random schedules of the core: every invariant after every event, every token as expected."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from replica import Replica
from simulated_groups import Group

from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import GroupKind
from tokenspeed_core.scheduler._scheduler import SchedulerError

VOCAB = 12
SECOND = 1_000_000_000
# Tokens and spans in blocks.
GROUPS: list[list[Group]] = [
    [],
    [],
    [Group(GroupKind.FULL, 1, 0, 1), Group(GroupKind.WINDOW, 1, 2, 2)],
    [Group(GroupKind.FULL, 1, 0, 3), Group(GroupKind.STATE, 1, 2, 1)],
    [
        Group(GroupKind.FULL, 1, 0, 2),
        Group(GroupKind.WINDOW, 2, 4, 1),
        Group(GroupKind.STATE, 1, 3, 1),
    ],
]
SESSIONS = ["", "one", "two"]
# Prompts of one family share their beginnings at every length.
FAMILIES = [[(family * 5 + i * i) % VOCAB for i in range(60)] for family in range(3)]


class Schedule(RuleBasedStateMachine):
    """Events in any order; `Replica` compares every token with the request alone."""

    time_ns = 0

    @initialize(
        block_size=st.integers(1, 5),
        num_blocks=st.integers(8, 40),
        max_slots=st.integers(1, 5),
        budget=st.integers(0, 12),
        depth=st.integers(1, 3),
        max_drafts=st.sampled_from([0, 0, 1, 3]),
        chunk=st.sampled_from([0, 0, 1, 3, 7]),
        caching=st.booleans(),
        host_blocks=st.sampled_from([0, 3, 30]),
        groups=st.sampled_from(GROUPS),
    )
    def begin(
        self,
        max_slots: int,
        budget: int,
        chunk: int,
        caching: bool,
        groups: list[Group],
        **shape: int,
    ) -> None:
        depth = shape.pop("depth")
        if any(group.kind == GroupKind.STATE for group in groups):
            shape["max_drafts"] = 0
        size = shape["block_size"]
        self.replica = Replica(
            **shape,
            groups=[
                Group(kind, tokens * size, span * size, share)
                for kind, tokens, span, share in groups
            ],
            vocab_size=VOCAB,
            max_slots=max_slots,
            max_step_tokens=max_slots + budget,
            max_model_len=60,
            max_waiting=6,
            depth=depth,
            max_prefill_tokens=chunk,
            prefix_caching=caching,
        )

    @rule(
        family=st.integers(0, 2),
        length=st.integers(1, 40),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=3),
        max_tokens=st.integers(1, 20),
        stop=st.lists(st.integers(0, VOCAB - 1), max_size=1),
        seed=st.integers(0, 1),
        salt=st.sampled_from([b"", b"one"]),
        session=st.sampled_from(SESSIONS),
        retain_ns=st.sampled_from([0, 5 * SECOND]),
    )
    def submit(self, family: int, length: int, tail: list[int], **fields: Any) -> None:
        prompt = FAMILIES[family][:length] + tail
        stop = tuple(fields.pop("stop"))
        request = len(self.replica.asked) + 1
        refused = self.replica.core.submit(
            2, request, int32_column(prompt), fields["max_tokens"], stop_ids=int32_column(stop)
        )
        if refused is None:  # it would be taken: take it back, and submit it under its own name
            self.replica.core.abort(2, request)
            self.replica.core.take_events()
            self.replica.submit(prompt, stop_ids=stop, time_ns=self.time_ns, **fields)

    @rule(
        session=st.sampled_from(SESSIONS),
        action=st.integers(0, 8),  # the first and the last are unknown ones
        ttl_ns=st.sampled_from([0, 3 * SECOND]),
        salt=st.sampled_from([b"", b"one"]),
    )
    def hint(self, session: str, action: int, ttl_ns: int, salt: bytes) -> None:
        self.replica.core.hint(session, action, time_ns=self.time_ns, ttl_ns=ttl_ns, salt=salt)

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.time_ns += seconds * SECOND

    @rule()
    def plan(self) -> None:
        self.replica.plan()

    @rule()
    def retire(self) -> None:
        self.replica.retire()

    @rule(ok=st.booleans())
    def transfer(self, ok: bool) -> None:
        self.replica.transfer(ok)

    @rule(family=st.integers(0, 2), length=st.integers(1, 40), demote=st.booleans())
    def move_tier(self, family: int, length: int, demote: bool) -> None:
        tokens = int32_column(FAMILIES[family][:length])
        (self.replica.core.demote if demote else self.replica.core.prefetch)(tokens)

    @rule(steps=st.integers(2, 6))
    def run_on(self, steps: int) -> None:
        for _ in range(steps):
            self.replica.plan()
            self.replica.retire()

    @rule(which=st.integers(0, 5), kept=st.integers(-1, 3))
    def abort(self, which: int, kept: int) -> None:
        live = self.replica.live()
        if live:
            self.replica.abort(live[which % len(live)], kept)

    @precondition(lambda self: self.replica.in_flight)
    @rule(offset=st.sampled_from([-1, 1]))
    def report_another_step(self, offset: int) -> None:
        result = self.replica.in_flight[0].result
        with pytest.raises(SchedulerError):
            self.replica.core.advance(result.step + offset, result.tokens)

    @rule()
    def lose_the_workers(self) -> None:
        self.replica.end_epoch()
        self.replica.core.check()
        self.replica.begin_epoch()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "replica"):
            self.replica.core.check()

    def teardown(self) -> None:
        if hasattr(self, "replica"):
            self.replica.run()
            self.replica.check_idle()


def test_any_schedule() -> None:
    quick = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Schedule, settings=quick)


@pytest.mark.soak
def test_any_schedule_for_long() -> None:
    long = settings(
        max_examples=3000,
        stateful_step_count=80,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Schedule, settings=long)
