# SPDX-License-Identifier: MIT
"""Steps planned for a fixed set of requests, without a scheduler: what the runner alone takes."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..device_gaps import DeviceGaps
from ..executor import Executor
from ..ipc.codec import float32_column, int32_column, uint64_column
from ..ipc.messages import ROW_HAS_TOKENS, ROW_SAMPLES, StepPlan
from ..sampled import Sampled

_AHEAD = 2  # plans in flight, as the scheduler plans


class Offline:
    """Requests in slots 0, 1, ... with blocks of their own, all greedy."""

    def __init__(
        self, executor: Executor, block_size: int, num_blocks: int, vocab_size: int
    ) -> None:
        self._executor = executor
        self._block_size = block_size
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._step = 0
        self._next_block = 1
        self._context: list[int] = []
        self._held: list[int] = []  # blocks of a slot
        self._removed: list[int] = []
        self._random = np.random.default_rng(0)

    def admit(self, contexts: Sequence[int], shared: int = 0) -> None:
        """Fill slots with requests that have so many tokens cached, `shared` of them in common.

        Requests that were in slots are gone.
        """
        self._removed = list(range(len(self._context)))
        self._next_block = 1
        self._context = list(contexts)
        self._held = [0] * len(contexts)
        common = self._new_blocks(shared // self._block_size)
        slots: list[int] = []
        ids: list[int] = []
        for slot, context in enumerate(contexts):
            own = self._new_blocks(-(-context // self._block_size) - len(common))
            ids += [*common, *own]
            slots += [slot] * (len(common) + len(own))
            self._held[slot] = len(common) + len(own)
        count = len(contexts)
        self._launch(
            removed_slots=int32_column(self._removed),
            added_slots=int32_column(range(count)),
            added_context=int32_column(contexts),
            added_temperature=float32_column([0.0] * count),
            added_top_k=int32_column([0] * count),
            added_top_p=float32_column([1.0] * count),
            added_seed=uint64_column([0] * count),
            added_logprobs=bytes(count),
            block_slots=int32_column(slots),
            block_groups=int32_column([0] * len(slots)),
            block_ids=int32_column(ids),
        ).wait()

    def extend(self, count: int, chunk: int) -> list[int]:
        """Run `count` new random tokens of every request in steps of `chunk`; return the samples.

        A step takes tokens of one request; the last of each request samples.
        """
        found: list[int] = []
        for slot in range(len(self._context)):
            left = count
            while left:
                size = min(left, chunk)
                left -= size
                prompt = self._random.integers(self._vocab_size, size=size).tolist()
                sampled = self._run([slot], [size], [ROW_SAMPLES * (not left)], prompt)
            sampled.wait()
            found.append(int(sampled.tokens[0]))
        return found

    def decode(self, steps: int) -> list[list[int]]:
        """Run so many decode steps of all requests, two in flight; return each step's tokens."""
        flying: deque[Sampled] = deque()
        found: list[list[int]] = []
        slots = list(range(len(self._context)))
        for _ in range(steps):
            if len(flying) == _AHEAD:
                found.append(_tokens(flying.popleft()))
            flying.append(self._run(slots, [1] * len(slots), None, []))
        return found + [_tokens(each) for each in flying]

    def gaps(self) -> list[float]:
        """Return the device's gaps between steps since the last call, in us; [] on a CPU."""
        return self._executor.taken() if isinstance(self._executor, DeviceGaps) else []

    def _run(
        self, slots: list[int], counts: list[int], flags: list[int] | None, prompt: list[int]
    ) -> Sampled:
        grown: list[int] = []
        for slot, count in zip(slots, counts, strict=True):
            self._context[slot] += count
            wanted = -(-self._context[slot] // self._block_size)
            grown += [slot] * (wanted - self._held[slot])
            self._held[slot] = max(wanted, self._held[slot])
        if flags is None:
            row_flags = bytes([ROW_SAMPLES]) * len(slots)
        else:
            row_flags = bytes(ROW_HAS_TOKENS | flag for flag in flags)
        return self._launch(
            block_slots=int32_column(grown),
            block_groups=int32_column([0] * len(grown)),
            block_ids=int32_column(self._new_blocks(len(grown))),
            rows=int32_column(slots),
            row_tokens=int32_column(counts),
            row_flags=row_flags,
            prompt_tokens=int32_column(prompt),
        )

    def _launch(self, **columns: Any) -> Sampled:
        self._step += 1
        return self._executor.launch(StepPlan(1, self._step, **columns))

    def _new_blocks(self, count: int) -> list[int]:
        first = self._next_block
        self._next_block += max(count, 0)
        if self._next_block > self._num_blocks:
            raise CacheTooSmallError(
                f"the case needs {self._next_block} KV blocks and the cache has "
                f"{self._num_blocks}; give the cache more memory, or leave the case out"
            )
        return list(range(first, self._next_block))


class CacheTooSmallError(RuntimeError):
    """A case needs more keys and values than the cache holds."""


def _tokens(sampled: Sampled) -> list[int]:
    sampled.wait()
    tokens: list[int] = sampled.tokens.tolist()
    return tokens
