# SPDX-License-Identifier: MIT
"""`tokenspeed env`: what this machine has of what an engine needs."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from .. import __version__

HELP = "show versions, native parts and CPU features"
DESCRIPTION = "Show what this machine has of what an engine needs; exit 1 if a part is missing."

_PACKAGES = ("torch", "pyzmq", "msgspec", "attrs", "tokenizers", "starlette", "uvicorn", "numpy")
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    missing = 0
    for name, value, is_there in _rows():
        missing += not is_there
        print(f"{name:<14} {value}" if is_there else f"{name:<14} MISSING: {value}")
    return 1 if missing else 0


def _rows() -> Iterator[tuple[str, str, bool]]:
    yield "tokenspeed", __version__, True
    yield "python", f"{platform.python_version()} ({sys.executable})", True
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package), True
        except metadata.PackageNotFoundError:
            yield package, f"pip install {package}", False
    yield "libzmq", *_libzmq()
    yield "scheduler", *_scheduler()
    yield "cpu", f"{len(os.sched_getaffinity(0))} cores, {_cpu_flags() or 'features unknown'}", True


def _libzmq() -> tuple[str, bool]:
    from ..scheduler.process import find_libzmq

    found = find_libzmq()
    if found is not None:
        return str(found), True
    return "pyzmq carries none; `pip install --force-reinstall pyzmq`", False


def _scheduler() -> tuple[str, bool]:
    from ..scheduler.process import SchedulerNotFoundError, find_executable

    try:
        return str(find_executable()), True
    except SchedulerNotFoundError as error:
        return str(error), False


def _cpu_flags() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return " ".join(flag for flag in _CPU_FLAGS if flag in flags)
