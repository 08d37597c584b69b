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

    def begins(self, data: bytes) -> bool:
        """Whether `data` begins with these bytes."""
        prefix, end = memoryview(self.data)[: self.size], max(0, self.size - _PROBE)
        # Accepts any buffer, whatever its stub says; a slice of bytes would be a copy.
        return data.startswith(prefix[end:], end) and data.startswith(prefix)


class KnownPrefixes(Generic[Value]):
    """Beginnings that are remembered, until they are dropped."""

    def __init__(self) -> None:
        self._known: dict[Known[Value], None] = {}  # the least recently added first
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def longest(self, data: bytes) -> Known[Value] | None:
        """Return the longest of those that `data` begins with; it costs a look at that."""
        found = [known for known in self._known if known.begins(data)]
        return max(found, key=lambda known: known.size, default=None)

    def add(self, data: bytes, size: int, value: Value) -> None:
        """Remember what is known of the first `size` bytes."""
        self._known[Known(data, size, value)] = None
        self.num_bytes += len(data)

    def drop(self, known: Known[Value]) -> None:
        """Forget one of those here."""
        del self._known[known]
        self.num_bytes -= len(known.data)

    @property
    def oldest(self) -> Known[Value]:
        """The one that was added first.  Raises StopIteration if there is none."""
        return next(iter(self._known))
