# SPDX-License-Identifier: MIT
"""Step plans carried out on a GPU: the host queues steps and reads none of their values."""

import attrs
import numpy as np
import torch
from torch import Tensor

from .block_table import Int32
from .decode_graph import DecodeGraph, DecodeGraphs
from .device_tables import DeviceTables
from .embedded import embedded
from .grammar.library import Library
from .graphs import Graphs
from .ipc.messages import StepPlan
from .models.sampling import Choice, choose_whole
from .runner import Runner
from .sampled import Sampled
from .shared_prefix import SharedPrefix
from .slots import Slots, Step
from .transfers import Transfers
from .upload import moved, uploaded


class DeviceExecutor:
    """Queues each step behind the last; sampled ids stay on the device and feed the next step.

    Steps replay `graphs` where these are not None and have one for them; all others run the
    emitted program.
    """

    def __init__(
        self,
        runner: Runner,
        tables: DeviceTables,
        graphs: Graphs | None,
        transfers: Transfers | None = None,
        library: Library | None = None,
    ) -> None:
        self._runner = runner
        self._tables = tables
        self._graphs = graphs
        self._transfers = transfers
        self._slots: Slots = runner.new_slots(library)
        # What these rows share; it holds while their slots keep their requests.
        self._sharers: Int32 | None = None
        self._shared: SharedPrefix | None = None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Sampled:
        """Queue a step."""
        step = self._slots.prepare(plan)
        if self._transfers is not None:
            self._transfers.start(plan)
        self._tables.append(step.blocks[: len(self._tables.block_tables)])
        if plan.removed_slots:
            self._sharers = None
        device = self._tables.device
        if step.num_tokens == 0:
            self._runner.copy_blocks(step.copies)
            return Sampled.download(torch.empty(0, dtype=torch.int32, device=device), None)
        if step.is_decode and not step.loads and self._graphs is not None:
            graph = self._decode_graph(step, self._graphs.decode)
            if graph is not None:
                self._runner.copy_blocks(step.copies)
                logits = graph.logits(step.rows, step.sampling.position.numpy())
                is_plain = not step.shapers and not self._runner.embeds
                if Choice.of(step.sampling) == Choice() and is_plain:
                    return Sampled.download(graph.greedy()[: len(step.rows)], None)
                return self._sample(step, logits[: len(step.rows)])
        if self._graphs is not None and not step.loads and not step.shapers.prompts:
            extend = self._graphs.extend.of(step)
            if extend is not None:
                self._runner.copy_blocks(step.copies)
                return self._sample(step, extend.logits(step))
        return self._sample(step, self._runner.logits(self._on_device(step), self._transfers))

    def _decode_graph(self, step: Step, graphs: DecodeGraphs) -> DecodeGraph | None:
        graph = graphs.sharing(len(step.rows))
        if graph is not None:
            if self._sharers is None or not np.array_equal(step.rows, self._sharers):
                self._sharers, self._shared = step.rows, graph.find_shared(step.batch)
            if self._shared is not None:
                graph.share(self._shared)
                return graph
        return graphs.of(len(step.rows))

    def _on_device(self, step: Step) -> Step:
        batch = moved(step.batch, self._tables.device)
        places, slots = step.fed
        if len(places):
            index = uploaded(np.stack((places, slots)).astype(np.int64), self._tables.device)
            batch.tokens.index_copy_(0, index[0], self._tables.last_token[index[1]])
        return attrs.evolve(step, batch=batch)

    def _sample(self, step: Step, every: Tensor) -> Sampled:
        how = Choice.of(step.sampling)
        if self._runner.embeds:
            return embedded(every, step.sampling_slots, how.reported)
        logits = every[: len(step.sampling_slots)]
        rows = moved(step.sampling, self._tables.device)
        shaped = step.shapers.shaped(logits, step.sampling.temperature)
        found = choose_whole(shaped, rows, how)
        tokens = step.shapers.take(found[:, 0].int(), logits)
        if len(step.sampling_slots):
            self._tables.record(uploaded(step.sampling_slots, self._tables.device), tokens)
        logprobs = None
        if how.reported:
            logprobs = found[:, 1].masked_fill(~rows.logprobs, torch.nan).float()
            logprobs = step.shapers.own_logprobs(logits, tokens, logprobs)
        sampled = Sampled.download(tokens, logprobs, step.shapers.told(every))
        step.shapers.follow(sampled)
        return sampled
