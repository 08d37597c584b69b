# SPDX-License-Identifier: MIT
"""The persistent batch: what a worker knows of each slot, changed only by step plans."""

from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from .block_groups import BlockGroups
from .block_table import BlockTable, Int32
from .grammar.library import Library
from .ipc.messages import ROW_HAS_TOKENS, ROW_SAMPLES, GroupKind, StepPlan
from .ops.batch import Batch
from .ops.sampling import SamplingRows
from .plan_error import PlanError
from .shaper import NO_SHAPERS, PromptRows, Shaper, Shapers

# What the table of each group got: flat places, and block ids.
Blocks = tuple[tuple[Int32, Int32], ...]


@attrs.frozen
class Copies:
    """Copies of blocks before the rows run: `sources[i]` onto `targets[i]` in group `groups[i]`."""

    groups: Int32
    sources: Int32
    targets: Int32


@attrs.frozen
class Step:
    """One step made ready to run: its batch, and who samples."""

    batch: Batch
    sampling: SamplingRows
    sampling_slots: Int32  # [m]
    copies: Copies
    rows: Int32  # [r] the slot of each row
    fed: tuple[Int32, Int32]  # tokens that are their slot's last sample, and these slots
    blocks: Blocks
    loads: tuple[int, ...] = ()  # tickets that its rows wait for
    shapers: Shapers = NO_SHAPERS

    @property
    def num_tokens(self) -> int:
        """Query tokens of the step."""
        return int(self.batch.tokens.shape[0])

    @property
    def is_decode(self) -> bool:
        """Every row's input is its slot's last sample, and every row samples."""
        return 0 < len(self.rows) == len(self.fed[1]) == len(self.sampling_slots)


class Slots:
    """Tables indexed by slot.

    A slot's context counts the tokens whose keys and values are in its blocks; it grows when a step
    is prepared, before the step runs, because steps run in order.
    """

    def __init__(
        self,
        num_slots: int,
        max_blocks: int,
        num_parents: int,
        groups: BlockGroups,
        library: Library | None = None,
        shapes: bool = True,
    ) -> None:
        """Without `shapes` nothing that requests ask of their logits is done."""
        self._num_slots = num_slots
        self._tables = [BlockTable(each, num_slots, max_blocks, num_parents) for each in groups]
        by_kind = dict(zip((each.kind for each in groups), self._tables, strict=True))
        self._full = by_kind[GroupKind.FULL]
        self._window = by_kind.get(GroupKind.WINDOW)
        self._state = by_kind.get(GroupKind.STATE)
        self._block_size = groups.first.tokens
        self._context = np.zeros(num_slots, np.int32)
        self._last_token = np.zeros(num_slots, np.int32)
        self._occupied = np.zeros(num_slots, np.bool_)
        self._temperature = np.zeros(num_slots, np.float32)
        self._top_k = np.zeros(num_slots, np.int32)
        self._top_p = np.zeros(num_slots, np.float32)
        self._seed = np.zeros(num_slots, np.uint64)
        self._logprobs = np.zeros(num_slots, np.bool_)
        self._last_rows = np.zeros(0, np.int32)  # of the last step
        self._waits: dict[int, list[int]] = {}  # tickets, until a row of the slot runs
        self._shapers: dict[int, Shaper] = {}
        self._library = library
        self._shapes = shapes

    def prepare(self, plan: StepPlan) -> Step:
        """Apply the plan's deltas and return the step it describes.

        Raises:
            PlanError: the plan names a slot or block out of range, adds an occupied slot, or runs
                a row whose slot has too few blocks.
        """
        self._remove(plan)
        self._add(plan)
        self._keep_blocks(plan)
        appended = self._append_blocks(plan)
        self._await(plan)
        rows, counts, flags = self._rows_of(plan)
        if not len(rows) == len(counts) == len(flags):
            raise PlanError(
                f"step {plan.step}: {len(rows)} rows, {len(counts)} counts, {len(flags)} flags"
            )
        self._check_slots(rows, plan, "row")
        if not self._occupied[rows].all() or (counts < 1).any():
            raise PlanError(f"step {plan.step}: a row names an empty slot or has no tokens: {rows}")
        context = self._context[rows]
        lens = context + counts
        for table in self._tables:
            table.check(rows, lens, plan.step)
        self._context[rows] = lens
        self._last_rows = rows
        return self._build(plan, rows, counts, flags, context, lens, appended)

    def record(self, step: Step, tokens: Int32) -> None:
        """Keep the sampled tokens as the next input of their slots."""
        # A row without a finite logit has token -1; the scheduler ends it, until then it feeds 0.
        self._last_token[step.sampling_slots] = np.maximum(tokens, 0)

    def _rows_of(self, plan: StepPlan) -> tuple[Int32, Int32, NDArray[np.uint8]]:
        rows, counts = _int32(plan.rows), _int32(plan.row_tokens)
        flags = np.frombuffer(plan.row_flags, np.uint8)
        repeated = plan.repeated_rows
        if not repeated:
            return rows, counts, flags
        if repeated > len(self._last_rows):
            raise PlanError(
                f"step {plan.step} repeats {repeated} rows of {len(self._last_rows)} before it"
            )
        return (
            np.concatenate((self._last_rows[:repeated], rows)),
            np.concatenate((np.ones(repeated, np.int32), counts)),
            np.concatenate((np.full(repeated, ROW_SAMPLES, np.uint8), flags)),
        )

    def _remove(self, plan: StepPlan) -> None:
        slots = _int32(plan.removed_slots)
        self._check_slots(slots, plan, "removed slot")
        self._occupied[slots] = False
        for table in self._tables:
            table.clear(slots)
        if self._waits or self._shapers:
            for slot in slots.tolist():
                self._waits.pop(slot, None)
                self._shapers.pop(slot, None)

    def _await(self, plan: StepPlan) -> None:
        slots = _int32(plan.wait_slots)
        self._check_slots(slots, plan, "waiting slot")
        for slot, ticket in zip(slots.tolist(), _int32(plan.wait_tickets).tolist(), strict=True):
            self._waits.setdefault(slot, []).append(ticket)

    def _add(self, plan: StepPlan) -> None:
        slots = _int32(plan.added_slots)
        if not len(slots):
            return
        self._check_slots(slots, plan, "added slot")
        if self._occupied[slots].any():
            raise PlanError(f"step {plan.step}: added slots {slots} are not all free")
        self._occupied[slots] = True
        self._context[slots] = _int32(plan.added_context)
        self._temperature[slots] = np.frombuffer(plan.added_temperature, np.float32)
        self._top_k[slots] = _int32(plan.added_top_k)
        self._top_p[slots] = np.frombuffer(plan.added_top_p, np.float32)
        self._seed[slots] = np.frombuffer(plan.added_seed, np.uint64)
        self._logprobs[slots] = np.frombuffer(plan.added_logprobs, np.uint8)
        if plan.added_shaping and self._shapes:
            self._add_shapers(plan, slots)

    def _add_shapers(self, plan: StepPlan, slots: Int32) -> None:
        sizes, counts = _int32(plan.added_shaping_bytes), _int32(plan.added_output_counts)
        outputs = _int32(plan.added_outputs)
        if len(sizes) != len(counts) or len(sizes) > len(slots):
            raise PlanError(f"step {plan.step}: {len(sizes)} shapings, {len(counts)} outputs")
        ends, stops = np.cumsum(sizes), np.cumsum(counts)
        for index in np.flatnonzero(sizes).tolist():
            end, stop = int(ends[index]), int(stops[index])
            self._shapers[int(slots[index])] = Shaper(
                plan.added_shaping[end - int(sizes[index]) : end],
                outputs[stop - int(counts[index]) : stop],
                self._library,
            )

    def _keep_blocks(self, plan: StepPlan) -> None:
        slots, counts = _int32(plan.kept_slots), _int32(plan.kept_blocks)
        if not len(slots):
            return
        self._check_slots(slots, plan, "slot of kept blocks")
        groups = _int32(plan.kept_groups)
        self._check_groups(groups, plan)
        if not np.isin(slots, _int32(plan.added_slots)).all():
            raise PlanError(f"step {plan.step}: slots {slots} keep blocks and are not all added")
        for group, table in enumerate(self._tables):
            own = groups == group
            if own.any():
                table.keep(slots[own], counts[own], plan.step)

    def _append_blocks(self, plan: StepPlan) -> Blocks:
        slots, ids = _int32(plan.block_slots), _int32(plan.block_ids)
        appended = [(slots[:0], ids[:0])] * len(self._tables)
        if not len(slots):
            return tuple(appended)
        self._check_slots(slots, plan, "block's slot")
        groups = _int32(plan.block_groups)
        self._check_groups(groups, plan)
        for group, table in enumerate(self._tables):
            own = groups == group
            if own.any():
                appended[group] = table.append(slots[own], ids[own], plan.step)
        return tuple(appended)

    def _build(
        self,
        plan: StepPlan,
        rows: Int32,
        counts: Int32,
        flags: NDArray[np.uint8],
        context: Int32,
        lens: Int32,
        appended: Blocks,
    ) -> Step:
        starts = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        total = int(starts[-1])
        carried = (flags & ROW_HAS_TOKENS) != 0
        tokens = np.empty(total, np.int32)
        prompt = _int32(plan.prompt_tokens)
        if len(prompt) != int(counts[carried].sum()) or (counts[~carried] != 1).any():
            raise PlanError(f"step {plan.step}: prompt_tokens do not fit the rows that carry them")
        tokens[np.repeat(carried, counts)] = prompt
        tokens[starts[:-1][~carried]] = self._last_token[rows[~carried]]
        positions = np.repeat(context - starts[:-1], counts) + np.arange(total, dtype=np.int32)
        token_slots = np.repeat(rows, counts)
        samples = np.flatnonzero(flags & ROW_SAMPLES)
        sampling_slots = rows[samples]
        logit_rows = starts[1:][samples].astype(np.int64) - 1
        shapers = self._shaped(sampling_slots, rows, context, np.where(carried, counts, 0))
        if shapers.prompts:
            logit_rows = np.concatenate((logit_rows, _places(shapers, rows, starts)))
        max_context = int(lens.max(initial=0))
        width = max(1, -(-max_context // self._block_size))
        batch = Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            cache_slots=torch.from_numpy(self._full.cache_slots(token_slots, positions)),
            query_starts=torch.from_numpy(starts),
            context_lens=torch.from_numpy(lens),
            block_tables=torch.from_numpy(self._full.rows(rows, width)),
            logit_rows=torch.from_numpy(logit_rows),
            state_blocks=torch.from_numpy(
                self._state.live(rows) if self._state else rows.astype(np.int64)
            ),
            num_rows=len(rows),
            num_decode_rows=int((np.cumprod(counts == 1)).sum()),
            max_query=int(counts.max(initial=0)),
            max_context=max_context,
            **self._windowed(rows, token_slots, positions, width),
        )
        sampling = SamplingRows(
            temperature=torch.from_numpy(self._temperature[sampling_slots]),
            top_k=torch.from_numpy(self._top_k[sampling_slots]),
            top_p=torch.from_numpy(self._top_p[sampling_slots]),
            seed=torch.from_numpy(self._seed[sampling_slots].view(np.int64)),
            position=torch.from_numpy(lens[samples]),
            logprobs=torch.from_numpy(self._logprobs[sampling_slots]),
        )
        copies = Copies(
            _int32(plan.copy_groups), _int32(plan.copy_sources), _int32(plan.copy_targets)
        )
        self._check_groups(copies.groups, plan)
        # Steps run in order: the first row of a slot waits for all that come behind it.
        loads = (
            [t for row in rows.tolist() for t in self._waits.pop(row, ())] if self._waits else []
        )
        return Step(
            batch=batch,
            sampling=sampling,
            sampling_slots=sampling_slots,
            copies=copies,
            rows=rows,
            fed=(starts[:-1][~carried], rows[~carried]),
            blocks=appended,
            loads=tuple(dict.fromkeys(loads)),
            shapers=shapers,
        )

    def _shaped(self, sampling: Int32, rows: Int32, context: Int32, carried: Int32) -> Shapers:
        """Return the shapers of sampling slots, and of rows that carry tokens of a prompt."""
        if not self._shapers:
            return NO_SHAPERS
        slots = sampling.tolist()
        found = ((row, self._shapers.get(slot)) for row, slot in enumerate(slots))
        shaped = [(row, shaper) for row, shaper in found if shaper is not None]
        prompts = [
            PromptRows(slot, shaper, before, count)
            for slot, before, length in zip(
                rows.tolist(), context.tolist(), carried.tolist(), strict=True
            )
            if (shaper := self._shapers.get(slot)) is not None
            and (count := shaper.prompt_rows(before, length))
        ]
        return Shapers(shaped, prompts, slots) if shaped or prompts else NO_SHAPERS

    def _windowed(
        self, rows: Int32, token_slots: Int32, positions: Int32, width: int
    ) -> dict[str, Any]:
        if self._window is None:
            return {}
        return {
            "window_slots": torch.from_numpy(self._window.cache_slots(token_slots, positions)),
            "window_tables": torch.from_numpy(self._window.rows(rows, width)),
        }

    def _check_groups(self, groups: Int32, plan: StepPlan) -> None:
        if len(groups) and (groups.min() < 0 or groups.max() >= len(self._tables)):
            raise PlanError(
                f"step {plan.step}: groups {groups} are not within 0..{len(self._tables) - 1}"
            )

    def _check_slots(self, slots: Int32, plan: StepPlan, what: str) -> None:
        if len(slots) and (slots.min() < 0 or slots.max() >= self._num_slots):
            raise PlanError(
                f"step {plan.step}: {what} {slots} is not within 0..{self._num_slots - 1}"
            )


def _int32(column: bytes) -> Int32:
    return np.frombuffer(column, np.int32)


def _places(shapers: Shapers, rows: Int32, starts: Int32) -> NDArray[np.int64]:
    """Return the places in the step of prompts' tokens whose logits are wanted."""
    first = dict(zip(rows.tolist(), starts.tolist(), strict=False))
    spans = [first[each.slot] + np.arange(each.length) for each in shapers.prompts]
    return np.concatenate(spans).astype(np.int64)
