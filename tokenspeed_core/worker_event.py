# SPDX-License-Identifier: MIT
"""What a child process tells the launcher about its start, a line of its standard output each.

A line is the record separator U+001E, one JSON object and a line feed (a JSON text sequence,
RFC 7464):

    {"event":"loading","done_bytes":1024,"total_bytes":4096}
    {"event":"ready","seconds":2.5}
    {"event":"failed","message":"tp=2 does not divide ..."}

A worker sends `loading` as often as it likes, then one `ready` when it can take a plan, or one
`failed` before it exits with a code other than 0.  Every other line is log output.
"""

import msgspec

_RECORD_SEPARATOR = "\x1e"
_MAX_LINE_BYTES = 8192


class Loading(msgspec.Struct, frozen=True, tag_field="event", tag="loading"):
    """Bytes of weights read so far, of all that this rank reads."""

    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag_field="event", tag="ready"):
    """The process can work; `seconds` since it started."""

    seconds: float


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """The process cannot work and is about to exit; `message` says what, where and a fix."""

    message: str


WorkerEvent = Loading | Ready | Failed

_decoder: msgspec.json.Decoder[WorkerEvent] = msgspec.json.Decoder(WorkerEvent)


def encode_event(event: WorkerEvent) -> str:
    """Return the event's line without its line feed: `print(encode_event(event), flush=True)`."""
    if isinstance(event, Failed):
        # JSON escapes make a character at most six bytes.
        event = Failed(" ".join(event.message.split())[: _MAX_LINE_BYTES // 8])
    return _RECORD_SEPARATOR + msgspec.json.encode(event).decode()


def decode_event(line: str) -> WorkerEvent | None:
    """Return the event of a line, or None if it is ordinary output."""
    if not line.startswith(_RECORD_SEPARATOR):
        return None
    try:
        return _decoder.decode(line[1:])
    except msgspec.DecodeError:
        return None
