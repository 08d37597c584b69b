# SPDX-License-Identifier: MIT
"""`POST /v1/chat/completions`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..chat_template import Rendering
from ..completion import Completion, TextDelta
from ..detokenizer import TokenText
from ..dialect.event import Answer, CallArguments, CallBegun, Content, Event, Reasoning, first_call
from ..dialect.reader import DialectReader
from .answer import (
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    ToolCall,
    new_id,
)
from .caller import Caller
from .conversation import Conversation, checked_budget, effort_budget
from .endpoint import Endpoint, Job
from .envelope import Envelope
from .failure import ApiError
from .logprobs import chat_logprobs, prompt_logprobs
from .request_body import ChatFields, check_scored
from .tools import Tools
from .writer import DONE, Writer


class ChatEndpoint(Endpoint[ChatFields]):
    """Chat completions, whole or streamed."""

    fields = ChatFields
    prompt_field = "messages"

    async def job(self, fields: ChatFields, caller: Caller) -> Job:
        """Return the rendered conversation and the writer of its answer."""
        if not fields.messages:
            raise ApiError(400, "messages is empty; send at least one", param="messages")
        tools = Tools.of(fields.tools, fields.tool_choice, one_call=not fields.parallel_tool_calls)
        fields.check_choices()
        check_scored(fields)
        how = Rendering(
            tools.shown,
            fields.template_variables(),
            fields.add_generation_prompt,
            fields.continue_final_message,
            fields.cache_salt,
        )
        codec = self.service.llm.codec
        thinking_tokens = checked_budget(fields.thinking_budget, codec)
        by_effort = effort_budget(fields.reasoning_effort, codec, "reasoning_effort")
        if thinking_tokens is None:
            thinking_tokens = by_effort
        asked = fields.asked_format()
        chat = await Conversation.of(codec, fields.messages, how, tools, asked, thinking_tokens)
        envelope = Envelope.of(
            "chatcmpl", "chat.completion", "chat.completion.chunk", self.service.model_name
        )
        envelope.group = fields.n
        if fields.return_token_ids:
            envelope.prompt_ids = chat.ids.tolist()
        envelope.has_usage, envelope.has_running_usage = fields.usage_asked()
        writer = ChatWriter(fields, envelope, chat.reader, codec.table, chat.ids)
        return Job([chat.ids], writer, fields.n, chat.table, chat.grammar)


class ChatWriter(Writer):
    """Writes `chat.completion` and its chunks."""

    def __init__(
        self,
        fields: ChatFields,
        envelope: Envelope,
        new_reader: Callable[[], DialectReader],
        table: TokenText,
        prompt: Sequence[int],
    ) -> None:
        self._prompt = prompt
        self._fields = fields
        self._envelope = envelope
        self._new_reader = new_reader
        self._readers: dict[int, DialectReader] = {}
        self._table = table
        self._called = False

    def has_answered(self, choice: int) -> bool:
        """A choice's text goes beyond its reasoning."""
        return self._readers[choice].has_answered

    @property
    def called_tools(self) -> bool:
        """Some choice ended in a tool call."""
        return self._called

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """Return a `chat.completion`."""
        choices = [self._choice(index, each) for index, each in enumerate(completions)]
        if self._fields.prompt_logprobs is not None:
            scores = completions[0].prompt_scores
            self._envelope.prompt_logprobs = prompt_logprobs(self._prompt, scores, self._table)
        return self._envelope.whole(choices, [each.usage for each in completions])

    def _choice(self, index: int, completion: Completion) -> ChatChoice:
        reader = self._new_reader()
        answer = Answer.of(self._wanted([*reader.push(completion.text), *reader.finish()]))
        calls = [
            ToolCall(FunctionCall(call.name, call.arguments), new_id("call"), "function")
            for call in answer.calls
        ]
        content = answer.content or (None if calls else "")
        return ChatChoice(
            index=index,
            message=ChatMessage("assistant", content, answer.reasoning or None, calls or None),
            finish_reason=self._reason(completion.finish_reason, reader),
            logprobs=self._logprobs(completion),
            stop_reason=completion.stop_reason,
            **self._ids(completion),
        )

    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return `chat.completion.chunk`s."""
        self._envelope.spend(choice, delta)
        is_first = choice not in self._readers
        reader = self._readers.setdefault(choice, self._new_reader())
        events = reader.push(delta.text)
        if delta.finish_reason is not None:
            events += reader.finish()
        messages = [*self._opening(is_first), *map(_piece, self._wanted(events))]
        has_ids = self._fields.return_token_ids and delta.token_ids
        if not messages and (delta.logprobs or delta.finish_reason or has_ids):
            messages = [ChatMessage()]
        for number, message in enumerate(messages):
            is_last = number == len(messages) - 1
            # what belongs to the delta as a whole goes with its last piece
            logprobs = self._logprobs(delta) if is_last and delta.logprobs else None
            reason = self._reason(delta.finish_reason, reader) if is_last else None
            yield self._envelope.chunk(
                [
                    ChatChunkChoice(
                        index=choice,
                        delta=message,
                        finish_reason=reason,
                        logprobs=logprobs,
                        stop_reason=delta.stop_reason if is_last else None,
                        **(self._ids(delta) if is_last else {}),
                    )
                ]
            )

    def end(self) -> Iterable[bytes]:
        """Return the usage, if it is asked for, and the end mark."""
        if self._envelope.has_usage:
            yield self._envelope.last()
        yield DONE

    def _opening(self, is_first: bool) -> Iterator[ChatMessage]:
        if is_first:
            yield ChatMessage("assistant", "")

    def _wanted(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events if self._fields.parallel_tool_calls else first_call(events):
            if self._fields.include_reasoning or not isinstance(event, Reasoning):
                yield event

    def _reason(self, reason: str | None, reader: DialectReader) -> str | None:
        if reason != "stop" or not reader.num_calls:
            return reason
        self._called = True
        return "tool_calls"

    def _ids(self, tokens: Completion | TextDelta) -> Mapping[str, Any]:
        return {"token_ids": tokens.token_ids} if self._fields.return_token_ids else {}

    def _logprobs(self, tokens: Completion | TextDelta) -> ChatLogprobs | None:
        return chat_logprobs(tokens, self._table) if self._fields.wants_logprobs else None


def _piece(event: Event) -> ChatMessage:
    match event:
        case Content(text):
            return ChatMessage(content=text)
        case Reasoning(text):
            return ChatMessage(reasoning_content=text)
        case CallBegun(index, name):
            call = ToolCall(FunctionCall(name, ""), new_id("call"), "function", index)
            return ChatMessage(tool_calls=[call])
        case CallArguments(index, text):
            return ChatMessage(tool_calls=[ToolCall(FunctionCall(arguments=text), index=index)])
