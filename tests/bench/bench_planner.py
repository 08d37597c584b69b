# SPDX-License-Identifier: MIT
"""Times the scheduler core on the host, beside two peers where they are installed.

A timed step is: plan, encode the StepPlan frame and its digest, decode the StepResult frame,
advance.  Not timed: making the result (the worker's work) and sockets.  The steps run in lock step
in the steady state of decode, with prefix caching on, in `bench_planner.cpp`, which this script
builds.  An admission is the time from a submission to the plan with its first row.  With valgrind
there is a count of instructions, too: it repeats to a part in a thousand, whatever else runs.

A peer's step is schedule, reading the rows, and update, through its Python interface.  Each runs in
an interpreter of its own: `--peer-python` has `tokenspeed-scheduler`, `--vllm-python` has vLLM.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from tokenspeed_core.scheduler.process import VARIABLES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PASSES = 3
COUNTED_STEPS = 160

CASES: dict[str, str] = {
    "running=1": "decode --running=1",
    "running=64": "decode --running=64",
    "running=256": "decode --running=256",
    "running=1024": "decode --running=1024",
    "running=256 blocks end together": "decode --running=256 --together",
    "running=16 context=1k": "decode --running=16 --context=1024",
    "running=16 context=128k": "decode --running=16 --context=131072",
    "running=64 cold pool of 40k blocks": "decode --running=64 --blocks=40960",
    "running=64 full cache of 40k blocks": "decode --running=64 --blocks=40960 --full",
    "running=16 context=50k": "decode --running=16 --context=50000",
    "running=16 context=50k, 64 waiting": "decode --running=16 --context=50000 --waiting=64",
    "admission of 128k, new": "admission",
    "admission of 128k, next turn": "admission --session",
    "admission of 128k, next turn, sent whole": "admission --session --whole",
}
PEERS = {
    "tokenspeed-scheduler": ("tokenspeed_scheduler", "bench_planner_peer.py"),
    "vllm": ("vllm", "bench_planner_vllm.py"),
}


def build() -> Path:
    """Build the driver and return it."""
    folder = ROOT / "build" / "bench"
    options = ["-DTOKENSPEED_TESTS=ON", "-DTOKENSPEED_MODULES=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    python = f"-DPython_EXECUTABLE={sys.executable}"
    configure = ["cmake", "-S", str(ROOT / "scheduler"), "-B", str(folder), *options, python]
    for command in (configure, ["cmake", "--build", str(folder), "--target", "bench_planner"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "native" / "bench_planner"


def measure(driver: Path, case: str) -> dict[str, list[float]]:
    """One value a pass of each metric, in microseconds."""
    environment = {**VARIABLES, **os.environ}  # as the executable has it
    command = [driver, *CASES[case].split()]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    return msgspec.json.decode(done.stdout, type=dict[str, list[float]])


def instructions(driver: Path, case: str) -> float:
    """Instructions of one step, or one admission; REQUIRES valgrind."""
    admits = CASES[case].startswith("admission")
    passes = ["--passes=2"] if admits else [f"--steps={COUNTED_STEPS}", "--passes=1"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"),
                *("--collect-atstart=no", "--toggle-collect=*measured_*"),
                *(str(driver), *CASES[case].split(), *passes),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert collected is not None, done.stderr
    return int(collected[1]) / (2 if admits else COUNTED_STEPS)


def peer_step(name: str, python: str, running: int) -> list[float]:
    """Median microseconds of the peer's step, a value a pass."""
    command = [python, str(HERE / PEERS[name][1]), str(running), str(PASSES)]
    done = subprocess.run(command, capture_output=True, check=True)
    medians: list[float] = msgspec.json.decode(done.stdout.splitlines()[-1], type=list[float])
    return medians


def installed(pythons: dict[str, str]) -> dict[str, str]:
    """The peers that their interpreters have; says which are skipped."""
    found = {}
    for name, python in pythons.items():
        look = (
            f"import importlib.util as u; raise SystemExit(u.find_spec({PEERS[name][0]!r}) is None)"
        )
        if subprocess.run([python, "-c", look]).returncode == 0:
            found[name] = python
        else:
            print(f"skipped: {python} has no {name}", file=sys.stderr)
    return found


def row(
    case: str, metric: str, ours: list[float], peer: str, theirs: list[float]
) -> dict[str, Any]:
    return {
        "bench": "planner",
        "case": case,
        "metric": metric,
        "unit": "instructions" if metric == "instructions" else "us",
        "ours": round(statistics.median(ours), 2),
        "peer": round(statistics.median(theirs), 1) if theirs else None,
        "peer_name": peer or None,
        "spread": [round(min(ours), 2), round(max(ours), 2)],
    }


def rows(driver: Path, case: str, peers: dict[str, str], count: bool) -> list[dict[str, Any]]:
    ours = measure(driver, case)
    out = []
    for metric, values in ours.items():
        alike = peers if metric == "step_us_p50" and re.fullmatch(r"running=\d+", case) else {}
        if not alike:
            out.append(row(case, metric, values, "", []))
            continue
        for name, python in alike.items():
            theirs = peer_step(name, python, int(case.split("=")[1]))
            out.append(row(case, metric, values, name, theirs))
    if count:
        out.append(row(case, "instructions", [instructions(driver, case)], "", []))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("--driver", type=Path, help="bench_planner, built already")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--vllm-python", default=sys.executable)
    parser.add_argument("--count", action="store_true", help="count instructions, too; slow")
    options = parser.parse_args()
    if options.count and shutil.which("valgrind") is None:
        print("skipped: instructions, there is no valgrind", file=sys.stderr)
        options.count = False
    peers = installed({"tokenspeed-scheduler": options.peer_python, "vllm": options.vllm_python})
    driver = options.driver or build()
    for case in options.case or list(CASES):
        for one in rows(driver, case, peers, options.count):
            if options.json:
                print(msgspec.json.encode(one).decode(), flush=True)
                continue
            beside = f"{one['peer']:>10} {one['peer_name']}" if one["peer"] else ""
            value = f"{one['ours']:>12,} {one['unit']}"
            print(f"{case:<38}{one['metric']:<14}{value}{beside}", flush=True)


if __name__ == "__main__":
    main()
