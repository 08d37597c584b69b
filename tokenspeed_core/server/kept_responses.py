# SPDX-License-Identifier: MIT
"""What callers ask of stored responses, whichever API process stores them."""

from typing import Literal

import msgspec

from .caller import Caller
from .endpoint import Service
from .failure import ApiError
from .response_store import Stored
from .siblings import Siblings

Verb = Literal["read", "delete", "cancel", "input_items", "conversation"]


class ResponseQuery(msgspec.Struct, frozen=True):
    """What one API process asks another about a response that it stores."""

    caller: str
    id: str
    verb: Verb


class KeptResponses:
    """Answers from this process's store, or asks the process whose number is in the id."""

    def __init__(self, service: Service, siblings: Siblings | None) -> None:
        self._service = service
        self._siblings = siblings

    async def ask(self, caller: Caller, id: str, verb: Verb) -> bytes | None:
        """Return the JSON that a verb gives, None if there is no such response of this caller."""
        query = ResponseQuery(caller.name, id, verb)
        owner = _owner(id)
        if self._siblings is None or owner is None or owner == self._service.index:
            return self.told(query)
        return await self._siblings.ask_one(owner, "/responses", msgspec.json.encode(query))

    async def previous(self, caller: Caller, id: str) -> Stored:
        """Return a response that is continued; one of another process holds its conversation.

        Raises:
            ApiError: it is not here: never stored, deleted, pushed out, or another caller's.
        """
        stored = self._service.responses.find(caller, id)
        if stored is not None:
            return stored
        items = await self.ask(caller, id, "conversation")
        if items is not None:
            return Stored.elsewhere(caller, id, msgspec.json.decode(items))
        raise ApiError(
            404,
            f"previous_response_id {id[:100]!r} is not stored; send the whole conversation",
            param="previous_response_id",
            code="previous_response_not_found",
        )

    def told(self, query: ResponseQuery) -> bytes | None:
        """Answer from this process's store."""
        store, caller = self._service.responses, Caller(query.caller)
        stored = store.find(caller, query.id)
        if stored is None:
            return None
        document: object
        match query.verb:
            case "read":
                document = stored.tell()
            case "delete":
                store.delete(caller, query.id)
                document = {"id": query.id, "object": "response", "deleted": True}
            case "cancel":
                document = stored.tell()
                if stored.is_running:
                    self._service.requests.abort(caller.name, {stored.request_id})
                    document = stored.tell() | {"status": "cancelled"}
            case "input_items":
                document = {"object": "list", "data": list(stored.items), "has_more": False}
            case "conversation":
                document = stored.conversation()
        return msgspec.json.encode(document)


def _owner(id: str) -> int | None:
    """Return the number of the API process that gave a response its id."""
    number = id.removeprefix("resp-").partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 4 else None
