# SPDX-License-Identifier: MIT
"""A request's way through the engine: when it was sent, how long it waited, where it ran."""

import attrs

from .ipc.messages import TokenDeltas

MAX_STEPS = 256


@attrs.frozen
class StepTime:
    """When a worker had a step's plan and its tokens, of `time.monotonic_ns`."""

    step: int
    began_ns: int
    ended_ns: int


@attrs.frozen
class Course:
    """Where a request stands; times are of `time.monotonic`, steps are those of its epoch."""

    submitted: float
    queued_s: float | None = None  # until it had a slot; None: not known yet
    first_step: int = 0  # that could have a row of it; 0: not known yet
    last_step: int = 0  # that brought a token
    # Of the first steps that brought one; all courses of a request share the list.
    steps: list[StepTime] = attrs.field(factory=list, repr=False, eq=False)


def step_time(deltas: TokenDeltas) -> StepTime | None:
    """Return when the worker ran the step that deltas are of, None if it did not tell."""
    if not deltas.step_ended_ns:
        return None
    return StepTime(deltas.step, deltas.step_began_ns, deltas.step_ended_ns)
