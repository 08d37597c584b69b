# SPDX-License-Identifier: MIT
"""Times the wire: a plan of 256 decode rows in both languages, and a round trip between processes.

The C++ figures are for decode and encode of the frame together, through the module: the cost of
the binding (one `bytes` in, one out) is in them.  The round trip is one decode step of one request
through the real scheduler process and a Python peer that is worker and frontend in one, from the
plan's arrival to the next plan's; nothing else is awake, so that it includes waking the processes.
"""

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from tokenspeed_core.ipc import messages as wire
from tokenspeed_core.ipc.codec import Decoder, encode, int32_column
from tokenspeed_core.scheduler import SchedulerProcess
from tokenspeed_core.scheduler._scheduler import reencode, siphash128

ROWS = 256
PASSES = 5
PLAN = wire.StepPlan(
    1,
    1000,
    block_slots=int32_column(range(16)),
    block_groups=int32_column([0] * 16),
    block_ids=int32_column(range(16)),
    rows=int32_column(range(ROWS)),
    row_tokens=int32_column([1] * ROWS),
    row_flags=bytes([wire.ROW_SAMPLES] * ROWS),
)


def microseconds(call: Callable[[], object], times: int = 20_000) -> list[float]:
    """The mean of each pass."""
    means = []
    for _ in range(PASSES):
        start = time.perf_counter()
        for _ in range(times):
            call()
        means.append((time.perf_counter() - start) / times * 1e6)
    return means


def round_trips(steps: int = 2000) -> list[float]:
    """Microseconds from one plan's arrival to the next one's."""
    to_worker = Decoder(wire.ToWorker)
    with tempfile.TemporaryDirectory(prefix="ts") as folder:
        token = secrets.token_bytes(16)
        endpoints = (f"ipc://{folder}/f", f"ipc://{folder}/w")
        config = wire.SchedulerConfig(
            wire.WIRE_VERSION, token, bytes(16), *endpoints, 1, 1, 64, 10_000, 4, 100, depth=1
        )
        process = SchedulerProcess(config, Path(folder))
        context = zmq.Context()
        frontend, worker = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        frontend.connect(endpoints[0])
        worker.connect(endpoints[1])
        hello = wire.Hello(wire.WIRE_VERSION, token, wire.Role.FRONTEND, "bench")
        frontend.send(encode(hello))
        frontend.recv()
        frontend.send(encode(wire.Submit(1, int32_column([1]), steps + 1, wire.Sampling())))
        worker.send(
            encode(
                msgspec.structs.replace(
                    hello, role=wire.Role.WORKER, num_blocks=1000, block_size=16
                )
            )
        )
        times: list[float] = []
        last = 0.0
        answer = int32_column([5])
        while len(times) < steps:
            parts = worker.recv_multipart()
            if len(parts) < 2:
                continue
            now = time.perf_counter()
            if last:
                times.append((now - last) * 1e6)
            last = now
            plan = to_worker.decode(parts[0])
            assert isinstance(plan, wire.StepPlan)
            digest = parts[1]
            worker.send(encode(wire.StepResult(1, plan.step, digest, answer, b"")))
            worker.send(encode(wire.StepAck(1, plan.step, digest, siphash128(digest, answer))))
        process.kill()
        process.wait()
        context.destroy(linger=0)
    return times


def rows() -> list[dict[str, Any]]:
    frame = encode(PLAN)
    decoder = Decoder(wire.StepPlan)
    assert reencode(frame) == frame
    cases = {
        "python encode": microseconds(lambda: encode(PLAN)),
        "python decode": microseconds(lambda: decoder.decode(frame)),
        "c++ decode + encode": microseconds(lambda: reencode(frame)),
        "digest": microseconds(lambda: siphash128(bytes(16), frame)),
    }
    out = [row(f"{name}, {ROWS} rows", "us_mean", values) for name, values in cases.items()]
    trips = sorted(round_trips())
    for metric, at in (("us_p50", 0.5), ("us_p99", 0.99)):
        out.append(row("step round trip over ipc", metric, [trips[int(at * len(trips))]]))
    return out


def row(case: str, metric: str, values: list[float]) -> dict[str, Any]:
    return {
        "bench": "wire",
        "case": case,
        "metric": metric,
        "unit": "us",
        "ours": round(statistics.median(values), 2),
        "peer": None,
        "peer_name": None,
        "spread": [round(min(values), 2), round(max(values), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    options = parser.parse_args()
    for each in rows():
        if options.json:
            print(msgspec.json.encode(each).decode())
        else:
            print(f"{each['case']:<36}{each['metric']:<10}{each['ours']:>9} us  {each['spread']}")


if __name__ == "__main__":
    main()
