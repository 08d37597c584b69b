# SPDX-License-Identifier: MIT
"""What turns a user's text into token ids and back, for one model."""

import asyncio
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .chat_template import (
    MAX_RENDERED_CHARS,
    RENDER_S,
    ChatTemplate,
    ChatTemplateError,
    Message,
    Rendering,
    RenderTimeError,
)
from .detokenizer import TokenText
from .dialect.dialect import Dialect
from .dialect.families import PLAIN, spoken
from .model_source import resolve
from .pooling import Pooling
from .prefix_texts import PrefixTexts
from .stage_clock import StageClock
from .tokenizer import Tokenizer

# Text longer than this is tokenised on a thread, so that other streams go on.
_INLINE_CHARS = 8192
# Templates hold the interpreter, so a short rendering is no shorter for others on a thread; one
# that takes longer than this is begun again there, as are all that are as long, from then on.
_INLINE_S = 0.005
_INLINE_RENDERED = 1 << 20
_END_CHARS = 1024  # a mark and the white space behind it

Prompt = str | Sequence[int]


class PromptError(ValueError):
    """A prompt that cannot be served; `code` is a short machine-readable reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@attrs.frozen
class ChatPrompt:
    """A conversation's token ids; with `thinks` the answer begins inside the reasoning."""

    ids: "array[int]"
    thinks: bool = False


@attrs.define
class _Pace:
    slow_chars: int = _INLINE_RENDERED  # conversations of so many take long to render


@attrs.frozen(eq=False)
class TextCodec:
    """Tokenizer, chat template and dialect of one model, and what embeddings it gives."""

    tokenizer: Tokenizer
    table: TokenText
    template: ChatTemplate | None
    max_chars: int  # text beyond it is refused before it costs anything
    dialect: Dialect = PLAIN
    sorts_tools: bool = False  # prompts name tools in the order of their names, not as given
    stages: StageClock = attrs.field(factory=StageClock, repr=False)  # of this process
    prefixes: PrefixTexts | None = None  # of conversations
    pooling: Pooling | None = None  # how embeddings are made, if the model is an embedder
    _spellings: dict[tuple[str, bool], TokenText] = attrs.field(factory=dict, repr=False)
    _pace: _Pace = attrs.field(factory=_Pace, repr=False)

    @classmethod
    def load(cls, model: str) -> "TextCodec":
        """Read tokenizer and chat template of a model.

        Raises:
            ModelNotFoundError, TokenizerError, ChatTemplateError, PoolingError
        """
        source = resolve(model, weights=False)
        tokenizer = Tokenizer.load(source)
        table = TokenText.of(tokenizer)
        codec = cls(tokenizer, table, None, MAX_RENDERED_CHARS, pooling=Pooling.of(source.path))
        return codec.with_template(tokenizer.chat_template) if tokenizer.chat_template else codec

    def with_template(self, source: str) -> "TextCodec":
        """Return this codec with another chat template, and the dialect that it tells of.

        Raises:
            ChatTemplateError: the source is not valid Jinja.
        """
        variables = self.tokenizer.special_text()
        template = ChatTemplate.compile(source, variables)
        written = {text for text in self.tokenizer.special_texts().values() if text in source}
        prefixes = PrefixTexts(self.tokenizer, sorted(written | set(variables.values())))
        return attrs.evolve(
            self, template=template, dialect=spoken(source), prefixes=prefixes, pace=_Pace()
        )

    def within(self, max_tokens: int) -> "TextCodec":
        """Return this codec refusing text that cannot be `max_tokens` tokens or fewer."""
        # normalisation may join up to four characters before they meet the vocabulary
        chars = 4 * self.table.longest_piece * max_tokens
        return attrs.evolve(self, max_chars=min(chars, MAX_RENDERED_CHARS))

    def spelling(self, dialect: Dialect) -> TokenText:
        """Return the text of tokens with those special ones spelled that `dialect` reads."""
        key = (dialect.name, dialect.takes_calls)
        if key not in self._spellings:
            marks = "\n".join(dialect.marks)
            texts = self.tokenizer.special_texts()
            spelled = {id: text for id, text in texts.items() if text in marks}
            self._spellings[key] = self.table.spelling(spelled)
        return self._spellings[key]

    async def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt ids of a conversation, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: the model has no template, or the messages do not fit it.
            PromptError: the text is longer than any prompt can be.
        """
        return (await self.chat(messages)).ids.tolist()

    async def chat(self, messages: Sequence[Message], how: Rendering | None = None) -> ChatPrompt:
        """Return the prompt of a conversation.  Raises as `chat_prompt`."""
        template = self.template
        if template is None:
            raise ChatTemplateError("this model has no chat template; use completions instead")

        def render(budget_s: float) -> str:
            with self.stages.stage("render"):
                shown = how.with_sorted_tools() if how and self.sorts_tools else how
                return template.render(messages, shown, budget_s)

        text = None
        size = sum(_length(message.get("content")) for message in messages)
        if size < self._pace.slow_chars:
            try:
                text = render(_INLINE_S)
            except RenderTimeError:
                self._pace.slow_chars = max(size, _INLINE_CHARS)
        if text is None:
            text = await asyncio.to_thread(render, RENDER_S)
        self._check_length(text)
        thinking = self.dialect.thinking
        end = text[-_END_CHARS:]  # a copy of the whole would cost more than the look
        thinks = bool(thinking) and end.rstrip().endswith(thinking)
        return ChatPrompt(await self._conversation_ids(text, how.salt if how else ""), thinks)

    async def _conversation_ids(self, text: str, salt: str) -> "array[int]":
        prefixes = self.prefixes
        assert prefixes is not None, "it came with the template"

        def finish() -> "array[int]":
            with self.stages.stage("tokenise"):
                return prefixes.finish(begun)

        begun = prefixes.begin(text, salt)
        return finish() if len(begun.rest) < _INLINE_CHARS else await asyncio.to_thread(finish)

    async def prompt(self, prompt: Prompt, *, add_special: bool = True) -> Sequence[int]:
        """Return the ids of a text, or the ids themselves.

        Raises:
            PromptError: the text is longer than any prompt can be.
        """
        if not isinstance(prompt, str):
            return prompt if isinstance(prompt, array) else list(prompt)
        if len(prompt) < _INLINE_CHARS:
            return self._encode(prompt, add_special=add_special)
        return await asyncio.to_thread(self._encode, prompt, add_special=add_special)

    def _encode(self, text: str, *, add_special: bool = True) -> list[int]:
        self._check_length(text)
        with self.stages.stage("tokenise"):
            return self.tokenizer.encode(text, add_special=add_special)

    def _check_length(self, text: str) -> None:
        if len(text) > self.max_chars:
            raise PromptError(
                "context_length_exceeded",
                f"the prompt has {len(text)} characters, more than fit the model's context in any "
                f"language; shorten the prompt",
            )


def _length(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    return sum(len(str(part.get("text"))) for part in parts if isinstance(part, Mapping))
