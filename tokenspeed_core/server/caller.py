# SPDX-License-Identifier: MIT
"""Who sent a request, and what of the engine's names is theirs."""

import hashlib

import attrs
from starlette.requests import Request
from starlette.types import Scope

from ..session import MAX_NAME_CHARS, Session

_SCOPE_KEY = "tokenspeed.caller"


@attrs.frozen
class Caller:
    """The holder of the request's API key; nameless where a server asks for none.

    Names of sessions and requests are the caller's own: no other can use, end or read them.  With
    `has_own_cache` callers share no cached prefix either.
    """

    name: str = ""
    has_own_cache: bool = False

    @classmethod
    def of(cls, request: Request) -> "Caller":
        """Return who sent a request that came through the gate."""
        caller: Caller = request.scope.get(_SCOPE_KEY, cls())
        return caller

    def enter(self, scope: Scope) -> None:
        """Note in an ASGI scope that the request is this caller's."""
        scope[_SCOPE_KEY] = self

    def owned(self, session: Session) -> Session:
        """Return the session under a name, and perhaps a salt, that no other caller can give."""
        if not self.name:
            return session
        salt = self._scoped(session.salt) if self.has_own_cache else session.salt
        return attrs.evolve(
            session, name=self._scoped(session.name) if session.name else "", salt=salt
        )

    def _scoped(self, name: str) -> str:
        # a holder's name has no slash, so the first one ends it
        scoped = f"{self.name}/{name}"
        if len(scoped) <= MAX_NAME_CHARS:
            return scoped
        return f"{self.name}/{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()}"
