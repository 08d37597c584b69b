# SPDX-License-Identifier: MIT
"""Routes about tokens that generate none: count, tokenize, detokenize."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..chat_template import Rendering
from .conversation import Conversation
from .endpoint import Route
from .failure import ApiError
from .message_body import CountFields
from .request_body import parse, read_body
from .request_record import Arrival
from .tools import Tools

MAX_DETOKENIZED = 1 << 20


class TokenizeFields(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /tokenize`: a prompt, or messages."""

    model: str
    prompt: str | None = None
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    return_token_strs: bool = False
    add_special_tokens: bool = True


class DetokenizeFields(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /detokenize`."""

    model: str
    tokens: list[int]


Body = TypeVar("Body", TokenizeFields, DetokenizeFields, CountFields)


class TokenRoute(Route, Generic[Body]):
    """A route that answers a body with a JSON object."""

    fields: type[Body]

    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Answer a request.  Raises what a client did wrong."""
        fields = parse(await read_body(request), self.fields, self.service.metrics.ignored)
        self.check(fields.model)
        answer = msgspec.json.encode(await self.answer(fields))
        return Response(answer, media_type="application/json")

    @abstractmethod
    async def answer(self, fields: Body) -> dict[str, Any]:
        """Return the answer."""


class CountTokens(TokenRoute[CountFields]):
    """`POST /v1/messages/count_tokens`."""

    fields = CountFields
    prompt_field = "messages"

    async def answer(self, fields: CountFields) -> dict[str, Any]:
        """Return how long the prompt of a message would be."""
        tools = fields.offered()
        chat = await Conversation.of(
            self.service.llm.codec, fields.conversation(), fields.rendering(tools), tools
        )
        return {"input_tokens": len(chat.ids)}


class Tokenize(TokenRoute[TokenizeFields]):
    """`POST /tokenize`."""

    fields = TokenizeFields
    prompt_field = "prompt"

    async def answer(self, fields: TokenizeFields) -> dict[str, Any]:
        """Return the ids of a text or of a rendered conversation."""
        codec = self.service.llm.codec
        if (fields.prompt is None) == (not fields.messages):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if fields.prompt is not None:
            ids = list(await codec.prompt(fields.prompt, add_special=fields.add_special_tokens))
        else:
            tools = Tools.of(fields.tools)
            how = Rendering(
                tools.shown,
                fields.chat_template_kwargs,
                fields.add_generation_prompt,
                fields.continue_final_message,
            )
            ids = (await codec.chat(fields.messages, how)).ids.tolist()
        limits = self.service.llm.client.welcome
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": limits.max_model_len if limits else None,
            "tokens": ids,
        }
        if fields.return_token_strs:
            answer["token_strs"] = [codec.tokenizer.spelled(id) for id in ids]
        return answer


class Detokenize(TokenRoute[DetokenizeFields]):
    """`POST /detokenize`."""

    fields = DetokenizeFields
    prompt_field = "tokens"

    async def answer(self, fields: DetokenizeFields) -> dict[str, Any]:
        """Return the text of ids, special tokens spelled."""
        size = self.service.llm.codec.tokenizer.vocab_size
        bad = next((id for id in fields.tokens if not 0 <= id < size), None)
        if bad is not None or len(fields.tokens) > MAX_DETOKENIZED:
            what = f"id {bad}, outside the vocabulary of {size}"
            if bad is None:
                what = f"{len(fields.tokens)} ids; at most {MAX_DETOKENIZED} are allowed"
            raise ApiError(400, f"tokens holds {what}", param="tokens", code="invalid_token_id")
        return {
            "prompt": self.service.llm.codec.tokenizer.decode(fields.tokens, skip_special=False)
        }
