# SPDX-License-Identifier: MIT
"""How long a GPU has nothing to do between the end of one step and the start of the next."""

from collections import deque
from collections.abc import Sequence

import torch

from .executor import Executor
from .ipc.messages import StepPlan
from .sampled import Sampled

_LOOK = 64  # steps that may be queued before ended ones are looked for
_MOST = 1 << 20  # gaps that are kept


class DeviceGaps:
    """An executor that also times, on the device, the gaps between the steps of another."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._steps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._gaps: deque[float] = deque(maxlen=_MOST)

    def launch(self, plan: StepPlan) -> Sampled:
        """Queue a step between two events of the current stream."""
        started = _event()
        sampled = self._executor.launch(plan)
        self._steps.append((started, _event()))
        if len(self._steps) > _LOOK:
            self._settle()
        return sampled

    def taken(self) -> list[float]:
        """Return the gaps since the last call, in microseconds; steps still running have none."""
        self._settle()
        found = list(self._gaps)
        self._gaps.clear()
        return found

    def _settle(self) -> None:
        steps = self._steps
        while len(steps) > 1 and steps[1][0].query():  # type: ignore[no-untyped-call]
            _, ended = steps.popleft()
            self._gaps.append(ended.elapsed_time(steps[0][0]) * 1e3)


def summary(gaps: Sequence[float]) -> str:
    """Return the number of gaps and their percentiles in words."""
    if not gaps:
        return "no gaps"
    ranked = sorted(gaps)
    at = {
        part: ranked[min(len(ranked) - 1, int(len(ranked) * part / 100))] for part in (50, 90, 99)
    }
    parts = ", ".join(f"p{part} {value:.1f}" for part, value in at.items())
    return f"{len(ranked)} gaps: {parts}, most {ranked[-1]:.1f} us"


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
