# SPDX-License-Identifier: MIT
"""The scheduler process and, for tests and notebooks, its core as a module."""

from .process import (
    SchedulerEndpointError,
    SchedulerNotFoundError,
    SchedulerProcess,
    find_executable,
    find_libzmq,
)

__all__ = [
    "SchedulerEndpointError",
    "SchedulerNotFoundError",
    "SchedulerProcess",
    "find_executable",
    "find_libzmq",
]
