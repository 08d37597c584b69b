# SPDX-License-Identifier: MIT
"""How long the command line and the import keep a user waiting, beside a bare interpreter.

    python tests/bench/bench_startup.py [--json] [--repeats N]

Runs alternate; figures are medians, the spread is (max - min) / median of ours.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

CASES = {
    "import": [sys.executable, "-c", "import tokenspeed_core"],
    "import_sdk": [sys.executable, "-c", "import tokenspeed_core.sdk"],
    "help": [sys.executable, "-m", "tokenspeed_core", "--help"],
    "serve_help": [sys.executable, "-m", "tokenspeed_core", "serve", "--help"],
}
BARE = [sys.executable, "-c", "pass"]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON row a line")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="default: 9")
    arguments = parser.parse_args()
    for name, command in CASES.items():
        seconds(command)
        pairs = [(seconds(command), seconds(BARE)) for _ in range(arguments.repeats)]
        ours = [pair[0] for pair in pairs]
        median = statistics.median(ours)
        row = {
            "bench": "startup",
            "case": name,
            "metric": "wall time",
            "unit": "s",
            "ours": round(median, 4),
            "peer": round(statistics.median(pair[1] for pair in pairs), 4),
            "peer_name": "python -c pass",
            "spread": round((max(ours) - min(ours)) / median, 3),
        }
        if arguments.json:
            print(json.dumps(row))
        else:
            print(f"{name:<12} {row['ours']:.3f} s, bare python {row['peer']:.3f} s")


if __name__ == "__main__":
    main()
