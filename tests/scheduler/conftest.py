# SPDX-License-Identifier: MIT
"""Lets the tests of this folder import the modules beside them, and run another build."""

import sys
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
