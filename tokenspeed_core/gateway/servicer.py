# SPDX-License-Identifier: MIT
"""The gateway's service of one engine, over `AsyncLLM`."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2, tokenspeed_scheduler_pb2
from smg_grpc_proto.generated.tokenspeed_scheduler_pb2_grpc import TokenSpeedSchedulerServicer

from .. import __version__
from ..async_llm import AsyncLLM, PromptError
from ..ipc.kv_events import KvSubscriber
from ..ipc.messages import RefusalCode
from ..pooling import EmbeddingError
from ..sampling_params import SamplingError
from ..sdk import EngineLostError, RejectedError
from ..server.choices import interleaved
from ..server.health import health
from .conversion import ChoiceFrames, kv_batch, sampling_params, tokenizer_chunks

log = logging.getLogger(__name__)

_BUSY = (RefusalCode.QUEUE_FULL, RefusalCode.DRAINING)


class EngineServicer(TokenSpeedSchedulerServicer):  # type: ignore[misc]
    """Token ids in, token ids out; the gateway renders, tokenises, and reads the answer."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._started = time.time()
        self._running: dict[str, asyncio.Task[Any]] = {}

    async def Generate(
        self, request: tokenspeed_scheduler_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[tokenspeed_scheduler_pb2.GenerateResponse]:
        """Answer a request, frame by frame; a client that leaves aborts it."""
        task = asyncio.current_task()
        assert task is not None
        if request.request_id in self._running:
            why = f"request {request.request_id} runs already"
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, why)
        self._running[request.request_id] = task
        try:
            async for frame in self._frames(request):
                yield frame
        except (SamplingError, PromptError, EmbeddingError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RejectedError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            if error.code in _BUSY:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await context.abort(code, str(error))
        except EngineLostError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            del self._running[request.request_id]

    async def _frames(
        self, request: tokenspeed_scheduler_pb2.GenerateRequest
    ) -> AsyncIterator[tokenspeed_scheduler_pb2.GenerateResponse]:
        if request.HasField("mm_inputs") or request.HasField("kv_bootstrap_info"):
            raise SamplingError("mm_inputs", "and PD hand-off are not built; send text")
        params = sampling_params(request)
        prompt = list(request.tokenized.input_ids)
        count = request.sampling_params.n or 1
        keeps_stop = request.sampling_params.no_stop_trim
        frames = [
            ChoiceFrames(request.request_id, index, streams=request.stream, keeps_stop=keeps_stop)
            for index in range(count)
        ]
        starts = [
            lambda index=index: self._llm.stream(prompt, params.choice(index))
            for index in range(count)
        ]
        async with contextlib.aclosing(interleaved(starts, count)) as deltas:
            async for index, delta in deltas:
                for frame in frames[index].push(delta):
                    yield frame

    async def Abort(
        self, request: tokenspeed_scheduler_pb2.AbortRequest, context: Any
    ) -> tokenspeed_scheduler_pb2.AbortResponse:
        """End a request; one that is not known is over already."""
        task = self._running.get(request.request_id)
        if task is not None:
            task.cancel()
        message = "aborted" if task else "not running"
        return tokenspeed_scheduler_pb2.AbortResponse(success=True, message=message)

    async def HealthCheck(
        self, request: tokenspeed_scheduler_pb2.HealthCheckRequest, context: Any
    ) -> tokenspeed_scheduler_pb2.HealthCheckResponse:
        """Tell whether tokens flow."""
        verdict = health(self._llm.client)
        return tokenspeed_scheduler_pb2.HealthCheckResponse(
            healthy=verdict.is_good, message=verdict.reason
        )

    async def GetModelInfo(
        self, request: tokenspeed_scheduler_pb2.GetModelInfoRequest, context: Any
    ) -> tokenspeed_scheduler_pb2.GetModelInfoResponse:
        """Describe the model."""
        limits, tokenizer = self._llm.client.welcome, self._llm.codec.tokenizer
        assert limits is not None
        config = self._llm.config
        return tokenspeed_scheduler_pb2.GetModelInfoResponse(
            model_path=config.model_name,  # a path of this machine would mislead the gateway
            tokenizer_path="",
            served_model_name=config.model_name,
            max_context_length=limits.max_model_len,
            max_req_input_len=limits.max_model_len - 1,
            vocab_size=limits.vocab_size,
            eos_token_ids=sorted(tokenizer.eos_ids),
            bos_token_id=tokenizer.bos_id or 0,
            model_dtype=config.dtype,
        )

    async def GetServerInfo(
        self, request: tokenspeed_scheduler_pb2.GetServerInfoRequest, context: Any
    ) -> tokenspeed_scheduler_pb2.GetServerInfoResponse:
        """Describe the server."""
        limits = self._llm.client.welcome
        assert limits is not None
        info = tokenspeed_scheduler_pb2.GetServerInfoResponse(
            active_requests=len(self._running),
            uptime_seconds=time.time() - self._started,
            max_total_num_tokens=(limits.num_blocks - 1) * limits.block_size,
            tokenspeed_version=__version__,
        )
        info.server_args.update(
            {"served_model_name": self._llm.config.model_name, "block_size": limits.block_size}
        )
        info.start_time.FromSeconds(int(self._started))
        return info

    async def GetLoads(
        self, request: tokenspeed_scheduler_pb2.GetLoadsRequest, context: Any
    ) -> tokenspeed_scheduler_pb2.GetLoadsResponse:
        """Tell the engine's load."""
        stats, limits = self._llm.client.stats, self._llm.client.welcome
        told = tokenspeed_scheduler_pb2.GetLoadsResponse(version=__version__, dp_rank_count=1)
        if stats is None or limits is None:
            return told
        size = limits.block_size
        usage = stats.active_blocks / max(1, stats.total_blocks)
        told.loads.add(
            num_running_reqs=stats.running,
            num_waiting_reqs=stats.waiting,
            num_total_reqs=stats.running + stats.waiting,
            num_used_tokens=stats.active_blocks * size,
            max_total_num_tokens=stats.total_blocks * size,
            max_running_requests=self._llm.config.max_running,
            token_usage=usage,
            cache_hit_rate=stats.cached_tokens / max(1, stats.prompt_tokens),
            utilization=usage,
        )
        told.aggregate.total_running_reqs = stats.running
        told.aggregate.total_waiting_reqs = stats.waiting
        told.aggregate.total_reqs = stats.running + stats.waiting
        told.aggregate.avg_token_usage = usage
        return told

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """Send the tokenizer's files."""
        for chunk in await asyncio.to_thread(
            lambda: list(tokenizer_chunks(self._llm.codec.tokenizer))
        ):
            yield chunk

    async def SubscribeKvEvents(
        self, request: common_pb2.SubscribeKvEventsRequest, context: Any
    ) -> AsyncIterator[common_pb2.KvEventBatch]:
        """Tell what the prefix cache holds, from now on; it begins with all that is there."""
        if not self._llm.config.kv_events:
            why = "KV events are off; start the server with --kv-events"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
        await context.send_initial_metadata(())
        number = 0
        async with KvSubscriber(self._llm.config.kv_events) as batches:
            async for batch in batches:
                number += 1
                yield kv_batch(batch, number)
