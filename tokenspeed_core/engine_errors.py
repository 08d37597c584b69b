# SPDX-License-Identifier: MIT
"""How a request or a connection to an engine can fail."""

from .ipc.messages import RefusalCode


class EngineLostError(RuntimeError):
    """The engine or the way to it went away under a request; the request may be sent again."""


class RefusedError(RuntimeError):
    """The scheduler turned the connection away; `code` says why."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(f"the scheduler refused the connection ({code.name}): {message}")
        self.code = code


class RejectedError(ValueError):
    """The scheduler did not admit a request; `code` says why."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def retryable(self) -> bool:
        """The same request may be admitted later."""
        return self.code in (RefusalCode.QUEUE_FULL, RefusalCode.DRAINING)


class RequestFailedError(RuntimeError):
    """One request failed inside the engine; the others run on."""


class StalledReaderError(RuntimeError):
    """A request was aborted because nobody read the tokens that it produced."""


class NoTokenError(RequestFailedError):
    """A request's own grammar and bans left no token that could come next."""


def refusal_code(number: int) -> RefusalCode:
    """Return a code from the wire; one that only a newer scheduler knows is MALFORMED."""
    try:
        return RefusalCode(number)
    except ValueError:
        return RefusalCode.MALFORMED
