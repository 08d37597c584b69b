# SPDX-License-Identifier: MIT
"""A worker without a model: it applies plans exactly as StepPlan's docstring says.

A block keeps the tokens whose KV a real worker would have written there.  What a row samples is a
function of the request's whole history *as read from its blocks*, so a block that is reused, freed
or shared at the wrong moment changes the output, and `expected_tokens` tells what is right.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simulated_groups import Group, SimulatedGroups

from tokenspeed_core.ipc.codec import Decoder, float32_column, int32_column, read_column
from tokenspeed_core.ipc.messages import (
    ROW_DRAFTS,
    ROW_HAS_TOKENS,
    ROW_SAMPLES,
    StepAck,
    StepPlan,
    StepResult,
)
from tokenspeed_core.scheduler._scheduler import siphash128

_decoder = Decoder(StepPlan)


def sample(history: list[int], seed: int, vocab_size: int) -> int:
    """The token that follows `history`."""
    digest = hashlib.blake2b(int32_column(history) + seed.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") % vocab_size


def expected_tokens(
    prompt: list[int],
    count: int,
    vocab_size: int,
    seed: int = 0,
    stop_ids: tuple[int, ...] = (),
) -> list[int]:
    """What a request must produce, whatever else runs."""
    history = list(prompt)
    while len(history) < len(prompt) + count:
        history.append(sample(history, seed, vocab_size))
        if history[-1] in stop_ids:
            break
    return history[len(prompt) :]


def whole_rows(plan: StepPlan, before: list[int]) -> list[tuple[int, int, int]]:
    """Slot, tokens and flags of each row; `before` are the slots of the last step's rows."""
    assert plan.repeated_rows <= len(before)
    columns = zip(
        read_column("i", plan.rows),
        read_column("i", plan.row_tokens),
        read_column("B", plan.row_flags),
        strict=True,
    )
    return [(slot, 1, ROW_SAMPLES) for slot in before[: plan.repeated_rows]] + list(columns)


@dataclass
class Slot:
    context: int
    seed: int
    logprobs: bool
    tables: list[list[int]] = field(default_factory=lambda: [[]])  # blocks by block group
    last_token: int | None = None
    group: int = -1
    group_blocks: int = 0
    waits: list[int] = field(default_factory=list)

    @property
    def blocks(self) -> list[int]:
        return self.tables[0]


@dataclass
class Copy:
    """A transfer under way; a failed one leaves garbage."""

    is_load: bool
    blocks: list[tuple[int, int, int]] = field(default_factory=list)  # group, source, target
    moved: bool = False


class Report(NamedTuple):
    result: StepResult
    ack: StepAck


class SimulatedWorker:
    """State of one rank in one epoch."""

    def __init__(
        self,
        epoch: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        host_blocks: int = 0,
        groups: Sequence[Group] = (),
    ) -> None:
        self.epoch = epoch
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.digest = epoch.to_bytes(16, "little")
        self.step = 0
        share = groups[0].share if groups else 1
        self.cells: list[list[int | None]] = [
            [None] * block_size for _ in range(num_blocks * share)
        ]
        # None: one full group, whose blocks nobody else writes.
        self.groups = SimulatedGroups(groups, num_blocks, self.cells) if groups else None
        self.host: list[list[int | None]] = [
            [None] * block_size for _ in range(host_blocks * share)
        ]
        self.host_groups = SimulatedGroups(groups, host_blocks, self.host) if groups else None
        self.copies: dict[int, Copy] = {}  # by ticket, oldest first
        self.slots: dict[int, Slot] = {}
        self.last_tables: dict[int, list[list[int]]] = {}  # of slots that were removed
        self.appended_blocks = 0
        self.last_rows: list[int] = []  # slots
        self.computed_tokens = 0
        self.largest_step = 0
        self.acceptance: tuple[int, ...] = ()  # of each row's drafts, over and over
        self.verified_rows = 0
        self.nan_when: tuple[int, ...] = ()  # histories ending so have logits that are not finite
        self.no_token = -1  # what it reports then

    def apply(self, frame: bytes, digest: bytes) -> Report:
        """Apply one plan and return what a worker reports."""
        self.digest = siphash128(self.digest, frame)
        assert self.digest == digest, "the plan stream is broken"
        plan = _decoder.decode(frame)
        assert plan.epoch == self.epoch
        assert plan.step == self.step + 1
        self.step = plan.step
        self._remove_and_add(plan)
        self._append_blocks(plan)
        self._share(plan)
        self._start_copies(plan)
        tokens, logprobs, counts, asked = self._run(plan)
        result = StepResult(
            plan.epoch,
            plan.step,
            digest,
            int32_column(tokens),
            float32_column(logprobs) if asked else b"",
            int32_column(counts) if any(count != 1 for count in counts) else b"",
        )
        ack = StepAck(plan.epoch, plan.step, digest, siphash128(digest, result.tokens))
        return Report(result, ack)

    def end(self, ticket: int, ok: bool = True) -> None:
        """End a transfer: its content is there, or garbage is."""
        copy = self.copies.pop(ticket)
        if ok:
            self._move(copy)
            return
        for group, _, target in copy.blocks:
            if group == 0:
                to = self.cells if copy.is_load else self.host
                to[target] = [None] * self.block_size
            else:
                tier = self.groups if copy.is_load else self.host_groups
                assert tier is not None
                tier.lose(group, target)

    def _start_copies(self, plan: StepPlan) -> None:
        stores = (plan.store_tickets, plan.store_groups, plan.store_sources, plan.store_targets)
        loads = (plan.load_tickets, plan.load_groups, plan.load_sources, plan.load_targets)
        for is_load, columns in ((False, stores), (True, loads)):
            origin = self.host if is_load else self.cells
            tiers = (self.host_groups, self.groups) if is_load else (self.groups, self.host_groups)
            for ticket, group, source, target in zip(
                *(read_column("i", column) for column in columns), strict=True
            ):
                never = f"ticket {ticket} copies what was never written"
                if group == 0:
                    assert None not in origin[source], never
                else:
                    origin_groups = tiers[0]
                    assert origin_groups is not None
                    assert origin_groups.is_written(group, source), never
                for other in self.copies.values():
                    for used_group, used_source, used_target in other.blocks:
                        if used_group == group:
                            same = other.is_load == is_load
                            assert target != (used_target if same else used_source)
                            assert same or source != used_target
                if tiers[1] is not None:
                    tiers[1].begin(group, target)
                copy = self.copies.setdefault(ticket, Copy(is_load))
                copy.blocks.append((group, source, target))
        for slot, ticket in zip(
            read_column("i", plan.wait_slots), read_column("i", plan.wait_tickets), strict=True
        ):
            self.slots[slot].waits.append(ticket)

    def _move(self, copy: Copy) -> None:
        if copy.moved:
            return
        copy.moved = True
        origin, to = (self.host, self.cells) if copy.is_load else (self.cells, self.host)
        for group, source, target in copy.blocks:
            if group == 0:
                to[target] = list(origin[source])
                continue
            device, host = self.groups, self.host_groups
            assert device is not None
            assert host is not None
            (to_tier, from_tier) = (device, host) if copy.is_load else (host, device)
            to_tier.take(from_tier, group, source, target)

    def _remove_and_add(self, plan: StepPlan) -> None:
        for slot in read_column("i", plan.removed_slots):
            self.last_tables[slot] = self.slots.pop(slot).tables
        columns = zip(
            read_column("i", plan.added_slots),
            read_column("i", plan.added_context),
            read_column("Q", plan.added_seed),
            read_column("B", plan.added_logprobs),
            read_column("f", plan.added_temperature),
            read_column("i", plan.added_top_k),
            read_column("f", plan.added_top_p),
            strict=True,
        )
        for slot, context, seed, logprobs, *_ in columns:
            assert slot not in self.slots, f"slot {slot} is added twice"
            self.slots[slot] = Slot(context, seed, bool(logprobs))
        for slot, group, count in zip(
            read_column("i", plan.kept_slots),
            read_column("i", plan.kept_groups),
            read_column("i", plan.kept_blocks),
            strict=True,
        ):
            assert slot in read_column("i", plan.added_slots)
            last = self.last_tables[slot][group]
            assert 0 < count <= len(last), f"slot {slot} keeps {count} of {len(last)} blocks"
            self._append(slot, group, last[:count])

    def _append_blocks(self, plan: StepPlan) -> None:
        for slot, group, block in zip(
            read_column("i", plan.block_slots),
            read_column("i", plan.block_groups),
            read_column("i", plan.block_ids),
            strict=True,
        ):
            self._append(slot, group, [block])
            self.appended_blocks += 1
        columns = (plan.copy_groups, plan.copy_sources, plan.copy_targets)
        copies = list(zip(*(read_column("i", column) for column in columns), strict=True))
        if self.groups is not None:
            self.groups.copy(copies)
        else:
            assert not copies

    def _append(self, slot: int, group: int, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self.groups is None:
                assert group == 0
                assert 0 < block < len(self.cells), f"block {block}"
            else:
                self.groups.check_block(group, block)
        tables = self.slots[slot].tables
        tables.extend([] for _ in range(len(tables), group + 1))
        tables[group].extend(blocks)

    def _share(self, plan: StepPlan) -> None:
        for slot, group, blocks in zip(
            read_column("i", plan.prefix_slots),
            read_column("i", plan.prefix_groups),
            read_column("i", plan.prefix_blocks),
            strict=True,
        ):
            self.slots[slot].group = group
            self.slots[slot].group_blocks = blocks
        leading: dict[int, list[int]] = {}
        for place in self.slots.values():
            if place.group < 0:
                assert place.group_blocks == 0
                continue
            assert place.group_blocks > 0
            mine = place.blocks[: place.group_blocks]
            assert leading.setdefault(place.group, mine) == mine, "a group that shares nothing"

    def _run(self, plan: StepPlan) -> tuple[list[int], list[float], list[int], bool]:
        rows = whole_rows(plan, self.last_rows)
        self.last_rows = [slot for slot, _, _ in rows]
        assert rows or plan.store_tickets or plan.load_tickets, "an empty step"
        lengths = [length for _, length, _ in rows]
        assert lengths == sorted(lengths, key=lambda length: length > 1), "long rows come last"
        assert len({slot for slot, _, _ in rows}) == len(rows), "a slot has two rows"
        self.largest_step = max(self.largest_step, sum(lengths))
        prompt = read_column("i", plan.prompt_tokens)
        # Every row's KV is written before any row attends: rows may read each other's blocks.
        written: set[tuple[int, int]] = set()
        begun: dict[int, int] = {}  # tokens that were there, by slot
        at = 0
        for slot, length, flags in rows:
            place = self.slots[slot]
            for copy in (self.copies[t] for t in place.waits if t in self.copies):
                assert not flags & ROW_SAMPLES, "a token over a load that may fail"
                self._move(copy)
            if flags & ROW_HAS_TOKENS:
                inputs = list(prompt[at : at + length])
                at += length
            else:
                assert place.last_token is not None
                inputs = [place.last_token]
                if flags & ROW_DRAFTS:
                    # What is accepted is written when it is verified; the rest stays wrong.
                    inputs += [self.vocab_size] * (length - 1)
            assert len(inputs) == length
            context = place.context
            for token in inputs:
                block, offset = divmod(place.context, self.block_size)
                cell = (place.blocks[block], offset)
                assert cell not in written, f"two rows write {cell}"
                written.add(cell)
                if self.groups is not None:
                    self.groups.write(place.tables, place.context, token)
                self.cells[cell[0]][offset] = token
                place.context += 1
            begun[slot] = context
            if flags & ROW_DRAFTS:
                place.context = context + 1
            self.computed_tokens += length
        assert at == len(prompt)
        for slot, _, _ in rows if self.groups is not None else ():
            place = self.slots[slot]
            self.groups.check(place.tables, begun[slot], self._history(place))

        tokens: list[int] = []
        logprobs: list[float] = []
        counts: list[int] = []
        asked = False
        for slot, length, flags in rows:
            if not flags & ROW_SAMPLES:
                continue
            place = self.slots[slot]
            accepted = self._accepted(place, length) if flags & ROW_DRAFTS else 0
            counts.append(1 + accepted)
            for i in range(1 + accepted):
                if i > 0:
                    block, offset = divmod(place.context, self.block_size)
                    assert place.last_token is not None
                    if self.groups is not None:
                        self.groups.write(place.tables, place.context, place.last_token)
                    self.cells[place.blocks[block]][offset] = place.last_token
                    place.context += 1
                history = self._history(place)
                place.last_token = sample(history, place.seed, self.vocab_size)
                ending = tuple(history[-len(self.nan_when) :])
                broken = bool(self.nan_when) and ending == self.nan_when
                tokens.append(self.no_token if broken else place.last_token)
                logprobs.append(-1.0 / (1 + len(history)))
            asked = asked or place.logprobs
        return tokens, logprobs, counts, asked

    def _accepted(self, place: Slot, width: int) -> int:
        """How many of the row's drafts were right."""
        self.verified_rows += 1
        if self.acceptance:
            right = self.acceptance[(self.verified_rows - 1) % len(self.acceptance)]
            return min(right, width - 1)
        return (place.context * 7 + (place.last_token or 0)) % width

    def _history(self, place: Slot) -> list[int]:
        history = []
        for position in range(place.context):
            block, offset = divmod(position, self.block_size)
            token = self.cells[place.blocks[block]][offset]
            assert token is not None, f"position {position} was never written"
            history.append(token)
        return history
