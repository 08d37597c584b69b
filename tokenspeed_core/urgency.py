# SPDX-License-Identifier: MIT
"""How urgent a request is beside others."""

import attrs

MAX_PRIORITY = 100
MAX_DEADLINE_MS = 24 * 3600 * 1000


class UrgencyError(ValueError):
    """A priority or a deadline that cannot be sent; `field` is the one that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


@attrs.frozen
class Urgency:
    """When a request should run: a larger priority earlier; waiting requests age upwards.

    `deadline_ms` is when the first token is wanted, counted from arrival; 0 is no deadline.  One
    that can still be met goes before others of its priority, and starves nobody.
    """

    priority: int = 0
    deadline_ms: int = 0

    def __attrs_post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise UrgencyError(
                "priority", f"is {self.priority}; give {-MAX_PRIORITY} to {MAX_PRIORITY}"
            )
        if not 0 <= self.deadline_ms <= MAX_DEADLINE_MS:
            raise UrgencyError(
                "deadline_ms", f"is {self.deadline_ms}; give 0 (none) to {MAX_DEADLINE_MS}, a day"
            )
