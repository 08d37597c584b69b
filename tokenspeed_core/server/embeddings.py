# SPDX-License-Identifier: MIT
"""`POST /v1/embeddings`, which no model that is served has yet."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .endpoint import Route
from .failure import ApiError
from .request_body import parse, read_body
from .request_record import Arrival


class EmbeddingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: str | list[Any]
    encoding_format: str = "float"
    dimensions: int | None = None


class Embeddings(Route):
    """Refuses by the model's name: all models of this engine end in logits over a vocabulary."""

    fields = EmbeddingFields
    prompt_field = "input"

    async def respond(self, request: Request, arrival: Arrival) -> Response:
        """Tell a client that asks this server for embeddings what it serves."""
        fields = parse(await read_body(request), EmbeddingFields, self.service.metrics.ignored)
        self.check(fields.model)
        raise ApiError(
            400,
            f"the model {fields.model[:100]!r} generates text and has no embeddings: its hidden "
            f"states are not given out; ask a server of an embedding model",
            param="model",
            code="model_has_no_embeddings",
        )
