# SPDX-License-Identifier: MIT
"""A Prometheus counter whose label values cannot grow without bound."""

from prometheus_client import Counter

MAX_SERIES = 100
MAX_VALUE_CHARS = 128
OTHER = "other"


class CappedCounter:
    """A counter of one model; label values beyond the first `most` sets are told as "other"."""

    def __init__(self, counter: Counter, model: str, most: int = MAX_SERIES) -> None:
        self._counter = counter
        self._model = model
        self._most = most
        self._seen: set[tuple[str, ...]] = set()

    def add(self, amount: float, *values: str) -> None:
        """Count under these label values."""
        values = tuple(value[:MAX_VALUE_CHARS] for value in values)
        if values not in self._seen:
            if len(self._seen) < self._most:
                self._seen.add(values)
            else:
                values = (OTHER,) * len(values)
        self._counter.labels(self._model, *values).inc(amount)
