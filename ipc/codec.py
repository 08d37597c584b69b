# SPDX-License-Identifier: MIT
"""Message structs to bytes and back, with sizes checked before anything is allocated."""

import array
import sys
from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from .messages import MAX_FRAME_BYTES

Message = TypeVar("Message")

assert sys.byteorder == "little", "columns are little-endian in memory; this host is not"

_encoder = msgspec.msgpack.Encoder()


class WireError(ValueError):
    """A frame that is not one of the messages expected on its socket."""


def encode(message: msgspec.Struct) -> bytes:
    """Return the message's bytes, the same that the C++ codec writes."""
    return _encoder.encode(message)


class Decoder(Generic[Message]):
    """Reads the messages of one socket: `Decoder(ToFrontend).decode(frame)`."""

    def __init__(self, expected: type[Message]) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(expected)
        self._expected = expected

    def decode(self, frame: bytes | memoryview) -> Message:
        """Return the message in `frame`.

        Raises:
            WireError: the frame is too large, is not msgpack, or is no message of this socket.
        """
        if len(frame) > MAX_FRAME_BYTES:
            raise WireError(
                f"frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}; "
                f"send fewer tokens in one message"
            )
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            head = bytes(frame[:16]).hex(" ")
            raise WireError(
                f"frame of {len(frame)} bytes starting {head!r} is no {self._expected}: {error}; "
                f"peers must speak the same wire version"
            ) from error


def int32_column(values: Iterable[int]) -> bytes:
    """Pack values as little-endian int32.

    Raises:
        OverflowError: a value does not fit 32 bits.
    """
    if isinstance(values, array.array) and values.typecode == "i":
        return values.tobytes()
    return array.array("i", values).tobytes()


def int64_column(values: Iterable[int]) -> bytes:
    """Pack values as little-endian int64."""
    return array.array("q", values).tobytes()


def uint64_column(values: Iterable[int]) -> bytes:
    """Pack values as little-endian uint64."""
    return array.array("Q", values).tobytes()


def float32_column(values: Iterable[float]) -> bytes:
    """Pack values as little-endian float32."""
    return array.array("f", values).tobytes()


def read_column(typecode: str, column: bytes) -> array.array:  # type: ignore[type-arg]
    """Unpack a column: typecode "i" int32, "q" int64, "Q" uint64, "f" float32, "B" uint8.

    Raises:
        WireError: the column's size is no multiple of the element size.
    """
    values = array.array(typecode)
    try:
        values.frombytes(column)
    except ValueError as error:
        raise WireError(
            f"column of {len(column)} bytes is no whole number of {values.itemsize}-byte values"
        ) from error
    return values
