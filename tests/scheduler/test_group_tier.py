# SPDX-License-Identifier: MIT
"""The host tier beside several block groups: what comes back is what all of them can resume."""

import random

import pytest
from replica import Replica
from simulated_groups import Group

from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import GroupKind, SessionAction, StepPlan

VOCAB = 50
plans = Decoder(StepPlan)

FULL = Group(GroupKind.FULL, 4, 0, 2)
WINDOW = Group(GroupKind.WINDOW, 4, 8, 1)
STATE = Group(GroupKind.STATE, 4, 16, 1)
WORLDS = {
    "window": (FULL, WINDOW),
    "state": (FULL, STATE),
    "two full": (FULL, Group(GroupKind.FULL, 8, 0, 3)),
    "all": (FULL, WINDOW, STATE),
    "parents": (FULL,),
}


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def evicted(groups: tuple[Group, ...], **options: int) -> Replica:
    """A replica that served prompt(50, seed=1) and then so much that its device blocks went."""
    values = {"num_blocks": 33, "host_blocks": 100, "max_step_tokens": 64, **options}
    replica = Replica(**values, groups=groups)
    for seed, length in ((1, 50), (2, 90), (3, 90), (4, 90)):
        replica.submit(prompt(length, seed=seed))
        replica.run()
    return replica


@pytest.fixture(params=WORLDS)
def groups(request: pytest.FixtureRequest) -> tuple[Group, ...]:
    return WORLDS[request.param]


def test_what_the_device_evicted_comes_back_for_all_groups(groups: tuple[Group, ...]) -> None:
    replica = evicted(groups)
    before = replica.worker.computed_tokens
    again = replica.submit([*prompt(50, seed=1), 7, 8])
    replica.run()
    assert replica.cached[again] == 48
    assert replica.worker.computed_tokens - before == 4 + 3
    stats = replica.core.stats()
    assert stats["loaded_blocks"] > 0
    assert stats["failed_transfers"] == 0
    replica.check_idle()


def test_a_failed_load_of_any_group_is_computed_again(groups: tuple[Group, ...]) -> None:
    replica = evicted(groups)
    again = replica.submit(prompt(50, seed=1))
    assert replica.plan()
    assert replica.worker.copies
    replica.transfer(ok=False)
    replica.core.check()
    replica.run()
    assert replica.outputs[again] == replica.expected(again)
    assert replica.cached[again] == 0
    assert replica.core.stats()["failed_transfers"] == 1
    replica.check_idle()


def test_a_late_load_is_given_up_and_its_blocks_stay_held(groups: tuple[Group, ...]) -> None:
    replica = evicted(groups, transfer_ms=10)
    again = replica.submit(prompt(50, seed=1))
    assert replica.plan()
    late = list(replica.worker.copies)
    replica.time_ns = 11_000_000
    while replica.plan() or replica.retire():
        replica.core.check()
    assert replica.outputs[again] == replica.expected(again)
    stats = replica.core.stats()
    assert stats["failed_transfers"] == len(late)
    assert stats["shared_blocks"] > 0  # parents of the blocks that the copies may still write
    for ticket in late:
        replica.worker.end(ticket)
        assert not replica.core.transferred(ticket, True)
    replica.run()
    replica.check_idle()


def test_where_one_group_lost_its_block_nothing_is_loaded() -> None:
    # The host has room for one parent of the state: that of the last conversation.
    replica = Replica(num_blocks=60, host_blocks=100, max_step_tokens=64, groups=(FULL, STATE))
    first = replica.submit(prompt(50, seed=1))
    replica.run()
    frame = None
    for seed in range(2, 6):
        replica.submit(prompt(60, seed=seed))
        replica.run()
    replica.core.check()
    # Whose snapshot is found nowhere begins anew, though its full blocks are in the host tier.
    branch = replica.submit([*prompt(30, seed=1), *prompt(30, seed=9)])
    frame = replica.core.plan()
    assert frame is not None
    assert not read_column("i", plans.decode(frame).load_sources)
    replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
    replica.run()
    assert replica.cached[branch] == 0
    assert replica.outputs[first] == replica.expected(first)


def test_a_state_waits_for_its_snapshot_and_windows_run_beside_their_loads() -> None:
    for groups, waits in (((FULL, STATE), True), ((FULL, WINDOW), False)):
        replica = evicted(groups)
        again = replica.submit(prompt(50, seed=1) + prompt(20, seed=9), max_tokens=1)
        frame = replica.core.plan()
        assert frame is not None
        plan = plans.decode(frame)
        assert set(read_column("i", plan.load_groups)) == {0, 1}
        assert (len(plan.rows) == 0) == waits
        replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
        replica.run()
        assert replica.cached[again] == 48


def test_two_requests_share_a_load(groups: tuple[Group, ...]) -> None:
    replica = evicted(groups)
    loaded = replica.core.stats()["loaded_blocks"]
    both = [replica.submit([*prompt(50, seed=1), seed]) for seed in (1, 2)]
    replica.run()
    assert [replica.cached[each] for each in both] == [48, 48]
    alone = evicted(groups)
    alone.submit([*prompt(50, seed=1), 1])
    alone.run()
    assert replica.core.stats()["loaded_blocks"] - loaded == alone.core.stats()["loaded_blocks"]


def test_a_host_tier_of_a_few_parents_serves_whom_it_can(groups: tuple[Group, ...]) -> None:
    replica = Replica(num_blocks=40, host_blocks=12, max_step_tokens=64, groups=groups)
    for turn in range(30):
        replica.submit(prompt(30 + turn % 3, seed=turn % 4), session=f"s{turn % 4}")
        replica.run()
    stats = replica.core.stats()
    assert stats["stored_blocks"] > 12
    assert stats["host_free_blocks"] <= 2
    replica.check_idle()


def test_a_hint_moves_a_conversation_there_and_back(groups: tuple[Group, ...]) -> None:
    replica = Replica(num_blocks=60, host_blocks=100, max_step_tokens=64, groups=groups)
    first = replica.submit(prompt(50, seed=1), session="s")
    replica.run()
    history = prompt(50, seed=1) + replica.outputs[first]
    replica.core.hint("s", SessionAction.DEMOTE)
    replica.run()
    for seed in range(2, 7):
        replica.submit(prompt(90, seed=seed))
        replica.run()
    replica.core.hint("s", SessionAction.PREFETCH)
    replica.run()
    loaded = replica.core.stats()["loaded_blocks"]
    assert loaded > 0
    again = replica.submit([*history, 5], session="s")
    replica.run()
    assert replica.cached[again] in (48, 52)  # states have a snapshot after 48
    assert replica.core.stats()["loaded_blocks"] == loaded


def test_prefetch_without_room_loads_nothing() -> None:
    replica = evicted((FULL, WINDOW))
    request = replica.submit(prompt(60, seed=8), 40)
    replica.plan()
    replica.core.prefetch(int32_column(prompt(50, seed=1) * 3))
    replica.run()
    assert len(replica.outputs[request]) == 40
