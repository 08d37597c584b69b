# SPDX-License-Identifier: MIT
"""What a worker raises when the scheduler and it have lost step."""


class PlanError(RuntimeError):
    """A step plan contradicts what the worker knows."""
