# SPDX-License-Identifier: MIT
"""Where requests of epochs with several block groups begin, and what they leave behind."""

import pytest
from replica import Replica
from simulated_groups import Group

from tokenspeed_core.ipc.messages import GroupKind
from tokenspeed_core.scheduler._scheduler import SchedulerError

FULL = Group(GroupKind.FULL, 4, 0, 1)
WINDOW = Group(GroupKind.WINDOW, 4, 8, 1)
STATE = Group(GroupKind.STATE, 4, 16, 1)


def tokens(count: int, start: int = 0) -> list[int]:
    return [(start + i * i) % 50 for i in range(count)]


def replica(*groups: Group, **options: int) -> Replica:
    return Replica(**{"num_blocks": 200, "max_step_tokens": 64, **options}, groups=groups)


def cached(engine: Replica, prompt: list[int], max_tokens: int = 1) -> int:
    """Run one request alone and return how many tokens it found."""
    request = engine.submit(prompt, max_tokens)
    engine.run()
    return engine.cached[request]


def test_a_request_begins_at_the_last_snapshot() -> None:
    engine = replica(FULL, STATE)
    assert cached(engine, tokens(50)) == 0
    # A chunk that passes several boundaries ends at the last: 48.  Full blocks are there too.
    assert cached(engine, [*tokens(50), 1, 2, 3]) == 48


def test_where_full_blocks_reach_further_a_chunk_is_cut_once() -> None:
    engine = replica(FULL, STATE)
    cached(engine, tokens(50))
    # 28 tokens in common, and the only snapshot is after 48: all is computed, and cut at 28.
    branches = [[*tokens(30), 7, seed] for seed in range(3)]
    assert [cached(engine, branch) for branch in branches] == [0, 28, 28]


def test_a_window_needs_its_last_blocks_only() -> None:
    engine = replica(FULL, WINDOW)
    cached(engine, tokens(60))
    for length in (60, 41, 24):
        assert cached(engine, tokens(length)) == (length - 1) // 4 * 4


def test_all_groups_must_resume() -> None:
    engine = replica(FULL, WINDOW, STATE)
    cached(engine, tokens(50))
    assert cached(engine, [*tokens(50), 9]) == 48
    assert cached(engine, [*tokens(44), 9]) == 0


def test_blocks_behind_the_window_make_room() -> None:
    # 25 blocks of the full group, a few of the window's: all 25 of both would not fit in 36.
    engine = replica(FULL, WINDOW, num_blocks=37, max_step_tokens=16)
    request = engine.submit(tokens(80), 20)
    engine.run()
    assert len(engine.outputs[request]) == 20
    assert engine.core.stats()["preemptions"] == 0


def test_the_next_turn_begins_at_the_last_snapshot() -> None:
    engine = replica(FULL, STATE)
    history = tokens(20)
    for turn in range(6):
        request = engine.submit(list(history), 13)
        engine.run()
        # Decoding stops by at every 16 tokens, prefill at the last of them.
        if turn:
            assert engine.cached[request] >= (len(history) - 5) // 16 * 16 - 16
            assert engine.cached[request] > 0
        history += engine.outputs[request] + tokens(5, turn)


def test_a_snapshot_is_found_once_its_copy_is_planned() -> None:
    engine = replica(FULL, STATE, depth=3)
    engine.submit(tokens(52), 6)
    assert engine.plan()  # up to 48, where only the live state stands
    early = engine.submit([*tokens(52), 1], 6)
    assert engine.plan()  # the first goes on in a copy; the second could not know of it
    late = engine.submit([*tokens(52), 2], 6)
    engine.run()
    assert engine.cached[early] == 0
    assert engine.cached[late] == 48


def test_without_caching_nothing_is_copied() -> None:
    engine = replica(FULL, STATE, prefix_caching=False)
    assert [cached(engine, tokens(50)) for _ in range(2)] == [0, 0]
    assert engine.core.stats()["free_blocks"] == engine.core.stats()["total_blocks"]


def test_preempted_requests_go_on_from_a_snapshot() -> None:
    engine = replica(FULL, STATE, num_blocks=26, max_step_tokens=24)
    for seed in range(5):
        engine.submit(tokens(20, seed), 30)
    engine.run()  # `Replica` compares every token
    engine.check_idle()


def test_drafts_are_refused_beside_a_state_by_name() -> None:
    with pytest.raises(SchedulerError, match="max_drafts is 2 beside group 2, a state"):
        replica(FULL, WINDOW, STATE, max_drafts=2)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (Group(3, 4, 0, 1), "kind of group 1 is 3"),
        (Group(GroupKind.WINDOW, 6, 12, 1), "tokens of group 1 is 6"),
        (Group(GroupKind.WINDOW, 4, 0, 1), "span of group 1 is 0"),
        (Group(GroupKind.STATE, 4, 6, 1), "span of group 1 is 6"),
        (Group(GroupKind.STATE, 8, 16, 1), "tokens of group 1 is 8"),
        (Group(GroupKind.FULL, 4, 4, 1), "span of group 1 is 4"),
        (Group(GroupKind.FULL, 4, 0, 0), "share of group 1 is 0"),
    ],
)
def test_a_wrong_group_is_refused_by_name(group: Group, name: str) -> None:
    with pytest.raises(SchedulerError, match=name):
        replica(FULL, group)
