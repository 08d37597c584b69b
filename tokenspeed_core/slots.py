# SPDX-License-Identifier: MIT
"""The persistent batch: what a worker knows of each slot, changed only by step plans."""

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from .ipc.messages import ROW_HAS_TOKENS, ROW_SAMPLES, StepPlan
from .kernels.sampling import SamplingRows
from .ops.batch import Batch

Int32 = NDArray[np.int32]


class PlanError(RuntimeError):
    """A step plan contradicts what the worker knows; the two have lost step."""


@attrs.frozen
class Step:
    """One step made ready to run: its batch, and who samples."""

    batch: Batch
    sampling: SamplingRows
    sampling_slots: Int32  # [m]
    copies: tuple[Int32, Int32]  # source and target blocks of group 0
    loads: tuple[int, ...] = ()  # tickets that its rows wait for

    @property
    def num_tokens(self) -> int:
        """Query tokens of the step."""
        return int(self.batch.tokens.shape[0])


class Slots:
    """Tables indexed by slot.

    A slot's context counts the tokens whose keys and values are in its blocks; it grows when a step
    is prepared, before the step runs, because steps run in order.
    """

    def __init__(self, num_slots: int, max_blocks: int, num_blocks: int, block_size: int) -> None:
        self._num_slots = num_slots
        self._num_cache_blocks = num_blocks
        self._block_size = block_size
        self._block_table = np.zeros((num_slots, max_blocks), np.int32)
        self._blocks_used = np.zeros(num_slots, np.int32)
        self._context = np.zeros(num_slots, np.int32)
        self._last_token = np.zeros(num_slots, np.int32)
        self._occupied = np.zeros(num_slots, np.bool_)
        self._temperature = np.zeros(num_slots, np.float32)
        self._top_k = np.zeros(num_slots, np.int32)
        self._top_p = np.zeros(num_slots, np.float32)
        self._seed = np.zeros(num_slots, np.uint64)
        self._logprobs = np.zeros(num_slots, np.bool_)
        self._waits: dict[int, list[int]] = {}  # tickets, until a row of the slot runs

    def prepare(self, plan: StepPlan) -> Step:
        """Apply the plan's deltas and return the step it describes.

        Raises:
            PlanError: the plan names a slot or block out of range, adds an occupied slot, or runs
                a row whose slot has too few blocks.
        """
        self._remove(plan)
        self._add(plan)
        self._append_blocks(plan)
        self._await(plan)
        rows, counts = _int32(plan.rows), _int32(plan.row_tokens)
        flags = np.frombuffer(plan.row_flags, np.uint8)
        if not len(rows) == len(counts) == len(flags):
            raise PlanError(
                f"step {plan.step}: {len(rows)} rows, {len(counts)} counts, {len(flags)} flags"
            )
        self._check_slots(rows, plan, "row")
        if not self._occupied[rows].all() or (counts < 1).any():
            raise PlanError(f"step {plan.step}: a row names an empty slot or has no tokens: {rows}")
        context = self._context[rows]
        lens = context + counts
        if (lens > self._blocks_used[rows] * self._block_size).any():
            raise PlanError(
                f"step {plan.step}: contexts {lens} exceed {self._blocks_used[rows]} blocks of "
                f"{self._block_size} tokens for slots {rows}"
            )
        self._context[rows] = lens
        return self._build(plan, rows, counts, flags, context, lens)

    def record(self, step: Step, tokens: Int32) -> None:
        """Keep the sampled tokens as the next input of their slots."""
        # A row without a finite logit has token -1; the scheduler ends it, until then it feeds 0.
        self._last_token[step.sampling_slots] = np.maximum(tokens, 0)

    def _remove(self, plan: StepPlan) -> None:
        slots = _int32(plan.removed_slots)
        self._check_slots(slots, plan, "removed slot")
        self._occupied[slots] = False
        self._blocks_used[slots] = 0
        if self._waits:
            for slot in slots.tolist():
                self._waits.pop(slot, None)

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
        self._blocks_used[slots] = 0
        self._context[slots] = _int32(plan.added_context)
        self._temperature[slots] = np.frombuffer(plan.added_temperature, np.float32)
        self._top_k[slots] = _int32(plan.added_top_k)
        self._top_p[slots] = np.frombuffer(plan.added_top_p, np.float32)
        self._seed[slots] = np.frombuffer(plan.added_seed, np.uint64)
        self._logprobs[slots] = np.frombuffer(plan.added_logprobs, np.uint8)

    def _append_blocks(self, plan: StepPlan) -> None:
        slots, ids = _int32(plan.block_slots), _int32(plan.block_ids)
        if not len(slots):
            return
        self._check_slots(slots, plan, "block's slot")
        if ids.min() < 1 or ids.max() >= self._num_cache_blocks:
            raise PlanError(
                f"step {plan.step}: block ids {ids.min()}..{ids.max()} are not within "
                f"1..{self._num_cache_blocks - 1}"
            )
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        is_first = np.r_[True, ordered[1:] != ordered[:-1]]
        first = np.flatnonzero(is_first)
        within = np.arange(len(ordered)) - first[np.cumsum(is_first) - 1]
        places = self._blocks_used[ordered] + within
        if places.max() >= self._block_table.shape[1]:
            raise PlanError(f"step {plan.step}: a slot got more blocks than the model's length")
        self._block_table[ordered, places] = ids[order]
        np.add.at(self._blocks_used, slots, 1)

    def _build(
        self,
        plan: StepPlan,
        rows: Int32,
        counts: Int32,
        flags: NDArray[np.uint8],
        context: Int32,
        lens: Int32,
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
        blocks = self._block_table[token_slots, positions // self._block_size]
        cache_slots = blocks.astype(np.int64) * self._block_size + positions % self._block_size
        samples = np.flatnonzero(flags & ROW_SAMPLES)
        sampling_slots = rows[samples]
        max_context = int(lens.max(initial=0))
        width = max(1, -(-max_context // self._block_size))
        batch = Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            cache_slots=torch.from_numpy(cache_slots),
            query_starts=torch.from_numpy(starts),
            context_lens=torch.from_numpy(lens),
            block_tables=torch.from_numpy(self._block_table[rows, :width]),
            logit_rows=torch.from_numpy(starts[1:][samples].astype(np.int64) - 1),
            state_blocks=torch.from_numpy(rows.astype(np.int64)),
            num_rows=len(rows),
            num_decode_rows=int((np.cumprod(counts == 1)).sum()),
            max_query=int(counts.max(initial=0)),
            max_context=max_context,
        )
        sampling = SamplingRows(
            temperature=self._temperature[sampling_slots],
            top_k=self._top_k[sampling_slots],
            top_p=self._top_p[sampling_slots],
            seed=self._seed[sampling_slots],
            position=lens[samples],
            logprobs=self._logprobs[sampling_slots],
        )
        copies = (_int32(plan.copy_sources), _int32(plan.copy_targets))
        # Steps run in order: the first row of a slot waits for all that come behind it.
        loads = (
            [t for row in rows.tolist() for t in self._waits.pop(row, ())] if self._waits else []
        )
        return Step(batch, sampling, sampling_slots, copies, tuple(dict.fromkeys(loads)))

    def _check_slots(self, slots: Int32, plan: StepPlan, what: str) -> None:
        if len(slots) and (slots.min() < 0 or slots.max() >= self._num_slots):
            raise PlanError(
                f"step {plan.step}: {what} {slots} is not within 0..{self._num_slots - 1}"
            )


def _int32(column: bytes) -> Int32:
    return np.frombuffer(column, np.int32)
