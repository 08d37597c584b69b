# SPDX-License-Identifier: MIT
"""Lets tests of this folder import what is beside them, run another build, and start workers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenspeed_core.scheduler import process

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scheduler", type=Path, help="the tokenspeed-scheduler to test")
    parser.addoption("--events", type=int, help="how long the loop's soak is")


def pytest_configure(config: pytest.Config) -> None:
    executable = config.getoption("--scheduler", default=None)
    if executable is not None:
        process.find_executable = lambda: executable.resolve()


@pytest.fixture
def workers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Worker processes that end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for worker in started:
        worker.kill()
        worker.wait()
