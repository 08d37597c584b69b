# SPDX-License-Identifier: MIT
"""`POST /v1/completions`."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from ..completion import Completion, TextDelta
from .answer import Answer, CompletionChoice, CompletionLogprobs, Usage, new_id
from .endpoint import Endpoint
from .failure import ApiError
from .request_body import CompletionFields


class CompletionEndpoint(Endpoint[CompletionFields]):
    """Plain completions of a text or of token ids, whole or streamed."""

    fields = CompletionFields
    prompt_field = "prompt"

    async def prompt(self, fields: CompletionFields) -> list[int]:
        """Return the prompt's token ids."""
        if fields.logprobs:
            raise ApiError(
                400,
                f"logprobs={fields.logprobs} asks for alternatives, which are not built; "
                f"0 reports the sampled token",
                param="logprobs",
                code="unsupported_parameter",
            )
        prompt = fields.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]  # a batch of one
        if isinstance(prompt, list) and not all(type(id) is int for id in prompt):
            several = all(isinstance(each, str | list) for each in prompt)
            raise ApiError(
                400,
                "several prompts in one request are not built; send one request each"
                if several
                else "prompt must be a string or a list of token ids",
                param="prompt",
                code="unsupported_parameter" if several else "invalid_type",
            )
        return await self.service.llm.codec.prompt(prompt)

    def whole(self, fields: CompletionFields, completion: Completion) -> bytes:
        """Return a `text_completion`."""
        choice = CompletionChoice(
            completion.text,
            completion.finish_reason,
            self._logprobs(fields, completion.token_ids, completion.logprobs, 0),
            stop_reason=completion.stop_reason,
        )
        return msgspec.json.encode(
            Answer(
                new_id("cmpl"),
                "text_completion",
                int(time.time()),
                self.service.model_name,
                [choice],
                Usage.of(completion.usage),
            )
        )

    async def chunks(
        self, fields: CompletionFields, deltas: AsyncIterator[TextDelta]
    ) -> AsyncGenerator[bytes, None]:
        """Yield `text_completion`s, each with the text that is new."""
        id, created, model = new_id("cmpl"), int(time.time()), self.service.model_name

        def chunk(choices: list[CompletionChoice], usage: Usage | None = None) -> bytes:
            return msgspec.json.encode(
                Answer(id, "text_completion", created, model, choices, usage)
            )

        offset = 0
        async for delta in deltas:
            if delta.text or delta.logprobs or delta.finish_reason:
                logprobs = self._logprobs(fields, delta.token_ids, delta.logprobs, offset)
                offset += len(delta.text)
                yield chunk(
                    [
                        CompletionChoice(
                            delta.text,
                            delta.finish_reason,
                            logprobs,
                            stop_reason=delta.stop_reason,
                        )
                    ]
                )
            if delta.finish_reason and fields.includes_usage:
                yield chunk([], Usage.of(delta.usage))

    def _logprobs(
        self, fields: CompletionFields, ids: Sequence[int], values: Sequence[float], offset: int
    ) -> CompletionLogprobs | None:
        if not fields.wants_logprobs:
            return None
        texts = [self.service.llm.codec.table.text(id) for id in ids]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return CompletionLogprobs(texts, list(values), offsets)
