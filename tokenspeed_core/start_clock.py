# SPDX-License-Identifier: MIT
"""What a process spends its start on."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Log how long a stage of the start took."""
    started = time.monotonic()
    yield
    _log.info("start: %s took %.1f s", stage, time.monotonic() - started)
