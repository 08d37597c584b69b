# SPDX-License-Identifier: MIT
"""Bytes seen before, for those that begin like them: what is known of the beginning holds."""

from typing import Generic, TypeVar

import attrs

_PROBE = 64  # bytes in front of an end; most strings differ there from others that are as long

Value = TypeVar("Value")


@attrs.frozen(eq=False)
class Known(Generic[Value]):
    """Some bytes, and what is known of them."""

    prefix: bytes
    value: Value
    _tail: bytes = attrs.field(init=False)
    _tail_at: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_tail", self.prefix[-_PROBE:])
        object.__setattr__(self, "_tail_at", len(self.prefix) - len(self._tail))

    def begins(self, data: bytes) -> bool:
        """Whether `data` begins with these bytes."""
        return data.startswith(self._tail, self._tail_at) and data.startswith(self.prefix)


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
        return max(found, key=lambda known: len(known.prefix), default=None)

    def add(self, prefix: bytes, value: Value) -> None:
        """Remember what is known of `prefix`."""
        self._known[Known(prefix, value)] = None
        self.num_bytes += len(prefix)

    def drop(self, known: Known[Value]) -> None:
        """Forget one of those here."""
        del self._known[known]
        self.num_bytes -= len(known.prefix)

    @property
    def oldest(self) -> Known[Value]:
        """The one that was added first.  Raises StopIteration if there is none."""
        return next(iter(self._known))
