# SPDX-License-Identifier: MIT
"""Rows with drafts: the tokens of the request alone, in fewer steps, in the same blocks."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica import Replica
from scripted_peers import VOCAB as PEERS_VOCAB
from scripted_peers import Frontend, Peer, Run, start_worker
from simulated_groups import Group
from simulated_worker import expected_tokens
from test_process import answer, idle, worker_hello
from test_scheduler import prompt

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import ROW_DRAFTS, FinishReason, GroupKind, StepPlan
from tokenspeed_core.scheduler._scheduler import SchedulerError, siphash128

VOCAB = 50
# Tokens and spans in blocks.
GROUPS: list[list[Group]] = [
    [],
    [Group(GroupKind.FULL, 1, 0, 1), Group(GroupKind.WINDOW, 1, 2, 2)],
    [Group(GroupKind.FULL, 1, 0, 2), Group(GroupKind.FULL, 2, 0, 1)],
]
ALL = (100,)  # of the drafts are accepted
plans = Decoder(StepPlan)


@given(
    acceptance=st.lists(st.integers(0, 6), max_size=12).map(tuple),
    max_drafts=st.integers(1, 6),
    block_size=st.integers(1, 6),
    room=st.integers(0, 40),
    requests=st.lists(
        st.tuples(
            st.integers(1, 30),  # tokens of the prompt
            st.integers(0, 2),  # its family
            st.integers(1, 30),  # max_tokens
            st.lists(st.integers(0, VOCAB - 1), max_size=2).map(tuple),  # stop ids
        ),
        min_size=1,
        max_size=8,
    ),
    limits=st.fixed_dictionaries(
        {
            "depth": st.integers(1, 4),
            "max_step_tokens": st.integers(4, 40),
            "max_prefill_tokens": st.sampled_from([0, 0, 3]),
            "prefix_caching": st.booleans(),
        }
    ),
    groups=st.sampled_from(GROUPS),
)
@settings(max_examples=200, deadline=None)
def test_acceptance_changes_no_token(
    acceptance: tuple[int, ...],
    max_drafts: int,
    block_size: int,
    room: int,
    requests: list[tuple[int, int, int, tuple[int, ...]]],
    limits: dict[str, Any],
    groups: list[Group],
) -> None:
    num_blocks = 2 + 60 // block_size + room  # one request fits at the least
    sized = [group._replace(tokens=group.tokens * block_size, span=group.span * block_size)
             for group in groups]  # fmt: skip
    replica = Replica(
        num_blocks * max(1, len(groups)),
        block_size,
        max_drafts=max_drafts,
        groups=sized,
        max_slots=4,
        **limits,
    )
    replica.worker.acceptance = acceptance
    for length, family, max_tokens, stop_ids in requests:
        replica.submit(prompt(length, seed=family), max_tokens, stop_ids=stop_ids)
    replica.run()  # compares every text with the request's alone
    stats = replica.core.stats()
    assert stats["accepted_tokens"] <= stats["drafted_tokens"]
    assert replica.worker.largest_step <= limits["max_step_tokens"]
    replica.check_idle()


@pytest.mark.parametrize("window", [(), (Group(0, 4, 0, 2), Group(GroupKind.WINDOW, 4, 8, 1))])
def test_accepted_drafts_save_steps(window: tuple[Group, ...]) -> None:
    replica = Replica(max_drafts=4, depth=1, groups=window)
    replica.worker.acceptance = ALL
    replica.submit(prompt(6), max_tokens=41)
    replica.run()
    stats = replica.core.stats()
    assert stats["steps"] == 1 + 40 // 5
    assert stats["accepted_tokens"] == stats["drafted_tokens"] == 32


def widths(replica: Replica) -> list[int]:
    """The drafts of each step, while one request runs."""
    found = []
    while replica.live():
        frame = replica.core.plan()
        assert frame is not None
        plan = plans.decode(frame)
        flags = read_column("B", plan.row_flags)
        if flags[0] & ROW_DRAFTS:
            found.append(read_column("i", plan.row_tokens)[0] - 1)
        replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
        replica.retire()
    return found


def test_the_width_follows_what_is_accepted() -> None:
    replica = Replica(max_drafts=8, depth=1)
    replica.worker.acceptance = (0,) * 6 + ALL * 100
    replica.submit(prompt(6), max_tokens=120)
    found = widths(replica)
    assert found[:6] == [8, 4, 2, 1, 1, 1]  # half the way to what was accepted
    assert found[6:14] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert max(found) == 8


def test_prefill_and_admission_come_before_drafts() -> None:
    # What is left of 20 tokens beside two chunks: the drafts of the first are cut to it.
    replica = Replica(max_drafts=8, depth=1, max_step_tokens=20, max_prefill_tokens=16)
    replica.worker.acceptance = (0,)
    replica.submit(prompt(6), max_tokens=30)
    replica.plan()
    replica.retire()
    replica.submit(prompt(64, seed=1), max_tokens=2)
    frame = replica.core.plan()
    assert frame is not None
    plan = plans.decode(frame)
    assert sorted(read_column("i", plan.row_tokens)) == [4, 16]
    replica.in_flight.append(replica.worker.apply(frame, replica.core.digest))
    replica.run()


def test_a_stop_inside_a_run_cuts_it() -> None:
    replica = Replica(max_drafts=4)
    replica.worker.acceptance = ALL
    text = expected_tokens(prompt(6), 30, VOCAB)
    request = replica.submit(prompt(6), max_tokens=30, stop_ids=(text[7],))
    replica.run()
    assert replica.outputs[request] == replica.expected(request)
    assert replica.reasons[request] == FinishReason.STOP
    stats = replica.core.stats()
    assert stats["overrun_tokens"] > 0
    assert stats["generated_tokens"] == len(replica.outputs[request])
    replica.check_idle()


def test_what_was_not_accepted_is_never_found() -> None:
    replica = Replica(max_drafts=3, num_blocks=200)
    first = replica.submit(prompt(8), max_tokens=40)
    replica.run()
    turn = prompt(8) + replica.outputs[first] + prompt(3, seed=9)
    second = replica.submit(turn, max_tokens=20)
    replica.run()
    assert replica.cached[second] >= 44  # whole blocks of the answer; their tokens are checked
    assert replica.reasons[second] == FinishReason.LENGTH


@pytest.mark.parametrize("acceptance", [(0,), (1, 0, 3), ALL], ids=str)
def test_drafts_never_preempt(acceptance: tuple[int, ...]) -> None:
    # Both fit without drafts, to the last block.
    replica = Replica(num_blocks=1 + 2 * 6, max_drafts=7, max_slots=2)
    replica.worker.acceptance = acceptance
    for i in range(2):
        replica.submit(prompt(8, seed=i), max_tokens=17)
    replica.run()
    assert replica.core.stats()["preemptions"] == 0


def test_logits_that_are_not_finite_inside_a_run() -> None:
    replica = Replica(max_drafts=4)
    replica.worker.acceptance = ALL
    text = expected_tokens(prompt(9), 20, VOCAB)
    replica.worker.nan_when = tuple(text[4:6])
    request = replica.submit(prompt(9), max_tokens=20)
    replica.run()
    assert replica.reasons[request] == FinishReason.NUMERIC
    assert replica.outputs[request] == text[:6]
    replica.check_idle()


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [([1], [0]), ([1] * 4, [4]), ([1], [-1]), ([1, 2], [1]), ([1], [1, 1]), ([1, 2], [])],
)
def test_counts_that_break_the_contract_change_nothing(
    tokens: list[int], counts: list[int]
) -> None:
    replica = Replica(max_drafts=2, depth=1)
    replica.submit(prompt(5), max_tokens=9)
    replica.plan()
    replica.retire()
    assert replica.plan()
    with pytest.raises(SchedulerError, match="step 2"):
        replica.core.advance(2, int32_column(tokens), counts=int32_column(counts))
    replica.run()


def test_an_epoch_without_drafts_takes_counts_of_one() -> None:
    replica = Replica(depth=1)
    replica.submit(prompt(5), max_tokens=2)
    replica.plan()
    tokens = replica.in_flight[0].result.tokens
    with pytest.raises(SchedulerError, match="counts 2 tokens of row 0, which has 1 to 1"):
        replica.core.advance(1, tokens * 2, counts=int32_column([2]))
    replica.core.advance(1, tokens, counts=int32_column([1]))


def test_workers_draft_as_many_as_all_of_them_can(tmp_path: Path) -> None:
    with Run(tmp_path, num_ranks=2) as run:
        frontend = Frontend(run)
        workers = [start_worker(run, rank, max_drafts=3 + rank) for rank in range(2)]
        try:
            for request in range(8):
                frontend.submit(request, [request, 7], 30)
            frontend.until(lambda: len(frontend.reasons) == 8)
            idle(frontend)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        for request in range(8):
            assert frontend.tokens[request] == expected_tokens([request, 7], 30, PEERS_VOCAB)
        assert frontend.stats is not None
        assert 0 < frontend.stats.accepted_tokens <= frontend.stats.drafted_tokens
        assert frontend.stats.steps < 31 * 8


@pytest.mark.parametrize("drafts", [0, 2])
def test_malformed_counts_end_the_epoch(tmp_path: Path, drafts: int) -> None:
    with Run(tmp_path) as run:
        frontend = Frontend(run)
        worker = Peer(run.config.worker_endpoint)
        worker.send(worker_hello(run, max_drafts=drafts))
        assert answer(worker, wire.Welcome).ready
        frontend.submit(1, [1], 100)
        parts = worker.receive()
        while parts is not None and len(parts) == 1:  # heartbeats
            parts = worker.receive()
        assert parts is not None
        tokens = int32_column([7, 7])
        token_hash = siphash128(parts[1], tokens)
        worker.send(wire.StepResult(1, 1, parts[1], tokens, b"", counts=int32_column([2])))
        worker.send(wire.StepAck(1, 1, parts[1], token_hash))
        frontend.until(lambda: 1 in frontend.reasons)
        assert frontend.reasons[1] == FinishReason.WORKER_LOST
        assert "counts 2 tokens of row 0" in answer(worker, wire.Shutdown).reason
        worker.close()
