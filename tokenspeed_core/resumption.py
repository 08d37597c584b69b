# SPDX-License-Identifier: MIT
"""Requests whose scheduler or workers died, until the next ones take them on."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from .engine_errors import EngineLostError
from .ipc.codec import int32_column
from .ipc.messages import Submit
from .ipc.remote_engine import RemoteEngine
from .ipc.run_directory import RunDirectory
from .request_stream import RequestStream
from .shaping import resumed

_LOOK_S = 0.1  # how often it is tried again
# A request that kills a part at once, each time, must not take the engine down for good: the fourth
# death of a part within a minute does that.
_MAX_FRUITLESS = 2

Part = Literal["workers", "scheduler"]


def continued(submit: Submit, tokens: list[int], elapsed_ms: int) -> Submit:
    """Return the request that goes on after `tokens`: they join the prompt.

    What is sampled depends on the seed and the position in the sequence, so the continuation is
    what the lost request would have given.
    """
    return msgspec.structs.replace(
        submit,
        prompt=submit.prompt + int32_column(tokens),
        sampling=msgspec.structs.replace(
            submit.sampling, shaping=resumed(submit.sampling.shaping, int32_column(tokens))
        ),
        max_tokens=submit.max_tokens - len(tokens),
        deadline_ms=max(1, submit.deadline_ms - elapsed_ms) if submit.deadline_ms else 0,
    )


class Resumption:
    """Lost streams, oldest first; `send` is tried on each until it takes them.

    A stream fails with EngineLostError when the engine's run directory is gone, when nothing took
    it within `patience_s`, or when the same part died under it thrice without a token, though all
    were there.  A stream that two such deaths make suspect is sent when no other suspect is under
    way, so that the third is no innocent's.
    """

    def __init__(
        self,
        run: RunDirectory | RemoteEngine,
        send: Callable[[RequestStream], bool],
        patience_s: float,
    ) -> None:
        self._run = run
        self._send = send
        self._patience_s = patience_s
        self._lost: dict[RequestStream, str] = {}  # why
        self._suspect: RequestStream | None = None  # the one that was sent last
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._lost)

    def add(self, stream: RequestStream, reason: str, part: Part, *, was_tried: bool) -> None:
        """Take a stream that was lost; it fails here and now if it is not to be resumed.

        `part` died.  A stream that no worker was there for cannot have killed it.
        """
        if stream.has_advanced:
            stream.fruitless.clear()
        elif was_tried:
            stream.fruitless[part] += 1
        if self._patience_s <= 0 or _most(stream) > _MAX_FRUITLESS:
            stream.fail(EngineLostError(f"{reason}; the request may be sent again"))
            return
        stream.lost_at = time.monotonic()
        self.put_off(stream, reason)

    def put_off(self, stream: RequestStream, reason: str) -> None:
        """Take a stream that a busy scheduler has sent back."""
        self._lost[stream] = reason
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._resume())

    def discard(self, stream: RequestStream) -> None:
        """Forget a stream that its reader gave up."""
        self._lost.pop(stream, None)

    def close(self, reason: str) -> None:
        """Fail all that wait."""
        lost, self._lost = self._lost, {}
        for stream in lost:
            stream.fail(EngineLostError(f"{reason}; the request may be sent again"))

    async def _resume(self) -> None:
        while self._lost:
            if not self._run.is_there:
                self.close("the engine was stopped")
                return
            now = time.monotonic()
            for stream, reason in list(self._lost.items()):
                if self._may_go(stream) and self._send(stream):
                    del self._lost[stream]
                    if _most(stream) == _MAX_FRUITLESS:
                        self._suspect = stream
                elif now - stream.lost_at > self._patience_s:
                    del self._lost[stream]
                    waited = f"{reason}, and none took it within {self._patience_s:g} s"
                    stream.fail(EngineLostError(f"{waited}; the request may be sent again"))
            await asyncio.sleep(_LOOK_S)

    def _may_go(self, stream: RequestStream) -> bool:
        before = self._suspect
        is_clear = before is None or before.is_settled or before in self._lost
        return is_clear or _most(stream) < _MAX_FRUITLESS


def _most(stream: RequestStream) -> int:
    return max(stream.fruitless.values(), default=0)
