# SPDX-License-Identifier: MIT
"""`POST /abort`: a caller ends requests of its own by their ids."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .caller import Caller
from .endpoint import Route, Service
from .failure import ApiError
from .request_body import parse, read_body
from .request_record import Arrival
from .siblings import Siblings

MAX_IDS = 1024


class AbortFields(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /abort`; `rid` is SGLang's name of `request_id`."""

    request_id: str = ""
    request_ids: list[str] = []
    rid: str = ""
    abort_all: bool = False  # all of this caller

    def ids(self) -> set[str] | None:
        """Return the ids to abort, None for all.

        Raises:
            ApiError: none is named, or too many are.
        """
        if self.abort_all:
            return None
        ids = {*self.request_ids, self.request_id, self.rid} - {""}
        if not 1 <= len(ids) <= MAX_IDS:
            what = f"names {len(ids)} requests; 1 to {MAX_IDS}, or abort_all, are needed"
            raise ApiError(400, f"request_id {what}", param="request_id", code="invalid_parameter")
        return ids


class Abort(Route):
    """Idempotent: what is unknown, over or another caller's is none of the requests aborted."""

    fields = AbortFields
    prompt_field = "request_id"

    def __init__(self, service: Service, siblings: Siblings | None = None) -> None:
        super().__init__(service)
        self._siblings = siblings

    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Abort, in all API processes, and tell how many requests it were."""
        fields = parse(await read_body(request), AbortFields, self.service.metrics.ignored)
        ids, caller = fields.ids(), Caller.of(request).name
        count = self.service.requests.abort(caller, ids)
        if self._siblings is not None:
            count += await self._siblings.abort(caller, ids)
        return Response(msgspec.json.encode({"aborted": count}), media_type="application/json")


class SiblingAbort(msgspec.Struct, frozen=True):
    """What one API process tells another: abort these requests of a caller."""

    caller: str
    ids: set[str] | None
