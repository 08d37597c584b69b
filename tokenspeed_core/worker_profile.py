# SPDX-License-Identifier: MIT
"""What a rank does while it is profiled: torch's trace of its steps."""

import contextlib
import json
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class WorkerProfile:
    """Traces from its making to `write`; steps in between are named by `step`."""

    def __init__(self, directory: Path, rank: int, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._file = directory / f"worker-{rank}.json"
        self._rank = rank
        self._profile = profile(activities=activities)
        self._profile.start()

    def step(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Name what the body does after the step."""
        return record_function(f"step {number}")

    def write(self) -> None:
        """End the trace and leave it in the directory, whole or not at all."""
        self._profile.stop()
        raw = self._file.with_suffix(".raw")
        self._profile.export_chrome_trace(str(raw))
        trace = json.loads(raw.read_bytes())
        raw.unlink()
        # torch tells Unix time; the processes of an engine share the monotonic clock
        base_ns = int(trace.get("baseTimeNanoseconds", 0)) - (time.time_ns() - time.monotonic_ns())
        for event in trace["traceEvents"]:
            if "ts" in event:
                event["ts"] += base_ns / 1e3
        whole = {"rank": self._rank, "traceEvents": trace["traceEvents"]}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(whole))
        part.rename(self._file)
