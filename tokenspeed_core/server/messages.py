# SPDX-License-Identifier: MIT
"""Anthropic's `POST /v1/messages`: what Claude Code and its like speak."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..completion import Completion, TextDelta, Usage
from ..dialect.event import (
    Answer,
    CallArguments,
    CallBegun,
    Content,
    Event,
    Reasoning,
    first_call,
)
from ..dialect.reader import DialectReader
from .answer import new_id
from .caller import Caller
from .conversation import Conversation
from .endpoint import Endpoint, Job
from .failure import ApiError
from .message_body import MessageFields
from .writer import Writer, event


class MessageEndpoint(Endpoint[MessageFields]):
    """Messages, whole or streamed."""

    fields = MessageFields
    prompt_field = "messages"

    async def job(self, fields: MessageFields, caller: Caller) -> Job:
        """Return the rendered conversation and the writer of its answer."""
        fields.refuse("n", "stop", "return_token_ids", "stream_options")
        tools = fields.offered()
        chat = await Conversation.of(
            self.service.llm.codec,
            fields.conversation(),
            fields.rendering(tools),
            tools,
            fields.asked_format(),
            fields.thinking_tokens(),
        )
        one_call = fields.tool_choice.disable_parallel_tool_use
        writer = MessageWriter(self.service.model_name, chat.reader, one_call=one_call)
        return Job([chat.ids], writer, table=chat.table, grammar=chat.grammar)


class MessageWriter(Writer):
    """Writes a `message` and its events: blocks that begin, grow and stop one after the other."""

    def __init__(
        self, model: str, new_reader: Callable[[], DialectReader], *, one_call: bool
    ) -> None:
        self._model = model
        self._reader = new_reader()
        self._one_call = one_call
        self._id = "msg_" + new_id("").removeprefix("-")
        self._block: str | int | None = None  # kind of the open one; of a call its number
        self._index = -1
        self._has_begun = False
        self._last: dict[str, Any] = {}

    def has_answered(self, choice: int) -> bool:
        """A choice's text goes beyond its reasoning."""
        return self._reader.has_answered

    @property
    def called_tools(self) -> bool:
        """The answer ended in a tool call."""
        return bool(self._last) and self._last["delta"]["stop_reason"] == "tool_use"

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """Return a `message`."""
        (completion,) = completions
        events = [*self._reader.push(completion.text), *self._reader.finish()]
        answer = Answer.of(self._wanted(events))
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.content:
            content.append({"type": "text", "text": answer.content})
        for call in answer.calls:
            content.append(_tool_use(call.name, _object(call.arguments)))
        self._finish(completion)
        message = self._message(content, completion.usage) | self._last["delta"]
        return msgspec.json.encode(message)

    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return the events of what is new."""
        if not self._has_begun:
            self._has_begun = True
            begun = self._message([], delta.usage)
            yield event({"type": "message_start", "message": begun}, "message_start")
        events = self._reader.push(delta.text)
        if delta.finish_reason is not None:
            events += self._reader.finish()
        for each in self._wanted(events):
            yield from self._grow(each)
        if delta.finish_reason is not None:
            yield from self._stop_block()
            self._finish(delta)

    def end(self) -> Iterable[bytes]:
        """Return why the message ended and what it cost."""
        yield event(self._last, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")

    def failed(self, error: ApiError) -> Iterable[bytes]:
        """Return Anthropic's error event."""
        return (b"event: error\ndata: " + error.body() + b"\n\n",)

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _wanted(self, events: Iterable[Event]) -> Iterable[Event]:
        return first_call(events) if self._one_call else events

    def _grow(self, new: Event) -> Iterator[bytes]:
        match new:
            case Content(text):
                yield from self._open("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case Reasoning(text):
                thinking = {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._open("thinking", thinking)
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case CallBegun(index, name):
                yield from self._open(index, _tool_use(name, {}))
            case CallArguments(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _open(self, block: str | int, content: dict[str, Any]) -> Iterator[bytes]:
        if self._block == block:
            return
        yield from self._stop_block()
        self._block = block
        self._index += 1
        start = {"type": "content_block_start", "index": self._index, "content_block": content}
        yield event(start, "content_block_start")

    def _stop_block(self) -> Iterator[bytes]:
        if self._block is not None:
            self._block = None
            stop = {"type": "content_block_stop", "index": self._index}
            yield event(stop, "content_block_stop")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        grown = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return event(grown, "content_block_delta")

    def _finish(self, ended: Completion | TextDelta) -> None:
        stop = ended.stop_reason if isinstance(ended.stop_reason, str) else None
        if ended.finish_reason == "length":
            reason = "max_tokens"
        elif stop is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if self._reader.num_calls else "end_turn"
        self._last = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": _usage(ended.usage),
        }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _tool_use(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    id = "toolu_" + new_id("").removeprefix("-")
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def _object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; what is no JSON object is kept as text."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": arguments}
