# SPDX-License-Identifier: MIT
"""The host tier in the core: what comes back from it, and what a failed copy costs (row 41)."""

import random

import pytest
from replica import Replica

from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import SessionAction, StepPlan

VOCAB = 50
plans = Decoder(StepPlan)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


def evicted(**options: int) -> Replica:
    """A replica that served prompt(40, seed=1) and then so much that its device blocks went."""
    values = {"num_blocks": 33, "host_blocks": 100, **options}
    replica = Replica(**values)
    replica.submit(prompt(40, seed=1))
    replica.run()
    for seed in range(2, 5):
        replica.submit(prompt(90, seed=seed))
        replica.run()
    return replica


def test_what_the_device_evicted_comes_back_from_the_host() -> None:
    replica = evicted()
    before = replica.worker.computed_tokens
    again = replica.submit(prompt(40, seed=1))
    replica.run()
    assert replica.cached[again] == 36
    assert replica.worker.computed_tokens - before == 4 + 3
    stats = replica.core.stats()
    assert stats["loaded_blocks"] == 9
    assert stats["stored_blocks"] >= 9 + 3 * 22
    assert stats["failed_transfers"] == 0
    replica.check_idle()


def test_without_a_host_tier_it_is_computed_again() -> None:
    replica = evicted(host_blocks=0)
    again = replica.submit(prompt(40, seed=1))
    replica.run()
    assert replica.cached[again] == 0
    assert replica.core.stats()["host_blocks"] == 0


def test_chunks_run_beside_the_load_and_the_token_waits_for_it() -> None:
    replica = evicted()
    again = replica.submit(prompt(40, seed=1) + prompt(20, seed=9), max_tokens=1)
    frame = replica.core.plan()
    assert frame is not None
    plan = plans.decode(frame)
    assert len(read_column("i", plan.load_sources)) == 10
    assert list(read_column("i", plan.wait_tickets)) == list(
        dict.fromkeys(read_column("i", plan.load_tickets))
    )
    assert list(read_column("i", plan.added_context)) == [40]
    assert list(read_column("i", plan.row_tokens)) == [16]
    assert plan.row_flags == bytes([1])
    replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
    # The rest of the prompt but its last token may run; then everything waits for the ticket.
    assert replica.plan()
    assert replica.retire()
    assert replica.retire()
    assert not replica.plan()
    replica.core.check()
    assert replica.outputs[again] == []
    assert replica.transfer()
    replica.run()
    assert replica.outputs[again] == replica.expected(again)


def test_a_load_that_fails_is_computed_again_and_not_asked_for_again() -> None:
    replica = evicted()
    again = replica.submit(prompt(40, seed=1))
    assert replica.plan()
    ticket = next(iter(replica.worker.copies))
    replica.worker.end(ticket, ok=False)
    assert replica.core.transferred(ticket, False)
    replica.core.check()
    before = replica.worker.computed_tokens
    replica.run()
    assert replica.outputs[again] == replica.expected(again)
    assert replica.cached[again] == 0
    assert replica.worker.computed_tokens - before == 40 + 3
    stats = replica.core.stats()
    assert stats["failed_transfers"] == 1
    assert stats["loaded_blocks"] == 0
    replica.check_idle()


def test_a_store_that_fails_is_never_found() -> None:
    replica = Replica(num_blocks=33, host_blocks=100)
    for seed in range(1, 5):
        replica.submit(prompt(90, seed=seed))
        replica.run(transfers_ok=False)
    stats = replica.core.stats()
    assert stats["stored_blocks"] == 0
    assert stats["host_free_blocks"] == 100
    again = replica.submit(prompt(90, seed=1))
    replica.run()
    assert replica.cached[again] == 0
    assert replica.outputs[again] == replica.expected(again)


def test_a_late_load_is_given_up_and_its_blocks_stay_held_until_it_ends() -> None:
    replica = evicted(transfer_ms=10)
    again = replica.submit(prompt(40, seed=1))
    assert replica.plan()
    late = next(iter(replica.worker.copies))
    replica.time_ns = 11_000_000
    while replica.plan() or replica.retire():
        replica.core.check()
    assert replica.outputs[again] == replica.expected(again)
    assert replica.core.stats()["failed_transfers"] == 1
    held = replica.core.stats()["shared_blocks"]
    assert held >= 9
    # The workers are done with it at last: nobody waits, the blocks come back.
    replica.worker.end(late)
    assert not replica.core.transferred(late, True)
    replica.run()
    replica.check_idle()


@pytest.mark.parametrize(("transfer_ms", "failed"), [(10, 1), (12, 0), (0, 0)])
def test_a_load_has_the_time_that_it_is_given(transfer_ms: int, failed: int) -> None:
    replica = evicted(transfer_ms=transfer_ms)
    replica.submit(prompt(40, seed=1))
    assert replica.plan()
    replica.time_ns = 11_000_000
    while replica.plan() or replica.retire():
        replica.core.check()
    assert replica.core.stats()["failed_transfers"] == failed


def test_late_duplicate_and_foreign_tickets_do_nothing() -> None:
    replica = evicted()
    replica.submit(prompt(40, seed=1))
    assert replica.plan()
    (ticket,) = replica.worker.copies
    for foreign in (-1, 0, ticket + 1, 2**31 - 1):
        assert not replica.core.transferred(foreign, True)
    assert replica.transfer()
    assert not replica.core.transferred(ticket, True)
    assert not replica.core.transferred(ticket, False)
    replica.run()
    replica.check_idle()
    replica.end_epoch()
    assert not replica.core.transferred(ticket, True)


def test_an_aborted_request_leaves_its_load_to_others() -> None:
    replica = evicted()
    gone = replica.submit(prompt(40, seed=1))
    assert replica.plan()
    replica.abort(gone)
    replica.core.check()
    replica.run()
    before = replica.worker.computed_tokens
    again = replica.submit(prompt(40, seed=1))
    replica.run()
    assert replica.cached[again] == 36
    assert replica.worker.computed_tokens - before == 4 + 3
    assert replica.core.stats()["loaded_blocks"] == 9


@pytest.mark.parametrize("ok", [True, False])
def test_two_requests_share_one_load(ok: bool) -> None:
    replica = evicted()
    both = [replica.submit(prompt(40, seed=1), seed=seed) for seed in (0, 1)]
    assert replica.plan()
    (ticket,) = replica.worker.copies
    assert len(replica.worker.copies[ticket].blocks) == 9
    assert replica.transfer(ok)
    replica.run()
    for request in both:
        assert replica.outputs[request] == replica.expected(request)
    assert replica.core.stats()["loaded_blocks"] == (9 if ok else 0)


def test_a_prefetch_loads_before_the_request_comes() -> None:
    replica = evicted()
    replica.core.prefetch(int32_column(prompt(40, seed=1)))
    replica.run()
    assert replica.core.stats()["loaded_blocks"] == 10
    before = replica.worker.computed_tokens
    again = replica.submit(prompt(40, seed=1))
    assert replica.plan()
    assert not replica.worker.copies
    replica.run()
    assert replica.cached[again] == 36
    assert replica.worker.computed_tokens - before == 4 + 3


def test_hints_move_what_the_session_said_last() -> None:
    replica = Replica(num_blocks=33, host_blocks=100)
    mine = {"session": "mine", "salt": b"a"}
    replica.submit(prompt(40, seed=1), **mine)
    replica.run()
    for seed in range(2, 5):
        replica.submit(prompt(90, seed=seed), salt=b"a")
        replica.run()
    for session, salt in (("mine", b"b"), ("other", b"a")):
        replica.core.hint(session, SessionAction.PREFETCH, salt=salt)
        assert not replica.plan()
    replica.core.hint("mine", SessionAction.PREFETCH, salt=b"a")
    replica.run()
    assert replica.core.stats()["loaded_blocks"] == 10  # and one for its answer
    replica.core.hint("mine", SessionAction.END, salt=b"a")
    replica.core.hint("mine", SessionAction.PREFETCH, salt=b"a")
    assert not replica.plan()
    replica.check_idle()


def test_a_demoted_session_is_stored_and_goes_first() -> None:
    replica = Replica(num_blocks=60, host_blocks=12)
    for name in ("mine", "other"):  # the host has room for one of them
        replica.submit(prompt(40, seed=len(name)), session=name)
        replica.run()
    stored = replica.core.stats()["stored_blocks"]
    replica.core.hint("mine", SessionAction.DEMOTE)
    replica.run()
    assert replica.core.stats()["stored_blocks"] == stored + 8
    replica.submit(prompt(150, seed=9), session="third")
    replica.run()
    again = replica.submit(prompt(40, seed=5) + prompt(9, seed=2), session="other")
    replica.run()
    assert replica.cached[again] == 40
    assert replica.core.stats()["loaded_blocks"] == 0
    replica.check_idle()


def test_the_end_of_an_epoch_drops_both_tiers() -> None:
    replica = evicted()
    replica.submit(prompt(40, seed=1))
    assert replica.plan()  # a load is under way
    replica.end_epoch()
    assert replica.core.stats()["host_blocks"] == 0
    replica.begin_epoch()
    again = replica.submit(prompt(40, seed=1))
    replica.run()
    assert replica.cached[again] == 0
    replica.check_idle()


def test_a_full_host_tier_trims_the_coldest_conversation_from_its_tail() -> None:
    replica = evicted(host_blocks=40)
    # 10 + 22 + 22 + 22 blocks of history met 40 host blocks: the last one and most of the one
    # before it are there, the head of the latter is.
    again = replica.submit(prompt(90, seed=3))
    replica.run()
    assert 0 < replica.cached[again] < 88
    assert replica.cached[again] % 4 == 0
    replica.check_idle()
