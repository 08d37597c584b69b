# SPDX-License-Identifier: MIT
"""Between the gateway's protobuf messages and ours."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator

from smg_grpc_proto.generated import common_pb2, tokenspeed_scheduler_pb2

from ..completion import TextDelta
from ..ipc.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEventBatch
from ..sampling_params import SamplingError, SamplingParams
from ..tokenizer import Tokenizer

_CHUNK_BYTES = 1 << 20
_NO_TOP_K = (-1, 0, 1 << 30)  # how gateways say that all tokens are kept


def sampling_params(request: tokenspeed_scheduler_pb2.GenerateRequest) -> SamplingParams:
    """Return how a request is sampled.

    Raises:
        SamplingError: a value is out of range, or what is asked for is not built.
    """
    given = request.sampling_params
    if given.WhichOneof("constraint"):
        raise SamplingError(given.WhichOneof("constraint"), "is not served over gRPC; use HTTP")
    if request.HasField("logprob_start_len") and request.logprob_start_len >= 0:
        raise SamplingError("logprob_start_len", "asks for the prompt's; only answers have them")
    if request.top_logprobs_num:
        raise SamplingError("top_logprobs_num", "is not served over gRPC; use HTTP")
    set_fields = {
        name: getattr(given, name)
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
        )
        if given.HasField(name)
    }
    top_k = given.top_k if given.HasField("top_k") else 0
    return SamplingParams(
        **set_fields,
        top_k=0 if top_k in _NO_TOP_K else top_k,
        max_tokens=given.max_new_tokens if given.HasField("max_new_tokens") else None,
        min_tokens=given.min_new_tokens,
        stop=tuple(given.stop),
        stop_token_ids=tuple(given.stop_token_ids),
        logit_bias=dict(given.logit_bias),
        ignore_eos=given.ignore_eos,
        logprobs=request.return_logprob,
    )


class ChoiceFrames:
    """Turns the deltas of one choice into the frames that the gateway reads.

    The id that ended a choice is left out of its tokens unless `keeps_stop`.
    """

    def __init__(self, request_id: str, index: int, *, streams: bool, keeps_stop: bool) -> None:
        self._request_id = request_id
        self._index = index
        self._streams = streams
        self._keeps_stop = keeps_stop
        self._ids: list[int] = []  # of all deltas, where nothing is streamed
        self._logprobs: list[float] = []

    def push(self, delta: TextDelta) -> Iterator[tokenspeed_scheduler_pb2.GenerateResponse]:
        """Yield the frames of a delta."""
        ids, logprobs = list(delta.token_ids), list(delta.logprobs)
        stopped = delta.stop_reason if isinstance(delta.stop_reason, int) else None
        if stopped is not None and not self._keeps_stop and ids and ids[-1] == stopped:
            ids.pop()
            logprobs = logprobs[: len(ids)]
        usage = {
            "prompt_tokens": delta.usage.prompt_tokens,
            "completion_tokens": delta.usage.completion_tokens,
            "cached_tokens": delta.usage.cached_tokens,
        }
        if self._streams:
            if ids or delta.finish_reason is None:
                chunk = tokenspeed_scheduler_pb2.GenerateStreamChunk(
                    token_ids=ids, index=self._index, **usage, **_reported(ids, logprobs)
                )
                yield self._frame(chunk=chunk)
        else:
            self._ids += ids
            self._logprobs += logprobs
            ids, logprobs = self._ids, self._logprobs
        if delta.finish_reason is not None:
            matched: dict[str, int | str] = {}
            if isinstance(delta.stop_reason, int):
                matched["matched_token_id"] = delta.stop_reason
            elif delta.stop_reason is not None:
                matched["matched_stop_str"] = delta.stop_reason
            complete = tokenspeed_scheduler_pb2.GenerateComplete(
                output_ids=ids,
                finish_reason=delta.finish_reason,
                index=self._index,
                **usage,
                **_reported(ids, logprobs),
                **matched,
            )
            yield self._frame(complete=complete)

    def _frame(self, **what: object) -> tokenspeed_scheduler_pb2.GenerateResponse:
        return tokenspeed_scheduler_pb2.GenerateResponse(request_id=self._request_id, **what)


def _reported(ids: list[int], logprobs: list[float]) -> dict[str, object]:
    if not logprobs:
        return {}
    told = tokenspeed_scheduler_pb2.OutputLogProbs(token_logprobs=logprobs, token_ids=ids)
    return {"output_logprobs": told}


def kv_batch(batch: KvEventBatch, number: int) -> common_pb2.KvEventBatch:
    """Return a batch of KV events in protobuf."""
    told = common_pb2.KvEventBatch(sequence_number=number, timestamp=batch.ts, dp_rank=0)
    for event in batch.events:
        match event:
            case BlockStored():
                size = event.block_size
                stored = common_pb2.KvBlocksStored(
                    blocks=[
                        common_pb2.KvBlock(
                            block_hash=_signed(block),
                            token_ids=event.token_ids[at * size : (at + 1) * size],
                            block_size=size,
                        )
                        for at, block in enumerate(event.block_hashes)
                    ]
                )
                if event.parent_block_hash is not None:
                    stored.parent_block_hash = _signed(event.parent_block_hash)
                told.events.add(stored=stored)
            case BlockRemoved():
                hashes = [_signed(block) for block in event.block_hashes]
                told.events.add(removed=common_pb2.KvBlocksRemoved(block_hashes=hashes))
            case AllBlocksCleared():
                told.events.add(cleared=common_pb2.KvCacheCleared())
    return told


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def tokenizer_chunks(tokenizer: Tokenizer) -> Iterator[common_pb2.GetTokenizerChunk]:
    """Yield a zip archive of the tokenizer's files, as a Hugging Face directory has them."""
    config = {**tokenizer.special_text(), "chat_template": tokenizer.chat_template}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokenizer.json", tokenizer.backend.to_str())
        archive.writestr("tokenizer_config.json", json.dumps(config))
    data = packed.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    for start in range(0, len(data), _CHUNK_BYTES):
        is_last = start + _CHUNK_BYTES >= len(data)
        yield common_pb2.GetTokenizerChunk(
            data=data[start : start + _CHUNK_BYTES], sha256=digest if is_last else ""
        )
