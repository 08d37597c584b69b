# SPDX-License-Identifier: MIT
"""What the workers know is not repeated: blocks of a slot's last table, rows that decode on."""

import pytest
from replica import Replica
from simulated_groups import Group

from tokenspeed_core.ipc.codec import Decoder, read_column
from tokenspeed_core.ipc.messages import GroupKind, StepPlan

plans = Decoder(StepPlan)

FULL = Group(GroupKind.FULL, 4, 0, 1)
WINDOW = Group(GroupKind.WINDOW, 4, 8, 1)
STATE = Group(GroupKind.STATE, 4, 8, 1)


def appended(replica: Replica, prompt: list[int], **fields: object) -> tuple[list[int], int]:
    """Run a turn; return its answer and the blocks that plans appended for it."""
    before = replica.worker.appended_blocks
    request = replica.submit(prompt, **fields)
    replica.run()
    replica.check_idle()
    return replica.outputs[request], replica.worker.appended_blocks - before


def history(tokens: int, family: int = 0) -> list[int]:
    return [(family * 13 + i * i) % 50 for i in range(tokens)]


@pytest.mark.parametrize("groups", [(), (FULL, WINDOW), (FULL, WINDOW, STATE), (FULL, FULL)])
def test_the_next_turn_announces_only_what_is_new(groups: tuple[Group, ...]) -> None:
    replica = Replica(num_blocks=400, max_step_tokens=200, groups=groups)
    prompt = history(128)
    answer, first = appended(replica, prompt, session="a")
    assert first >= 128 // 4
    _, second = appended(replica, prompt + answer + history(4, 1), session="a")
    per_group = 3 + 128 % 8 // 4
    assert 0 < second <= (per_group + 2) * max(1, len(groups))


def test_a_slot_that_others_had_is_told_what_differs() -> None:
    replica = Replica(num_blocks=400, max_slots=1, max_step_tokens=200)
    answer, _ = appended(replica, history(100), session="a")
    _, other = appended(replica, history(40, 1), session="b")
    assert other >= 10
    _, again = appended(replica, history(100) + answer, session="a")
    assert again >= 26
    # Who shares what stands there already is told the rest, whoever was there.
    _, shared = appended(replica, history(60) + history(20, 2), session="c")
    assert shared == -(-(80 + 3) // 4) - 15


def test_a_slot_that_is_free_is_taken_in_the_order_in_which_they_became_free() -> None:
    replica = Replica(num_blocks=400, max_slots=3, max_step_tokens=200)
    answer, _ = appended(replica, history(100), session="a")
    for name in ("b", "c"):
        appended(replica, history(60, ord(name)), session=name)
    _, again = appended(replica, history(100) + answer, session="a")
    assert again <= 3


def test_blocks_that_were_evicted_are_announced_again() -> None:
    replica = Replica(num_blocks=41, max_slots=2, max_step_tokens=200)
    answer, _ = appended(replica, history(80), session="a")
    appended(replica, history(100, 1))  # 26 blocks: some of a's tail go
    _, again = appended(replica, history(80) + answer, session="a")
    assert 3 < again < 20


def test_nothing_is_kept_by_new_workers() -> None:
    replica = Replica(num_blocks=400, max_step_tokens=200)
    answer, _ = appended(replica, history(100), session="a")
    replica.end_epoch()
    replica.begin_epoch()
    _, again = appended(replica, history(100) + answer, session="a")
    assert again >= 26


def test_rows_that_decode_on_are_not_repeated() -> None:
    replica = Replica(num_blocks=400, max_step_tokens=200)
    answers = [12, 4, 12, 12]
    for family, count in enumerate(answers):
        replica.submit(history(10, family), max_tokens=count)
    seen = []
    while (frame := replica.core.plan()) is not None:
        plan = plans.decode(frame)
        seen.append((plan.repeated_rows, list(read_column("i", plan.rows))))
        replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
        replica.retire()
    # The prompts one after the other, then all; the second ends and the last moves to its place.
    steady = [rows for repeated, rows in seen if repeated == 4]
    assert steady
    assert not any(steady)
    assert any(repeated == 1 and len(rows) == 2 for repeated, rows in seen)
    replica.check_idle()
