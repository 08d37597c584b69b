# SPDX-License-Identifier: MIT
"""What an engine's prefix cache holds, told as it changes: the shape of vLLM's KV events.

A message is three frames: topic, sequence (8 bytes, big-endian), msgpack of a `KvEventBatch`.  A
replay socket tells missed batches again; `scheduler/csrc/net/cache_feed.h` says how.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq
import zmq.asyncio
import zmq.auth

from .codec import WireError
from .messages import MAX_FRAME_BYTES

_IDLE_MS = 1000  # of silence, after which the replay socket is asked what was missed
_REPLAY_MS = 5000
_END = bytes([255]) * 8


class BlockStored(msgspec.Struct, frozen=True, array_like=True, tag="BlockStored"):
    """Blocks that continue each other can be found from now on."""

    block_hashes: list[int]
    parent_block_hash: int | None  # None: the first block of a prompt without a cache salt
    token_ids: list[int]  # of all blocks, back to back
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, array_like=True, tag="BlockRemoved"):
    """Blocks cannot be found any more."""

    block_hashes: list[int]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, array_like=True, tag="AllBlocksCleared"):
    """Nothing can be found any more."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, array_like=True):
    """The events of one moment, in order."""

    ts: float  # Unix time in seconds
    events: list[KvEvent]
    data_parallel_rank: int | None = None


_decoder = msgspec.msgpack.Decoder(KvEventBatch)


def replay_endpoint(endpoint: str) -> str:
    """Return where batches are told again: `-replay` behind a path, the next port of a host."""
    host, colon, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp://") and port.isdigit():
        return f"{host}{colon}{int(port) + 1}"
    return f"{endpoint}-replay"


class CurveKeyError(ValueError):
    """A file that holds no CURVE key."""


def secret_key(path: Path | str) -> str:
    """Return the secret key of a certificate that `zmq.auth.create_certificates` wrote.

    Raises:
        CurveKeyError: there is none.
    """
    try:
        key = zmq.auth.load_certificate(path)[1]
    except (OSError, ValueError) as error:
        raise CurveKeyError(f"{path} is no certificate: {error}") from error
    if key is None:
        raise CurveKeyError(f"{path} holds no secret key; give the file that ends in .key_secret")
    return key.decode()


class KvSubscriber:
    """Follows a cache: `async with KvSubscriber(endpoint) as batches: async for batch in batches`.

    The first batches make up what is there already, so that they add up to the cache's index.  A
    gap is closed by the replay socket; what it cannot tell any more comes as a batch that clears
    everything and stores what there is.  `server_key` is a file with the engine's public CURVE key.
    """

    def __init__(self, endpoint: str, server_key: Path | str | None = None) -> None:
        self._endpoint = endpoint
        self._server_key = server_key
        self._next = 0  # sequence

    async def __aenter__(self) -> Self:
        self._context = zmq.asyncio.Context()
        self._live = self._connect(zmq.SUB, self._endpoint)
        self._live.subscribe(b"")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)

    def _connect(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if self._server_key is not None:
            socket.curve_serverkey = zmq.auth.load_certificate(self._server_key)[0]
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(endpoint)
        return socket

    async def __aiter__(self) -> AsyncIterator[KvEventBatch]:
        """Yield batches in order of their sequence, none twice.

        Raises:
            WireError: a frame is no batch of events.
        """
        async for batch in self._missed():
            yield batch
        while True:
            if not await self._live.poll(_IDLE_MS):
                async for batch in self._missed():
                    yield batch
                continue
            _topic, sequence, payload = await self._live.recv_multipart()
            number = int.from_bytes(sequence, "big")
            if number > self._next:
                async for batch in self._missed():
                    yield batch
            if number >= self._next:
                self._next = number + 1
                yield _decoded(payload)

    async def _missed(self) -> AsyncIterator[KvEventBatch]:
        """Yield what the replay socket tells from the next sequence on; nothing if it is silent."""
        replay = self._connect(zmq.DEALER, replay_endpoint(self._endpoint))
        try:
            await replay.send_multipart([b"", self._next.to_bytes(8, "big")])
            while await replay.poll(_REPLAY_MS):
                _, sequence, payload = await replay.recv_multipart()
                if sequence == _END:
                    return
                self._next = int.from_bytes(sequence, "big") + 1
                yield _decoded(payload)
        finally:
            replay.close()


def _decoded(payload: bytes) -> KvEventBatch:
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        what = f"a frame of {len(payload)} bytes is no batch of KV events: {error}"
        raise WireError(what) from error
