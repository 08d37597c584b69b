# SPDX-License-Identifier: MIT
"""A plug-in of pytest by which an option has no effect: `-p tests.frontend.ignored_option`."""

import pytest

from tokenspeed_core.config import FIELDS, EngineConfig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ignored", required=True, choices=FIELDS, help="has its default always")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--ignored")
    check = EngineConfig.__attrs_post_init__

    def ignoring(self: EngineConfig) -> None:
        object.__setattr__(self, name, FIELDS[name].default)
        check(self)

    EngineConfig.__attrs_post_init__ = ignoring  # type: ignore[method-assign]
