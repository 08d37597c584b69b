# SPDX-License-Identifier: MIT
"""To which conversation a request belongs, and what is known about that conversation's future."""

import attrs

from .ipc.messages import SessionAction

MAX_NAME_CHARS = 512
MAX_HOLD_MS = 24 * 3600 * 1000  # the scheduler holds nothing longer


class SessionError(ValueError):
    """A session's name, salt or hint that cannot be sent; `field` is the one that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


def _held(milliseconds: int) -> int:
    """Return a time that fits the wire: what is longer means a day."""
    return min(milliseconds, MAX_HOLD_MS)


@attrs.frozen
class Hint:
    """What a client knows: an action that holds for `ttl_ms`, 0 for until the next request."""

    action: SessionAction
    ttl_ms: int = attrs.field(default=0, converter=_held)

    def __attrs_post_init__(self) -> None:
        if self.ttl_ms < 0:
            raise SessionError("ttl_ms", f"is {self.ttl_ms}; give 0 or more milliseconds")


@attrs.frozen
class Session:
    """A conversation: its name within a cache salt; the empty name lets the engine recognise it.

    Requests of one salt share cached prefixes, those of different salts never do.
    `retain_ms` asks to keep the request's blocks that long after it ends; `hints` go with it.
    """

    name: str = ""
    salt: str = ""
    retain_ms: int = attrs.field(default=0, converter=_held)
    hints: tuple[Hint, ...] = ()

    def __attrs_post_init__(self) -> None:
        for field, text in (("session_id", self.name), ("cache_salt", self.salt)):
            if len(text) > MAX_NAME_CHARS:
                raise SessionError(
                    field, f"has {len(text)} characters; at most {MAX_NAME_CHARS} are allowed"
                )
        if self.retain_ms < 0:
            raise SessionError("retain_ms", f"is {self.retain_ms}; give 0 or more milliseconds")
