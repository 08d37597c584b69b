# SPDX-License-Identifier: MIT
"""`POST /v1/completions`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..completion import Completion, TextDelta
from ..grammar.grammar import Grammar
from ..text_codec import TextCodec
from .answer import CompletionChoice, CompletionLogprobs
from .caller import Caller
from .endpoint import Endpoint, Job
from .envelope import Envelope
from .failure import ApiError
from .logprobs import completion_logprobs, prompt_logprobs
from .request_body import CompletionFields, check_scored
from .writer import DONE, Writer


class CompletionEndpoint(Endpoint[CompletionFields]):
    """Plain completions of texts or of token ids, whole or streamed."""

    fields = CompletionFields
    prompt_field = "prompt"

    async def job(self, fields: CompletionFields, caller: Caller) -> Job:
        """Return the prompts' token ids and the writer of their answers."""
        check_scored(fields)
        prompts = _prompts(fields.prompt)
        fields.check_choices(len(prompts))
        codec = self.service.llm.codec
        ids = [await codec.prompt(prompt) for prompt in prompts]
        envelope = Envelope.of(
            "cmpl", "text_completion", "text_completion", self.service.model_name
        )
        envelope.group = fields.n
        envelope.has_usage, envelope.has_running_usage = fields.usage_asked()
        asked = fields.asked_format()
        grammar = Grammar.of(*asked) if asked is not None else None
        writer = CompletionWriter(fields, envelope, prompts, ids, codec)
        return Job(ids, writer, fields.n, grammar=grammar)


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """Return the prompts of a text, of ids, or of a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if all(type(id) is int for id in prompt):
        return [prompt]
    for each in prompt:
        is_ids = isinstance(each, list) and all(type(id) is int for id in each)
        if not isinstance(each, str) and not is_ids:
            raise ApiError(
                400,
                "prompt must be a string, a list of token ids, or a list of such",
                param="prompt",
                code="invalid_type",
            )
    return prompt


class CompletionWriter(Writer):
    """Writes `text_completion`s."""

    def __init__(
        self,
        fields: CompletionFields,
        envelope: Envelope,
        prompts: Sequence[str | list[int]],
        ids: Sequence[Sequence[int]],
        codec: TextCodec,
    ) -> None:
        self._fields = fields
        self._envelope = envelope
        self._prompts = prompts
        self._ids = ids
        self._codec = codec
        self._lengths: dict[int, int] = {}  # characters given of each choice

    def whole(self, completions: Sequence[Completion]) -> bytes:
        """Return a `text_completion`."""
        choices = []
        for index, each in enumerate(completions):
            echo = self._echo(index)
            choices.append(
                CompletionChoice(
                    index=index,
                    text=echo + each.text,
                    finish_reason=each.finish_reason,
                    logprobs=self._logprobs(index, each, len(echo), is_first=True),
                    stop_reason=each.stop_reason,
                    prompt_logprobs=self._prompt_logprobs(index, each),
                    **self._token_ids(index, each, is_first=True),
                )
            )
        return self._envelope.whole(choices, [each.usage for each in completions])

    def push(self, choice: int, delta: TextDelta) -> Iterable[bytes]:
        """Return a `text_completion` with the text that is new."""
        self._envelope.spend(choice, delta)
        is_first = choice not in self._lengths
        offset = self._lengths.get(choice, 0)
        text = self._echo(choice) + delta.text if is_first else delta.text
        self._lengths[choice] = offset + len(text)
        told = text or delta.logprobs or delta.finish_reason
        if told or (self._fields.return_token_ids and delta.token_ids):
            piece = CompletionChoice(
                index=choice,
                text=text,
                finish_reason=delta.finish_reason,
                logprobs=self._logprobs(choice, delta, offset, is_first=is_first),
                stop_reason=delta.stop_reason,
                **self._token_ids(choice, delta, is_first=is_first),
            )
            yield self._envelope.chunk([piece])

    def end(self) -> Iterable[bytes]:
        """Return the usage, if it is asked for, and the end mark."""
        if self._envelope.has_usage:
            yield self._envelope.last()
        yield DONE

    def _echo(self, choice: int) -> str:
        if not self._fields.echo:
            return ""
        prompt = self._prompts[choice // self._fields.n]
        return prompt if isinstance(prompt, str) else self._codec.tokenizer.decode(prompt)

    def _token_ids(
        self, choice: int, tokens: Completion | TextDelta, *, is_first: bool
    ) -> Mapping[str, Any]:
        if not self._fields.return_token_ids:
            return {}
        given: dict[str, Any] = {"token_ids": tokens.token_ids}
        if is_first:
            given["prompt_token_ids"] = list(self._ids[choice // self._fields.n])
        return given

    def _prompt_logprobs(
        self, choice: int, completion: Completion
    ) -> list[Any] | msgspec.UnsetType:
        if self._fields.prompt_logprobs is None:
            return msgspec.UNSET
        prompt = self._ids[choice // self._fields.n]
        return prompt_logprobs(prompt, completion.prompt_scores, self._codec.table)

    def _logprobs(
        self, choice: int, tokens: Completion | TextDelta, offset: int, *, is_first: bool
    ) -> CompletionLogprobs | None:
        if not self._fields.wants_logprobs:
            return None
        is_echo = self._fields.echo and is_first
        prompt = self._ids[choice // self._fields.n] if is_echo else []
        return completion_logprobs(tokens, self._codec.table, 0 if is_echo else offset, prompt)
