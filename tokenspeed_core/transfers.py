# SPDX-License-Identifier: MIT
"""Copies between the caches and the host tier, beside the steps, on a thread of their own."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from .host_pool import HostPool
from .ipc.messages import StepPlan

_log = logging.getLogger(__name__)


@attrs.frozen
class Ended:
    """A ticket whose copies are over; not `ok` if any of its blocks was not copied."""

    epoch: int
    ticket: int
    ok: bool


@attrs.define(eq=False)
class _Copy:
    """One ticket under way: `layers[i]` is set when layer i is over, whatever came of it."""

    epoch: int
    ticket: int
    is_load: bool
    blocks: dict[int, tuple[Tensor, Tensor]]  # sources and targets, by block group
    layers: list[threading.Event]
    marks: list[Any]  # what an accelerator's stream has to wait for, a layer


class Transfers:
    """Runs the copies of plans in order; `notify` is called on the thread when one has ended.

    `groups` are the block groups of the pool's layers: a layer copies its own group's blocks.
    A load may be read a layer at a time: `gated` hands out caches that make a step wait, before
    each layer, for that layer of the loads that its rows wait for.
    """

    def __init__(
        self,
        pool: HostPool,
        groups: Sequence[int],
        device: torch.device,
        notify: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._groups = groups
        self._notify = notify
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._jobs: queue.Queue[_Copy | None] = queue.Queue()
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._loads: dict[int, _Copy] = {}  # under way in this epoch, until a step has waited
        self._epoch = 0
        self._thread = threading.Thread(target=self._run, name="transfers", daemon=True)
        self._thread.start()

    def begin_epoch(self, epoch: int) -> None:
        """Forget the copies of earlier epochs; wait for the one that runs."""
        self._epoch = epoch
        self._loads.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
                self._jobs.task_done()
        self._jobs.join()

    def close(self) -> None:
        """End the thread behind the copies that are queued."""
        self._jobs.put(None)
        self._thread.join()

    def start(self, plan: StepPlan) -> None:
        """Queue a plan's copies: the steps before it are done, its own rows have not run."""
        if not plan.store_tickets and not plan.load_tickets:
            return
        if self._stream is not None:  # stores read what the steps before have written
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        stores = (plan.store_tickets, plan.store_groups, plan.store_sources, plan.store_targets)
        loads = (plan.load_tickets, plan.load_groups, plan.load_sources, plan.load_targets)
        for is_load, columns in ((False, stores), (True, loads)):
            tickets, groups, *ends = (np.frombuffer(column, np.int32) for column in columns)
            for ticket in dict.fromkeys(tickets.tolist()):
                blocks = {}
                for group in set(groups[tickets == ticket].tolist()):
                    own = (tickets == ticket) & (groups == group)
                    sources, targets = (torch.from_numpy(e[own].astype(np.int64)) for e in ends)
                    blocks[group] = sources, targets
                copy = _Copy(
                    self._epoch,
                    ticket,
                    is_load,
                    blocks,
                    [threading.Event() for _ in range(self._pool.num_layers)],
                    [None] * self._pool.num_layers,
                )
                if is_load:
                    self._loads[ticket] = copy
                self._jobs.put(copy)

    def gated(self, caches: Sequence[Any], tickets: Sequence[int]) -> Any:
        """Return `caches`, or what waits layer by layer for these loads where it is sliced."""
        loads = [self._loads.pop(ticket) for ticket in tickets if ticket in self._loads]
        return _GatedCaches(caches, loads) if loads else caches

    def ended(self) -> list[Ended]:
        """Return the tickets of this epoch that have ended since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                each = self._ended.get_nowait()
                if each.epoch == self._epoch:
                    found.append(each)
                    self._loads.pop(each.ticket, None)
        return found

    def _run(self) -> None:
        while (copy := self._jobs.get()) is not None:
            self._ended.put(Ended(copy.epoch, copy.ticket, self._copy(copy)))
            self._jobs.task_done()
            self._notify()

    @torch.inference_mode()
    def _copy(self, copy: _Copy) -> bool:
        try:
            move = self._pool.load if copy.is_load else self._pool.store
            stream = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
            with stream:
                for layer, over in enumerate(copy.layers):
                    if own := copy.blocks.get(self._groups[layer]):
                        move(layer, *own)
                    if self._stream is not None:
                        copy.marks[layer] = self._stream.record_event()
                    over.set()
            if self._stream is not None:
                self._stream.synchronize()
            return True
        except Exception as error:
            # Whatever went wrong, the scheduler must hear of it: it computes the blocks again.
            kind = "load" if copy.is_load else "store"
            _log.warning("%s %d failed: %s: %s", kind, copy.ticket, type(error).__name__, error)
            return False
        finally:
            for over in copy.layers:
                over.set()


@attrs.frozen(eq=False)
class _GatedCaches:
    """Caches as the emitted driver takes them: `caches[start:stop]`, walked layer by layer."""

    _caches: Sequence[Any]
    _loads: Sequence[_Copy]

    def __getitem__(self, span: slice) -> Iterator[Any]:
        for layer in range(*span.indices(len(self._caches))):
            for load in self._loads:
                load.layers[layer].wait()
                if load.marks[layer] is not None:
                    torch.cuda.current_stream().wait_event(load.marks[layer])
            yield self._caches[layer]
