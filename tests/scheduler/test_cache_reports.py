# SPDX-License-Identifier: MIT
"""Why prompt tokens were computed: every request reports it with its first token."""

import random

from replica import Replica

SESSION = {"session": "talk"}


def report(replica: Replica, prompt: list[int], **fields: object) -> dict[str, int]:
    """Runs one request; its report, with the cached tokens beside the reasons."""
    request = replica.submit(prompt, max_tokens=1, **fields)
    replica.run()
    rows = [row for row in replica.core.take_reports() if row[1] == request]
    assert len(rows) == 1
    _, _, new, evicted, salted, diverged, diverged_at, is_volatile = rows[0]
    cached = replica.cached[request]
    assert cached + new + evicted + salted + diverged == len(prompt)
    return {
        "cached": cached,
        "new": new,
        "evicted": evicted,
        "salted": salted,
        "diverged": diverged,
        "diverged_at": diverged_at,
        "volatile": is_volatile,
    }


def answered(replica: Replica, prompt: list[int]) -> list[int]:
    """The prompt with the answer that it just got: what the next turn begins with."""
    return [*prompt, *replica.outputs[len(replica.asked)]]


def test_the_first_prompt_is_new_and_its_continuation_is_cached() -> None:
    replica = Replica(num_blocks=40)
    prompt = [1, 2, 3] * 5
    assert report(replica, prompt, **SESSION)["new"] == 15
    again = report(replica, [*answered(replica, prompt), 4, 5, 6], **SESSION)
    assert (again["cached"], again["new"]) == (12, 7)  # whole blocks alone are kept
    assert again["diverged_at"] == -1


def test_a_changed_token_is_named_with_its_place() -> None:
    replica = Replica(num_blocks=40)
    report(replica, list(range(20)), **SESSION)
    changed = report(replica, [*range(9), 40, *range(10, 20)], **SESSION)
    assert (changed["cached"], changed["diverged_at"]) == (8, 9)
    assert changed["diverged"] == 11
    assert changed["new"] == 1  # token 8, in the block that differs


def test_what_made_room_for_others_was_evicted() -> None:
    replica = Replica(num_blocks=10, eviction="lru")
    report(replica, list(range(20)))
    report(replica, [45, *range(20, 50)])
    gone = report(replica, list(range(20)))
    assert gone["evicted"] >= 12
    assert gone["diverged_at"] == -1


def test_another_salt_is_told_to_its_own_session_alone() -> None:
    replica = Replica(num_blocks=40)
    report(replica, list(range(20)), salt=b"one", **SESSION)
    turn = [*answered(replica, list(range(20))), 30, 31]
    own = report(replica, turn, salt=b"two", **SESSION)
    assert (own["cached"], own["salted"], own["new"]) == (0, 21, 2)
    other = report(replica, turn, salt=b"three", session="somebody else")
    assert (other["cached"], other["salted"], other["new"]) == (0, 0, 23)


def test_a_nonce_at_the_head_is_called_volatile_when_it_comes_again() -> None:
    replica = Replica(num_blocks=200)
    body = [(7 * i) % 45 for i in range(80)]
    seen = [report(replica, [1, 2, nonce, *body], **SESSION) for nonce in range(46, 50)]
    assert [row["volatile"] for row in seen] == [False, False, True, True]
    assert all(row["diverged_at"] == 2 for row in seen[1:])


def test_the_reasons_add_up_whatever_comes() -> None:
    dice = random.Random(3)
    replica = Replica(num_blocks=30)
    prompts = [[dice.randrange(50) for _ in range(60)] for _ in range(3)]
    totals = dict.fromkeys(("cached", "new", "evicted", "diverged"), 0)
    for _ in range(150):
        prompt = dice.choice(prompts)[: dice.randint(1, 60)]
        if dice.random() < 0.3:
            prompt = [*prompt[:-1], dice.randrange(50)]
        row = report(
            replica,
            prompt,
            session=dice.choice(["", "a", "b"]),
            salt=dice.choice([b"", b"tenant"]),
        )
        for reason in totals:
            totals[reason] += row[reason]
    assert all(totals.values()), totals
    stats = replica.core.stats()
    assert stats["cached_tokens"] == totals["cached"]
