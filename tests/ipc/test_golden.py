# SPDX-License-Identifier: MIT
"""The bytes of every message, and that both languages write and read the same ones."""

import importlib.util
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import Decoder, WireError, encode
from tokenspeed_core.scheduler._scheduler import SchedulerError, reencode

GOLDEN = Path(__file__).parents[1] / "golden"
spec = importlib.util.spec_from_file_location("golden_samples", GOLDEN / "samples.py")
assert spec is not None
assert spec.loader is not None
golden_samples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden_samples)
SAMPLES: dict[str, msgspec.Struct] = golden_samples.SAMPLES


def pinned(name: str) -> bytes:
    return (GOLDEN / f"{name}.bin").read_bytes()


def fields(name: str) -> list[Any]:
    decoded = msgspec.msgpack.decode(pinned(name))
    assert isinstance(decoded, list)
    return decoded


def test_every_message_is_pinned() -> None:
    structs = {
        value
        for value in vars(wire).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__struct_config__.tag is not None
    }
    assert structs == {type(message) for message in SAMPLES.values()}
    assert {path.stem for path in GOLDEN.glob("*.bin")} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_python_writes_and_reads_the_pinned_bytes(name: str) -> None:
    assert encode(SAMPLES[name]) == pinned(name)
    assert Decoder(type(SAMPLES[name])).decode(pinned(name)) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_cpp_reads_and_writes_the_pinned_bytes(name: str) -> None:
    assert reencode(pinned(name)) == pinned(name)


@pytest.mark.parametrize("name", SAMPLES)
def test_both_ignore_fields_of_a_newer_writer(name: str) -> None:
    newer = msgspec.msgpack.encode([*fields(name), 7, [1, {"a": [b"b"]}], b"new"])
    assert Decoder(type(SAMPLES[name])).decode(newer) == SAMPLES[name]
    assert reencode(newer) == pinned(name)


@pytest.mark.parametrize("name", SAMPLES)
def test_both_need_the_same_fields_of_an_older_writer(name: str) -> None:
    message = SAMPLES[name]
    for kept in range(1, len(fields(name))):
        older = msgspec.msgpack.encode(fields(name)[:kept])
        try:
            read = Decoder(type(message)).decode(older)
        except WireError:
            with pytest.raises(SchedulerError, match="missing"):
                reencode(older)
        else:
            assert reencode(older) == encode(read)


@pytest.mark.parametrize("name", SAMPLES)
def test_both_refuse_a_field_of_another_type(name: str) -> None:
    for at in range(1, len(fields(name))):
        changed = fields(name)
        changed[at] = {"no": "field is a map"}
        frame = msgspec.msgpack.encode(changed)
        with pytest.raises(WireError):
            Decoder(type(SAMPLES[name])).decode(frame)
        with pytest.raises(SchedulerError, match=f"field {at - 1} "):
            reencode(frame)


def test_both_refuse_what_is_no_message() -> None:
    frames = [b"", b"\x00", b"\x90", b"\x91\xa1a", b"\xc1", b"\x91\x63", pinned("abort") + b"\x00"]
    frames += [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff\x01", b"\x92\x0a\xc6\xff\xff\xff\xff"]
    for frame in frames:
        with pytest.raises(WireError):
            Decoder(wire.FromFrontend | wire.FromWorker).decode(frame)
        with pytest.raises(SchedulerError):
            reencode(frame)
