# SPDX-License-Identifier: MIT
"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from ..completion import Completion, TextDelta
from .answer import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    ChatMessage,
    TokenLogprob,
    Usage,
    new_id,
)
from .endpoint import Endpoint
from .failure import ApiError
from .request_body import ChatFields


class ChatEndpoint(Endpoint[ChatFields]):
    """Chat completions, whole or streamed."""

    fields = ChatFields
    prompt_field = "messages"

    async def prompt(self, fields: ChatFields) -> list[int]:
        """Return the rendered conversation's token ids."""
        if not fields.messages:
            raise ApiError(400, "messages is empty; send at least one", param="messages")
        return await self.service.llm.codec.chat_prompt(fields.messages)

    def whole(self, fields: ChatFields, completion: Completion) -> bytes:
        """Return a `chat.completion`."""
        choice = ChatChoice(
            message=ChatMessage("assistant", completion.text),
            finish_reason=completion.finish_reason,
            logprobs=self._logprobs(fields, completion.token_ids, completion.logprobs),
            stop_reason=completion.stop_reason,
        )
        return msgspec.json.encode(
            Answer(
                new_id("chatcmpl"),
                "chat.completion",
                int(time.time()),
                self.service.model_name,
                [choice],
                Usage.of(completion.usage),
            )
        )

    async def chunks(
        self, fields: ChatFields, deltas: AsyncIterator[TextDelta]
    ) -> AsyncGenerator[bytes, None]:
        """Yield `chat.completion.chunk`s: the role with the first text, then text, then the end."""
        id, created, model = new_id("chatcmpl"), int(time.time()), self.service.model_name

        def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None) -> bytes:
            answer = Answer(id, "chat.completion.chunk", created, model, choices, usage)
            return msgspec.json.encode(answer)

        role: str | None = "assistant"
        async for delta in deltas:
            if delta.text or delta.logprobs or delta.finish_reason or role:
                message = ChatMessage(role, delta.text if delta.text or role else None)
                logprobs = self._logprobs(fields, delta.token_ids, delta.logprobs)
                role = None
                yield chunk(
                    [
                        ChatChunkChoice(
                            message, delta.finish_reason, logprobs, stop_reason=delta.stop_reason
                        )
                    ]
                )
            if delta.finish_reason and fields.includes_usage:
                yield chunk([], Usage.of(delta.usage))

    def _logprobs(
        self, fields: ChatFields, ids: Sequence[int], values: Sequence[float]
    ) -> ChatLogprobs | None:
        if not fields.wants_logprobs:
            return None
        table = self.service.llm.codec.table
        return ChatLogprobs(
            [
                TokenLogprob(table.text(id), value, list(table.raw(id)))
                for id, value in zip(ids, values, strict=True)
            ]
        )
