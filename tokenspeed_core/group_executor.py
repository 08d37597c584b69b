# SPDX-License-Identifier: MIT
"""Step plans carried out where ranks serve different requests."""

import numpy as np
import torch
from torch import Tensor

from .grammar.library import Library
from .ipc.messages import StepPlan
from .models.sampling import Choice
from .request_groups import RequestGroups, Share, fetched_by, share_of
from .runner import Runner
from .sampled import Sampled
from .slots import Step


class GroupExecutor:
    """Runs the rows of this rank's own requests; then all ranks learn all tokens.

    Groups run one program on equally many tokens, so that their collectives meet; one without
    rows runs it on padding.  Where a row is shaped they exchange logits, and each samples all rows;
    so they do with the rows of an embedder.
    """

    def __init__(self, runner: Runner, own: int, axis: str, library: Library | None = None) -> None:
        self._runner, self._own, self._axis = runner, own, axis
        self._count = runner.plan.mesh.size(runner.plan.mesh.requests)
        self._slots = runner.new_slots(library)
        self._groups = RequestGroups(
            self._count, runner.num_slots, runner.num_blocks, runner.block_size
        )

    def launch(self, plan: StepPlan) -> Sampled:
        """Run a step."""
        step = self._slots.prepare(plan)
        counts = np.diff(step.batch.query_starts.numpy())
        for fetch in fetched_by(self._groups.apply(plan, step.rows, counts), self._own):
            self._runner.fetch(self._axis, fetch.blocks, fetch.source, fetch.target)
        if step.num_tokens == 0:
            return self._runner.run(step)
        share = share_of(step, self._groups.of(step.rows), self._own, self._count)
        if step.shapers or self._runner.embeds:
            logits = self._gathered(self._runner.logits(share.step), share)
            sampled = self._runner.sampled(step, logits)
        else:
            sampled = self._chosen(step, share)
        self._slots.record(step, sampled.tokens)
        step.shapers.follow(sampled)
        return sampled

    def _chosen(self, step: Step, share: Share) -> Sampled:
        how = Choice.of(step.sampling)
        own = self._runner.chosen(share.step, how)
        pairs = torch.from_numpy(own.tokens).double(), torch.from_numpy(own.logprobs).double()
        tokens, logprobs = self._gathered(torch.stack(pairs, 1), share).unbind(1)
        return Sampled(tokens.int(), logprobs.float(), how.reported)

    def _gathered(self, x: Tensor, share: Share) -> Tensor:
        """Return the rows of all groups in the order of the step."""
        every: Tensor = self._runner.collectives.all_gather(x, self._axis, 0)
        return every[torch.from_numpy(share.places)]
