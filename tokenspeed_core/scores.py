# SPDX-License-Identifier: MIT
"""How likely tokens were: the alternatives to sampled ones, and the tokens of a prompt."""

from collections.abc import Iterator

import attrs
import msgspec

from .ipc.codec import read_column
from .ipc.details import Details
from .ipc.messages import TokenDeltas

Tops = list[tuple[int, float]]  # tokens and their log-probabilities, the likeliest first

_decoder = msgspec.msgpack.Decoder(Details)


@attrs.frozen
class PromptScore:
    """How likely a token of a prompt was behind those before it."""

    logprob: float
    rank: int  # 1: none was likelier
    tops: Tops


def told(deltas: TokenDeltas) -> Iterator[tuple[int, Details]]:
    """Yield what workers told of requests, in the order of the requests' tokens."""
    start = 0
    for request_id, size in zip(
        read_column("Q", deltas.detail_ids), read_column("i", deltas.detail_bytes), strict=True
    ):
        yield request_id, _decoder.decode(deltas.details[start : start + size])
        start += size


def tops_of(details: Details) -> Tops:
    """Return the likeliest tokens in the place of a sampled one, none if they were not asked."""
    ids, values = read_column("i", details.top_ids), read_column("f", details.top_logprobs)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def prompt_scores(details: Details) -> Iterator[tuple[int, PromptScore]]:
    """Yield the scores of a prompt's tokens by their positions."""
    ids = read_column("i", details.prompt_top_ids).tolist()
    values = read_column("f", details.prompt_top_logprobs).tolist()
    width = details.prompt_width
    for index, (logprob, rank) in enumerate(
        zip(
            read_column("f", details.prompt_logprobs).tolist(),
            read_column("i", details.prompt_ranks).tolist(),
            strict=True,
        )
    ):
        row = slice(index * width, (index + 1) * width)
        tops = list(zip(ids[row], values[row], strict=True))
        yield details.prompt_start + index, PromptScore(logprob, rank, tops)
