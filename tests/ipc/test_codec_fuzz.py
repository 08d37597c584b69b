# SPDX-License-Identifier: MIT
"""Mutated frames into every Python decoder: a message or a WireError, nothing else."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import Decoder, WireError, encode

GOLDEN = [
    path.read_bytes() for path in sorted((Path(__file__).parents[1] / "golden").glob("*.bin"))
]
SOCKETS = {
    "to frontend": wire.ToFrontend,
    "to worker": wire.ToWorker,
    "from frontend": wire.FromFrontend,
    "from worker": wire.FromWorker,
    "config": wire.SchedulerConfig,
}
MARKERS = bytes(
    [0x90, 0x9F, 0xC0, 0xC1, 0xC4, 0xC6, 0xCB, 0xCF, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xFF]
)
FRAMES = 100_000


def mutate(seed: int) -> bytes:
    dice = random.Random(seed)
    frame = bytearray(dice.choice(GOLDEN))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(frame) + 1)
        match dice.randrange(6):
            case 0 if at < len(frame):
                frame[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(frame):
                frame[at] = dice.choice(MARKERS)
            case 2:
                del frame[at:]
            case 3:
                frame.insert(at, dice.randrange(256))
            case 4:
                del frame[at : at + dice.randint(1, 5)]
            case _:
                other = dice.choice(GOLDEN)
                frame[at:at] = other[dice.randrange(len(other)) :]
    return bytes(frame)


def shrink(frame: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The frame with every run of bytes left out that the failure does not need."""
    run = len(frame) // 2
    while run > 0:
        at = 0
        while at + run <= len(frame):
            shorter = frame[:at] + frame[at + run :]
            if fails(shorter):
                frame = shorter
            else:
                at += run
        run //= 2
    return frame


@pytest.mark.parametrize("socket", SOCKETS)
def test_every_frame_is_read_or_refused(socket: str) -> None:
    decoder: Decoder[wire.Heartbeat] = Decoder(SOCKETS[socket])

    def fails(frame: bytes) -> bool:
        try:
            message = decoder.decode(frame)
        except WireError:
            return False
        except Exception:
            return True
        again = encode(message)  # compared as bytes: a NaN is not equal to itself
        return encode(decoder.decode(again)) != again

    for seed in range(FRAMES):
        frame = mutate(seed)
        if fails(frame):
            pytest.fail(f"seed {seed}: {shrink(frame, fails).hex(' ')}")
