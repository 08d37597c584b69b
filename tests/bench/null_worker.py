# SPDX-License-Identifier: MIT
"""A worker process that answers at once: one fixed token a sampling row, nothing computed.

`python null_worker.py ENDPOINT TOKEN_HEX NUM_BLOCKS MARKS`: for each plan that adds a slot it
writes the time.monotonic_ns of its arrival, 8 bytes, to the file MARKS.
"""

import struct
import sys
import time

import zmq

from tokenspeed_core.ipc.codec import Decoder, encode, int32_column, read_column
from tokenspeed_core.ipc.messages import (
    ROW_SAMPLES,
    WIRE_VERSION,
    Heartbeat,
    Hello,
    Role,
    Shutdown,
    StepAck,
    StepPlan,
    StepResult,
    ToWorker,
    Welcome,
)
from tokenspeed_core.scheduler._scheduler import siphash128

TOKEN = 504  # a word of SmolLM2's vocabulary


def main() -> None:
    """Serve one epoch."""
    endpoint, token, num_blocks, marks = sys.argv[1:]
    socket = zmq.Context().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(endpoint)
    peer = (WIRE_VERSION, bytes.fromhex(token), Role.WORKER, "null", 0, 1)
    socket.send(encode(Hello(*peer, num_blocks=int(num_blocks), block_size=16, program_hash=b"p")))
    decoder: Decoder[ToWorker] = Decoder(ToWorker)  # type: ignore[arg-type]
    digest = b""
    with open(marks, "wb", buffering=0) as file:
        while True:
            if not socket.poll(200):
                socket.send(encode(Heartbeat(time.time_ns())))
                continue
            frames = socket.recv_multipart()
            match decoder.decode(frames[0]):
                case Welcome(epoch=epoch):
                    digest = epoch.to_bytes(16, "little")
                case Shutdown():
                    return
                case StepPlan() as plan:
                    if plan.added_slots:
                        file.write(struct.pack("<q", time.monotonic_ns()))
                    digest = siphash128(digest, frames[0])
                    flags = read_column("B", plan.row_flags)
                    sampled = plan.repeated_rows + sum(flag & ROW_SAMPLES != 0 for flag in flags)
                    tokens = int32_column([TOKEN] * sampled)
                    hashed = siphash128(digest, tokens)
                    socket.send(encode(StepResult(plan.epoch, plan.step, digest, tokens, b"")))
                    socket.send(encode(StepAck(plan.epoch, plan.step, digest, hashed)))


if __name__ == "__main__":
    main()
