# SPDX-License-Identifier: MIT
"""One or more messages of every kind, whose bytes are pinned beside this file.

`python tests/golden/samples.py` writes the files.  A change of an existing file is a change of the
wire: only appended fields may do that, and the wire version says so.
"""

from pathlib import Path

import msgspec

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import (
    encode,
    float32_column,
    int32_column,
    int64_column,
    uint64_column,
)

FOLDER = Path(__file__).parent
DIGEST = bytes(range(16))

SAMPLES: dict[str, msgspec.Struct] = {
    "hello_frontend": wire.Hello(wire.WIRE_VERSION, DIGEST, wire.Role.FRONTEND, "api 0"),
    "hello_worker": wire.Hello(
        wire.WIRE_VERSION, DIGEST, wire.Role.WORKER, "wörker", 3, 8, 40_000, 16, b"\x01" * 16,
        bytes([wire.GroupKind.FULL, wire.GroupKind.WINDOW, wire.GroupKind.STATE]),
        int32_column([16, 16, 2048]), int32_column([0, 4096, 2048]), int32_column([4, 4, 1]),
        100_000, 7,
    ),
    "welcome": wire.Welcome(1, 2**40, True, 131_072, 152_064, 16, 65_536, 64),
    "refused": wire.Refused(wire.RefusalCode.SHAPE, "rank 1 has blocks of 32 tokens"),
    "heartbeat": wire.Heartbeat(2**62 + 1),
    "hello_required": wire.HelloRequired(),
    "shutdown": wire.Shutdown("drained"),
    "submit": wire.Submit(
        2**64 - 1,
        int32_column(range(300)),
        70_000,
        wire.Sampling(0.7, 40, 0.95, 2**64 - 1, True, b"shaping"),
        int32_column([2, 151_645]),
        -7,
        b"tenant",
        "session",
        2500,
        300_000,
        3,
        70_000,
    ),
    "submit_short": wire.Submit(0, int32_column([1]), 1, wire.Sampling()),
    "abort": wire.Abort(12, 34),
    "abort_all": wire.Abort(200),
    "session_hint": wire.SessionHint("session", wire.SessionAction.RETAIN, 300_000, b"tenant"),
    "token_deltas": wire.TokenDeltas(
        65_536,
        uint64_column([1, 2**63, 3]),
        int32_column([1, 1, 0]),
        int32_column([17, 42]),
        float32_column([-0.5, -1.25]),
        bytes([0, wire.FinishReason.STOP, wire.FinishReason.ABORT]),
        int32_column([0, 4096, 16]),
        uint64_column([2**63]),
        int32_column([1024]),
        int32_column([700]),
        int32_column([512]),
        int32_column([0]),
        int32_column([80]),
        int32_column([42]),
        bytes([1]),
        int32_column([1500]),
        int64_column([65_530]),
        uint64_column([2**63, 1]),
        int32_column([3, 0]),
        b"top",
        1_000_000_007, 1_000_900_001,
    ),
    "profile": wire.Profile("/run/profile"),
    "rejected": wire.Rejected(9, wire.RefusalCode.TOO_LONG, "x" * 300),
    "stats": wire.Stats(
        2**50, 3, True, 256, 64, 40_000, 1000, 30_000, 9000, 2**33, 2**34, 2**34 - 1, 2**31, 5,
        70_000, 127, 128, 2, 1_234_567, 89, 160_000, 40_000, 2**31, 300, 2, 64, 4096, 2**34, 700,
        0, 512, 2**33, 2**32, 2**40,
    ),
    "step_plan": wire.StepPlan(
        1, 2**33, int32_column([4]), int32_column([4, 5]), int32_column([32, 0]),
        float32_column([0.0, 0.5]), int32_column([0, 50]), float32_column([1.0, 0.25]),
        uint64_column([0, 2**64 - 1]), bytes([0, 1]), int32_column([4, 4, 5]),
        int32_column([0, 0, 0]), int32_column([7, 9, 70_000]), int32_column([0]),
        int32_column([1]), int32_column([2]), int32_column([4]), int32_column([-1]),
        int32_column([0]), int32_column([0, 4, 5]), int32_column([1, 1, 90]), bytes([2, 3, 1]),
        int32_column(range(91)), int32_column([1]), int32_column([0]), int32_column([7]),
        int32_column([0]), int32_column([2, 2]), int32_column([0, 1]), int32_column([5, 90_000]),
        int32_column([9, 10]), int32_column([5]), int32_column([2]), int32_column([0, 7]),
        b"shaping", int32_column([0, 2]), int32_column([3, 4]), int32_column([4]),
        int32_column([0]), int32_column([8000]), 200,
    ),
    "step_plan_decode": wire.StepPlan(
        1, 2, rows=int32_column(range(256)), row_tokens=int32_column([1] * 256),
        row_flags=bytes([wire.ROW_SAMPLES] * 256),
    ),
    "step_result": wire.StepResult(
        1, 2, DIGEST, int32_column([5, -1]), float32_column([-0.125, 0.0]), int32_column([1, 1]),
        int32_column([7, 9]), int32_column([0, 3]), b"top", 1_000_000_007, 1_000_900_001,
    ),
    "step_ack": wire.StepAck(1, 2, DIGEST, DIGEST[::-1]),
    "worker_failed": wire.WorkerFailed(1, 2, 3, "out of memory"),
    "transfers": wire.Transfers(1, 2, int32_column([1, 2]), bytes([1, 0])),
    "scheduler_config": wire.SchedulerConfig(
        1, DIGEST, DIGEST, "ipc:///run/f", "ipc:///run/w", 8, 256, 8192, 131_072, 4096, 152_064,
        3, False, 100, 4242, 2048, "lru", 1.25, 5000, "/run/box", 1_000_000,
        2500, "ipc:///run/kv", "ipc:///run/kv-replay", "kv@pod@model", "z" * 40,
        "tcp://0.0.0.0:5555", "y" * 40, DIGEST,
    ),
}  # fmt: skip

if __name__ == "__main__":
    for name, message in SAMPLES.items():
        (FOLDER / f"{name}.bin").write_bytes(encode(message))
