# SPDX-License-Identifier: MIT
"""OpenAI's `/v1/responses`: answers, and what is kept of them."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..completion import Completion, TextDelta, Usage
from ..detokenizer import TokenText
from ..dialect.event import CallArguments, CallBegun, Content, Event, Reasoning, first_call
from ..dialect.reader import DialectReader
from .answer import TokenLogprob, new_id
from .caller import Caller
from .conversation import Conversation, effort_budget
from .endpoint import Endpoint, Job, Service
from .failure import ApiError, api_error
from .kept_responses import KeptResponses
from .logprobs import chat_logprobs
from .response_body import ResponseFields
from .response_store import Stored
from .token_trail import TokenTrail
from .writer import Writer, event

_STATUS = {"length": "incomplete", "abort": "cancelled"}


class ResponseEndpoint(Endpoint[ResponseFields]):
    """Responses, whole or streamed."""

    fields = ResponseFields
    prompt_field = "input"

    def __init__(self, service: Service, kept: KeptResponses) -> None:
        super().__init__(service)
        self._kept = kept

    async def job(self, fields: ResponseFields, caller: Caller) -> Job:
        """Return the rendered conversation and the writer of its answer."""
        store, items, previous = self.service.responses, fields.items(), None
        is_stored = fields.store and store.max_items > 0
        fields.check(is_stored=is_stored)
        if fields.previous_response_id:
            previous = await self._kept.previous(caller, fields.previous_response_id)
            whole = [*previous.conversation(), *items]
            fields = msgspec.structs.replace(fields, input=whole)
        tools = fields.offered()
        chat = await Conversation.of(
            self.service.llm.codec,
            fields.conversation(),
            fields.rendering(tools),
            tools,
            fields.asked_format(),
            effort_budget(fields.reasoning.effort, self.service.llm.codec, "reasoning"),
        )
        writer = ResponseWriter(
            self.service.model_name,
            fields,
            chat.reader,
            self.service.llm.codec.table,
            new_id(f"resp-{self.service.index}"),
            is_stored=is_stored,
        )
        stored: Stored | None = None
        if is_stored:
            name = fields.request_id or fields.rid
            stored = store.begin(caller, writer.id, items, previous, writer.response, name)

        def told_failure(failure: Exception) -> ApiError:
            ours = ApiError(500, "internal error; the server's log has the details")
            return api_error(failure, self.prompt_field) or ours

        def on_end(failure: Exception | None) -> None:
            writer.cut(None if failure is None else told_failure(failure))
            if stored is not None:
                store.end(stored)

        return Job(
            [chat.ids],
            writer,
            table=chat.table,
            grammar=chat.grammar,
            id=writer.id,
            on_end=on_end,
            in_background=writer.document if fields.background else None,
        )


class ResponseWriter(Writer):
    """Writes a `response` and its events: items that begin, grow and are done one by one."""

    def __init__(
        self,
        model: str,
        fields: ResponseFields,
        new_reader: Callable[[], DialectReader],
        table: TokenText,
        id: str,
        *,
        is_stored: bool,
    ) -> None:
        self._model = model
        self._fields = fields
        self._reader = new_reader()
        self._is_stored = is_stored
        self._table = table
        self._trail: TokenTrail[TokenLogprob | None] = TokenTrail()
        self._reasoning_tokens = 0
        self._error: ApiError | None = None
        self.id = id
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._is_open = False  # the last item grows
        self._number = -1
        self._status = "queued" if fields.background else "in_progress"
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
        for delta in completion.deltas:
            for _ in self.push(0, delta):
                pass  # the events of a stream
        return self.document()

    def _follow(self, text: str, told: Sequence[TokenLogprob]) -> None:
        """Take a delta's tokens one by one, however many came at once, if they spell its text."""
        if "".join(each.token for each in told) == text:
            for each in told:
                self._trail.push(each.token, [each])
        else:
            self._trail.push(text, list(told))

    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return the events of what is new."""
        if self._number < 0:
            self._status = "in_progress"
            yield self._event("response.created", response=self.response())
            yield self._event("response.in_progress", response=self.response())
        if self._fields.wants_logprobs:
            self._follow(delta.text, chat_logprobs(delta, self._table).content)
        else:
            self._trail.push(delta.text, [None] * len(delta.token_ids))
        yield from self._grow(self._reader.push(delta.text))
        if delta.finish_reason is not None:
            yield from self._grow(self._reader.finish())
            yield from self._finish(delta)

    def end(self) -> Iterable[bytes]:
        """Return the whole response as the last event."""
        # a client's types know no event of a cancelled response
        kind = "incomplete" if self._status == "cancelled" else self._status
        yield self._event(f"response.{kind}", response=self.response())

    def cut(self, failure: ApiError | None) -> None:
        """Note that no more comes; what has not ended by itself has failed or was cancelled."""
        if self._status in ("queued", "in_progress"):
            self._status = "cancelled" if failure is None else "failed"
            self._error = failure
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
            more |= {"logprobs": []} if item == "message" and self._fields.wants_logprobs else {}
            empty: dict[str, Any] = {"type": part, "text": "", **more}
            kind = "response.content_part.added"
            yield self._event(kind, **self._place(), content_index=0, part=empty)
            self._items[-1]["content"] = [empty]
        content = self._items[-1]["content"][0]
        content["text"] += text
        tokens = self._trail.take(text)
        told: dict[str, Any] = {}
        if item == "message":
            told["logprobs"] = [each for each in tokens if each is not None]
            if self._fields.wants_logprobs:
                content["logprobs"] += told["logprobs"]
        else:
            self._reasoning_tokens += len(tokens)
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
            more: dict[str, Any] = {}
            if item["type"] == "message":
                more["logprobs"] = part.get("logprobs", [])
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

    def document(self) -> bytes:
        """Return the response as it stands, as JSON."""
        return msgspec.json.encode(self.response())

    def response(self) -> dict[str, Any]:
        """Return the response as it stands."""
        is_cut = self._status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None if self._error is None else _told_error(self._error),
            "background": self._fields.background,
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
            "top_logprobs": self._fields.top_logprobs,
            "top_p": self._fields.top_p,
            "usage": _usage(self._usage, self._reasoning_tokens)
            if self._usage is not None
            else None,
        }


def _told_error(error: ApiError) -> dict[str, Any]:
    """Return a failure under one of the codes that OpenAI's clients know."""
    known = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
    return {"code": known.get(error.status, "server_error"), "message": error.message}


def _usage(usage: Usage, reasoning: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.total_tokens,
    }
