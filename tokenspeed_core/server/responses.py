# SPDX-License-Identifier: MIT
"""OpenAI's `/v1/responses`: answers, and what is kept of them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..completion import Completion, TextDelta, Usage
from ..dialect.event import CallArguments, CallBegun, Content, Event, Reasoning, first_call
from ..dialect.reader import DialectReader
from .answer import new_id
from .caller import Caller
from .conversation import Conversation
from .endpoint import Endpoint, Job
from .failure import ApiError
from .response_body import ResponseFields
from .response_store import ResponseStore, Stored
from .writer import Writer, event

_STATUS = {"length": "incomplete", "abort": "cancelled"}


class ResponseEndpoint(Endpoint[ResponseFields]):
    """Responses, whole or streamed."""

    fields = ResponseFields
    prompt_field = "input"

    async def job(self, fields: ResponseFields, caller: Caller) -> Job:
        """Return the rendered conversation and the writer of its answer."""
        fields.check()
        store, items, previous = self.service.responses, fields.items(), None
        if fields.previous_response_id:
            previous = stored_response(store, caller, fields.previous_response_id)
            whole = [*previous.conversation(), *items]
            fields = msgspec.structs.replace(fields, input=whole)
        tools = fields.offered()
        chat = await Conversation.of(
            self.service.llm.codec,
            fields.conversation(),
            fields.rendering(tools),
            tools,
            fields.asked_format(),
        )
        is_stored = fields.store and store.max_items > 0
        writer = ResponseWriter(self.service.model_name, fields, chat.reader, is_stored=is_stored)
        on_end: Callable[[], None] = writer.cut
        if is_stored:
            stored = store.begin(caller, writer.id, items, previous, writer.response)

            def on_end() -> None:
                writer.cut()
                store.end(stored)

        return Job(
            [chat.ids],
            writer,
            table=chat.table,
            grammar=chat.grammar,
            id=writer.id,
            on_end=on_end,
        )


def stored_response(store: ResponseStore, caller: Caller, id: str) -> Stored:
    """Return a stored response.

    Raises:
        ApiError: it is not here: never stored, deleted, pushed out, or another caller's.
    """
    stored = store.find(caller, id)
    if stored is None:
        raise ApiError(
            404,
            f"previous_response_id {id[:100]!r} is not stored; send the whole conversation",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return stored


class ResponseWriter(Writer):
    """Writes a `response` and its events: items that begin, grow and are done one by one."""

    def __init__(
        self,
        model: str,
        fields: ResponseFields,
        new_reader: Callable[[], DialectReader],
        *,
        is_stored: bool,
    ) -> None:
        self._model = model
        self._fields = fields
        self._reader = new_reader()
        self._is_stored = is_stored
        self.id = new_id("resp")
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._is_open = False  # the last item grows
        self._number = -1
        self._status = "in_progress"
        self._usage: Usage | None = None

    def has_answered(self, choice: int) -> bool:
        """A choice's text goes beyond its reasoning."""
        return self._reader.has_answered

    @property
    def called_tools(self) -> bool:
        """The answer ended in a tool call."""
        return self._status == "completed" and self._reader.num_calls > 0

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """Return a `response`."""
        (completion,) = completions
        for _ in self._grow([*self._reader.push(completion.text), *self._reader.finish()]):
            pass  # the events of a stream
        for _ in self._finish(completion):
            pass
        return msgspec.json.encode(self.response())

    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return the events of what is new."""
        if self._number < 0:
            yield self._event("response.created", response=self.response())
            yield self._event("response.in_progress", response=self.response())
        yield from self._grow(self._reader.push(delta.text))
        if delta.finish_reason is not None:
            yield from self._grow(self._reader.finish())
            yield from self._finish(delta)

    def end(self) -> Iterable[bytes]:
        """Return the whole response as the last event."""
        # a client's types know no event of a cancelled response
        kind = "incomplete" if self._status == "cancelled" else self._status
        yield self._event(f"response.{kind}", response=self.response())

    def cut(self) -> None:
        """Note that no more comes; what has not ended by itself was cancelled."""
        if self._status == "in_progress":
            self._status = "cancelled"
            self._is_open = False

    def failed(self, error: ApiError) -> Iterable[bytes]:
        """Return the event of an error."""
        self._status = "failed"
        yield self._event("error", code=error.code, message=error.message, param=error.param)

    def _grow(self, events: Iterable[Event]) -> Iterator[bytes]:
        for each in events if self._fields.parallel_tool_calls else first_call(events):
            match each:
                case Content(text):
                    yield from self._text("message", "output_text", text)
                case Reasoning(text):
                    yield from self._text("reasoning", "reasoning_text", text)
                case CallBegun(_, name):
                    call = {"call_id": new_id("call"), "name": name, "arguments": ""}
                    yield from self._open({"type": "function_call", "id": new_id("fc"), **call})
                case CallArguments(_, text):
                    self._items[-1]["arguments"] += text
                    kind = "response.function_call_arguments.delta"
                    yield self._event(kind, **self._place(), delta=text)

    def _text(self, item: str, part: str, text: str) -> Iterator[bytes]:
        if not self._is_open or self._items[-1]["type"] != item:
            begun: dict[str, Any] = {"type": item, "id": new_id(item[:3]), "content": []}
            own: dict[str, Any] = {"summary": []} if item == "reasoning" else {"role": "assistant"}
            begun |= own
            yield from self._open(begun)
            more: dict[str, Any] = {"annotations": []} if item == "message" else {}
            empty: dict[str, Any] = {"type": part, "text": "", **more}
            kind = "response.content_part.added"
            yield self._event(kind, **self._place(), content_index=0, part=empty)
            self._items[-1]["content"] = [empty]
        content = self._items[-1]["content"][0]
        content["text"] += text
        told: dict[str, Any] = {"logprobs": []} if item == "message" else {}
        yield self._event(
            f"response.{part}.delta", **self._place(), content_index=0, delta=text, **told
        )

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close("completed")
        self._is_open = True
        self._items.append(item | {"status": "in_progress"})
        yield self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1]
        )

    def _close(self, status: str) -> Iterator[bytes]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._place(), **done)
        else:
            part = item["content"][0]
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            kind = f"response.{part['type']}.done"
            yield self._event(kind, **self._place(), content_index=0, text=part["text"], **more)
            kind = "response.content_part.done"
            yield self._event(kind, **self._place(), content_index=0, part=part)
        kind = "response.output_item.done"
        yield self._event(kind, output_index=len(self._items) - 1, item=item)

    def _finish(self, ended: Completion | TextDelta) -> Iterator[bytes]:
        self._status = _STATUS.get(ended.finish_reason or "", "completed")
        self._usage = ended.usage
        yield from self._close(self._status)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def response(self) -> dict[str, Any]:
        """Return the response as it stands."""
        is_cut = self._status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": self._fields.instructions or None,
            "max_output_tokens": self._fields.max_output_tokens,
            "model": self._model,
            "output": self._items,
            "parallel_tool_calls": self._fields.parallel_tool_calls,
            "previous_response_id": self._fields.previous_response_id or None,
            "store": self._is_stored,
            "temperature": self._fields.temperature,
            "tool_choice": self._fields.tool_choice,
            "tools": self._fields.tools,
            "top_p": self._fields.top_p,
            "usage": _usage(self._usage) if self._usage is not None else None,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
