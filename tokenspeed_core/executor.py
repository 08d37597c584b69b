# SPDX-License-Identifier: MIT
"""Step plans carried out on a runner: at once on a CPU, queued on a GPU."""

from typing import Protocol

from .grammar.library import Library
from .ipc.messages import StepPlan
from .runner import Runner
from .sampled import Sampled
from .transfers import Transfers


class Executor(Protocol):
    """Carries out the plans of one epoch, in order."""

    def launch(self, plan: StepPlan) -> Sampled:
        """Start a step; it may run behind earlier ones.

        Raises:
            PlanError: the plan contradicts what the slots hold.
        """
        ...


class HostExecutor:
    """Runs a step to its end before `launch` returns."""

    def __init__(
        self, runner: Runner, transfers: Transfers | None = None, library: Library | None = None
    ) -> None:
        self._runner = runner
        self._transfers = transfers
        self._slots = runner.new_slots(library)

    def launch(self, plan: StepPlan) -> Sampled:
        """Run a step."""
        step = self._slots.prepare(plan)
        if self._transfers is not None:
            self._transfers.start(plan)
        sampled = self._runner.run(step, self._transfers)
        self._slots.record(step, sampled.tokens)
        step.shapers.follow(sampled)
        return sampled
