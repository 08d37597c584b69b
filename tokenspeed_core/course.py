# SPDX-License-Identifier: MIT
"""A request's way through the engine: when it was sent, how long it waited, where it ran."""

import attrs


@attrs.frozen
class Course:
    """Where a request stands; times are of `time.monotonic`, steps are those of its epoch."""

    submitted: float
    queued_s: float | None = None  # until it had a slot; None: not known yet
    first_step: int = 0  # that could have a row of it; 0: not known yet
    last_step: int = 0  # that brought a token
