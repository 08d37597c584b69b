# SPDX-License-Identifier: MIT
"""Sessions and hints: what stays cached when something has to go."""

import random
from pathlib import Path

import pytest
from replica import CLIENT, Replica

from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import SessionAction
from tokenspeed_core.scheduler._scheduler import SchedulerError

SECOND = 10**9


class Chat:
    """Conversations on a replica whose clock the test holds."""

    def __init__(self, num_blocks: int, eviction: str = "reuse") -> None:
        self.replica = Replica(num_blocks=num_blocks, eviction=eviction)
        self.time = SECOND
        self.cached = 0
        self.prompt_tokens = 0

    def turn(self, prompt: list[int], session: str = "", wait_s: float = 1.0, **fields: int) -> int:
        """One request after a pause; returns its cached tokens."""
        self.time += int(wait_s * SECOND)
        request = self.replica.submit(
            prompt, max_tokens=1, session=session, time_ns=self.time, **fields
        )
        while request in self.replica.live():
            frame = self.replica.core.plan(self.time)
            if frame is not None:
                core = self.replica.core
                self.replica.in_flight.append(self.replica.worker.apply(frame, core.digest))
            self.replica.retire()
            self.replica.core.check()
        while self.replica.retire():
            pass
        cached = self.replica.cached[request]
        self.cached += cached
        self.prompt_tokens += len(prompt)
        return cached

    def hint(self, session: str, action: int, ttl_s: float = 0) -> None:
        self.replica.core.hint(session, action, time_ns=self.time, ttl_ns=int(ttl_s * SECOND))


def context(family: int, tokens: int) -> list[int]:
    return [(family * 7 + i) % 50 for i in range(tokens)]


FILLER = [49, 48, 47, 46] * 8  # 8 blocks


@pytest.mark.parametrize("action", [SessionAction.DEMOTE, SessionAction.END])
def test_who_is_demoted_or_over_goes_first(action: SessionAction) -> None:
    chat = Chat(num_blocks=26)
    chat.turn(context(1, 41), "old")
    chat.turn(context(2, 41), "gone")
    chat.hint("gone", action)
    chat.turn([*FILLER, 1], "filler")
    assert chat.turn(context(1, 41), "old") == 40
    assert chat.turn(context(2, 41), "gone") < 40


def test_retained_blocks_outlive_others_until_their_time_is_over() -> None:
    chat = Chat(num_blocks=30)
    chat.turn(context(1, 41), "kept", retain_ns=100 * SECOND)
    assert chat.replica.core.stats()["retained_blocks"] == 10
    for family in range(2, 8):
        chat.turn(context(family, 41), f"other{family}")
    assert chat.turn(context(1, 41), "kept", retain_ns=100 * SECOND) == 40
    chat.turn(context(9, 41), "later", wait_s=101)
    assert chat.replica.core.stats()["retained_blocks"] == 0


def test_release_takes_retain_back() -> None:
    chat = Chat(num_blocks=30)
    chat.turn(context(1, 41), "kept")
    chat.hint("kept", SessionAction.RETAIN, ttl_s=50)
    assert chat.replica.core.stats()["retained_blocks"] == 10
    chat.hint("kept", SessionAction.RELEASE)
    assert chat.replica.core.stats()["retained_blocks"] == 0


def test_hints_never_pin() -> None:
    chat = Chat(num_blocks=12)
    chat.turn(context(1, 41), "kept")
    chat.hint("kept", SessionAction.RETAIN)
    chat.turn(context(2, 41), "other")  # needs the room of what is retained
    assert chat.replica.core.stats()["preemptions"] == 0


def test_a_session_of_another_salt_is_another() -> None:
    chat = Chat(num_blocks=30)
    chat.turn(context(1, 41), "mine", salt=b"a")
    chat.replica.core.hint("mine", SessionAction.RETAIN, salt=b"b", time_ns=chat.time)
    assert chat.replica.core.stats()["retained_blocks"] == 0
    assert chat.turn(context(1, 41), "mine", salt=b"b") == 0
    assert chat.replica.core.stats()["sessions"] == 2


def test_unknown_sessions_and_actions_do_nothing() -> None:
    chat = Chat(num_blocks=30)
    chat.hint("nobody", SessionAction.END)
    chat.turn(context(1, 41), "mine")
    chat.hint("mine", 99)
    assert chat.turn(context(1, 41), "mine") == 40


def test_a_request_without_a_name_continues_the_conversation_that_it_extends() -> None:
    chat = Chat(num_blocks=60)
    chat.turn(context(1, 41))
    chat.turn(context(1, 49))
    assert chat.replica.core.stats()["sessions"] == 1
    chat.turn(context(2, 41))
    chat.turn(context(1, 60))
    assert chat.replica.core.stats()["sessions"] == 2


def test_a_hundred_thousand_idle_sessions_take_bounded_memory() -> None:
    """More than the table holds: the oldest are forgotten, and go on as what they send says."""
    chat = Chat(num_blocks=60)
    chat.turn(context(1, 41), "first")
    core, prompt = chat.replica.core, int32_column(context(2, 5))
    before = resident_bytes()
    for request in range(1000, 141_000):
        session = f"idle-{request}"
        refused = core.submit(CLIENT, request, prompt, 1, session=session, time_ns=chat.time)
        assert refused is None
        core.abort(CLIENT, request, -1)
        core.take_events()
    assert core.stats()["sessions"] == 1 << 17
    assert resident_bytes() - before < (1 << 17) * 1024
    for session in ("idle-140999", "idle-140999", "idle-1000", "first"):  # twice, forgotten, used
        chat.hint(session, SessionAction.END)
    assert core.stats()["sessions"] >= (1 << 17) - 1
    assert chat.turn(context(1, 41), "first") == 40
    chat.replica.check_idle()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_an_eviction_that_is_not_known_is_refused() -> None:
    with pytest.raises(SchedulerError, match="random"):
        Replica(eviction="random")


def loop(_: random.Random) -> list[tuple[int, float]]:
    return [(i % 7, 5.0) for i in range(400)]


def uniform(dice: random.Random) -> list[tuple[int, float]]:
    # Nothing to learn: what learning costs shrinks with time.
    return [(dice.randrange(9), 3.0) for _ in range(1200)]


def hot_and_scan(dice: random.Random) -> list[tuple[int, float]]:
    return [(dice.randrange(2) if i % 2 else 10 + i, 1.0) for i in range(400)]


def shifting(dice: random.Random) -> list[tuple[int, float]]:
    """Who is quick and who is slow changes places every 50 requests."""
    return [((dice.randrange(3) + i // 50 * 2) % 9, dice.choice([0.1, 30.0])) for i in range(400)]


@pytest.mark.parametrize("load", [loop, uniform, hot_and_scan, shifting])
@pytest.mark.parametrize("named", [True, False])
def test_never_worse_than_least_recently_used(load: object, named: bool) -> None:
    hits = {}
    for eviction in ("reuse", "lru"):
        chat = Chat(num_blocks=45, eviction=eviction)
        assert callable(load)
        for family, wait in load(random.Random(4)):
            chat.turn(
                [family % 50, *context(family, 40)], str(family) if named else "", wait_s=wait
            )
        hits[eviction] = chat.cached / chat.prompt_tokens
    assert hits["reuse"] >= hits["lru"] - 0.03
