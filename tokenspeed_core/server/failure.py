# SPDX-License-Identifier: MIT
"""What a client is told when a request fails: OpenAI's error object with the right status."""

import msgspec
from starlette.responses import Response

from ..async_llm import PromptError
from ..chat_template import ChatTemplateError
from ..grammar.compiler import CompilerLostError
from ..grammar.grammar import GrammarBusyError, GrammarError
from ..ipc.messages import RefusalCode
from ..pooling import EmbeddingError
from ..sampling_params import SamplingError
from ..sdk import (
    EngineLostError,
    NoTokenError,
    RefusedError,
    RejectedError,
    RequestFailedError,
    StalledReaderError,
)
from ..session import SessionError
from ..urgency import UrgencyError

RETRY_AFTER_S = 1

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "overloaded_error",
    431: "invalid_request_error",
    500: "internal_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """A failure that a client may see; `param` names the request field at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """Return the JSON of OpenAI's error object."""
        return msgspec.json.encode(
            {
                "type": "error",  # where Anthropic's clients look
                "error": {
                    "message": self.message,
                    "type": _TYPES[self.status],
                    "param": self.param,
                    "code": self.code,
                },
            }
        )

    def response(self) -> Response:
        """Return the error as an HTTP response; retryable ones say when."""
        headers = None
        if self.status in (429, 503):
            headers = {"retry-after": str(RETRY_AFTER_S)}
        elif self.status == 401:
            headers = {"www-authenticate": "Bearer"}
        return Response(self.body(), self.status, headers, "application/json")


_REJECTED = {
    RefusalCode.QUEUE_FULL: (429, "overloaded"),
    RefusalCode.DRAINING: (503, "draining"),
    RefusalCode.EMPTY_PROMPT: (400, "empty_prompt"),
    RefusalCode.TOO_LONG: (400, "context_length_exceeded"),
    RefusalCode.TOKEN_ID: (400, "invalid_token_id"),
    RefusalCode.PARAMETER: (400, "invalid_parameter"),
    RefusalCode.NEVER_FITS: (400, "never_fits"),
}


def api_error(error: Exception, prompt_field: str) -> ApiError | None:
    """Return what to tell the client, None for what is our own bug.

    `prompt_field` is the request field that carries the prompt: "prompt" or "messages".
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SamplingError):
        return ApiError(400, str(error), param=error.parameter, code="invalid_parameter")
    if isinstance(error, SessionError | UrgencyError):
        return ApiError(400, str(error), param=error.field, code="invalid_parameter")
    if isinstance(error, EmbeddingError):
        return ApiError(400, str(error), param=error.field, code=error.code)
    if isinstance(error, PromptError):
        return ApiError(400, str(error), param=prompt_field, code=error.code)
    if isinstance(error, ChatTemplateError):
        return ApiError(400, str(error), param="messages", code="invalid_messages")
    if isinstance(error, RejectedError):
        status, code = _REJECTED.get(error.code, (500, error.code.name.lower()))
        return ApiError(
            status, str(error), param=prompt_field if status == 400 else None, code=code
        )
    if isinstance(error, EngineLostError | RefusedError):
        return ApiError(503, str(error), code="engine_lost")
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param=error.field, code="invalid_grammar")
    if isinstance(error, GrammarBusyError):
        return ApiError(429, str(error), code="overloaded")
    if isinstance(error, CompilerLostError):
        return ApiError(503, str(error), code="compiler_lost")
    if isinstance(error, NoTokenError):
        return ApiError(400, str(error), code="no_token_allowed")
    if isinstance(error, RequestFailedError):
        return ApiError(500, str(error), code="request_failed")
    if isinstance(error, StalledReaderError):
        return ApiError(408, str(error), code="stalled_reader")
    return None
