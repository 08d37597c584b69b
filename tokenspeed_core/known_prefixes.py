# SPDX-License-Identifier: MIT
"""Bytes seen before, for those that begin like them: what is known of the beginning holds."""

from typing import Generic, TypeVar

import attrs

_PROBE = 64  # bytes in front of an end; most strings differ there from others that are as long

Value = TypeVar("Value")


@attrs.frozen(eq=False)
class Known(Generic[Value]):
    """The first `size` of some bytes, and what is known of them."""

    data: bytes
    size: int
    value: Value
    end: bytes  # of the first `size` ...
    end_at: int  # ... and where it begins


class KnownPrefixes(Generic[Value]):
    """Beginnings that are remembered, until they are dropped."""

    def __init__(self) -> None:
        self._known: dict[Known[Value], None] = {}  # the least recently added first
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def longest(self, data: bytes) -> Known[Value] | None:
        """Return the longest of those that `data` begins with; it costs a look at that."""
        likely = [known for known in self._known if data.startswith(known.end, known.end_at)]
        for known in sorted(likely, key=lambda known: -known.size):
            if data.startswith(memoryview(known.data)[: known.size]):  # slices of bytes are copies
                return known
        return None

    def add(self, data: bytes, size: int, value: Value) -> None:
        """Remember what is known of the first `size` bytes."""
        end_at = max(0, size - _PROBE)
        self._known[Known(data, size, value, data[end_at:size], end_at)] = None
        self.num_bytes += len(data)

    def drop(self, known: Known[Value]) -> None:
        """Forget one of those here."""
        del self._known[known]
        self.num_bytes -= len(known.data)

    @property
    def oldest(self) -> Known[Value]:
        """The one that was added first.  Raises StopIteration if there is none."""
        return next(iter(self._known))
