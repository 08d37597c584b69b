# SPDX-License-Identifier: MIT
"""The requests in flight by their callers' names for them, so that these can abort them."""

import secrets

import attrs

from ..request_stream import RequestStream
from .caller import Caller
from .failure import ApiError

MAX_ID_CHARS = 256


@attrs.define(eq=False)
class Entry:
    """One request in flight and the streams of its choices."""

    key: tuple[str, str]
    is_aborted: bool = False
    _streams: list[RequestStream] = attrs.field(factory=list)

    def add(self, stream: RequestStream) -> None:
        """Note a choice that was submitted; it ends at once if the request was aborted before."""
        self._streams.append(stream)
        if self.is_aborted:
            stream.end()

    def abort(self) -> None:
        """End all choices; idempotent."""
        self.is_aborted = True
        for stream in self._streams:
            stream.end()


@attrs.define
class RequestTable:
    """Requests by caller and id; callers see their own only."""

    _entries: dict[tuple[str, str], Entry] = attrs.field(factory=dict)

    def begin(self, caller: Caller, id: str) -> Entry:
        """Note a request; an empty id gets a name of its own.

        Raises:
            ApiError: the id is too long, or the caller has a request of that id in flight.
        """
        if len(id) > MAX_ID_CHARS:
            raise ApiError(
                400,
                f"request_id has {len(id)} characters; at most {MAX_ID_CHARS} are allowed",
                param="request_id",
                code="invalid_parameter",
            )
        key = (caller.name, id or f"-{secrets.token_hex(8)}")
        if key in self._entries:
            raise ApiError(
                409,
                f"request_id {id[:100]!r} is in flight; wait for its end, or give another",
                param="request_id",
                code="duplicate_request_id",
            )
        self._entries[key] = entry = Entry(key)
        return entry

    def end(self, entry: Entry) -> None:
        """Forget a request that is over."""
        del self._entries[entry.key]

    def abort(self, caller_name: str, ids: set[str] | None) -> int:
        """Abort a caller's requests of these ids, None for all; return how many there were."""
        found = [
            entry
            for (name, id), entry in self._entries.items()
            if name == caller_name and (ids is None or id in ids) and not entry.is_aborted
        ]
        for entry in found:
            entry.abort()
        return len(found)

    def __len__(self) -> int:
        return len(self._entries)
