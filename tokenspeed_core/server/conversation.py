# SPDX-License-Identifier: MIT
"""A rendered conversation and the reading of its answer."""

from collections.abc import Callable, Sequence
from functools import partial

import attrs

from ..chat_template import Message, Rendering
from ..detokenizer import TokenText
from ..dialect.reader import DialectReader
from ..text_codec import TextCodec
from .tools import Tools


@attrs.frozen
class Conversation:
    """A prompt's ids, how the answer's tokens are spelled, and a reader for each answer to it."""

    ids: list[int]
    table: TokenText
    reader: Callable[[], DialectReader]

    @classmethod
    async def of(
        cls, codec: TextCodec, messages: Sequence[Message], how: Rendering, tools: Tools
    ) -> "Conversation":
        """Render the messages.

        Raises:
            ChatTemplateError, PromptError: see `TextCodec.chat`.
            ApiError: tools are given, and how this model calls them is not known.
        """
        dialect = codec.dialect
        if tools.shown:
            tools.check_known(dialect)
        else:
            dialect = dialect.without_calls()
        prompt = await codec.chat(messages, how)
        reader = partial(DialectReader, dialect, tools.schemas, thinks=prompt.thinks)
        return cls(prompt.ids, codec.spelling(dialect), reader)
