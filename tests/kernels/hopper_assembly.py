# SPDX-License-Identifier: MIT
"""Assembles the attention that is written in Gluon, and reads what the assembler made of it."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton import knobs

from tests.kernels.triton_compile import TARGETS
from tests.kernels.triton_launches import recorded
from tokenspeed_core.kernels.triton import attention


def main() -> None:
    """Print JSON of what the machine code has, where keys are in several ranges and have sinks."""
    target, device = TARGETS["sm_90"]
    queries, context = 300, 100000
    batch = SimpleNamespace(
        cache_slots=torch.zeros(queries, dtype=torch.int64),
        query_starts=torch.tensor([0, queries], dtype=torch.int32),
        context_lens=torch.tensor([context], dtype=torch.int32),
        block_tables=torch.zeros(1, context // 16, dtype=torch.int32),
        num_rows=1,
        num_decode_rows=0,
        max_query=queries,
        max_context=context,
        shared_parts=None,
        shared_rows=None,
        most_parts=0,
    )
    q, k, cache, sinks = (
        torch.empty(*shape, dtype=torch.bfloat16)
        for shape in ((queries, 8, 5, 128), (queries, 8, 128), (2, 8, 16, 128), (8, 5))
    )
    with recorded(pytest.MonkeyPatch(), device) as launches:
        attention.paged_attention(q, k, k, cache, cache, batch, 0.1, 0, sinks)
    (launch,) = (each for each in launches if each.function.__name__ == "extend_rows")
    print(json.dumps(_read(launch.compile(target).asm["ptx"])))


def _read(ptx: str) -> dict[str, int]:
    """Assemble, and count bytes spilled, and the instructions that the kernel is about."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = f"{folder}/source.ptx", f"{folder}/made.cubin"
        Path(source).write_text(ptx)
        said = subprocess.run(
            [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", source, "-o", made],
            check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip
        code = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-sass", made], check=True, capture_output=True, text=True
        ).stdout
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?(.*?) *;", code)
    return {
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "serialized": said.count("serialized"),
        "copies": sum(line.startswith("UTMALDG") for line in lines),
        "products of registers": sum(bool(_OF_REGISTERS.match(line)) for line in lines),
        "early": _overwritten(lines),
    }


_OF_REGISTERS = re.compile(r"HGMMA\S* R\d+, R(\d+), gdesc")
_WRITES = re.compile(r"(\S+) (?:P\w+, ){0,2}R(\d+)\b")
_NO_WRITE = ("ST", "BAR", "BRA", "SYNCS", "U", "RED", "R2UR", "HGMMA")


def _overwritten(lines: list[str]) -> int:
    """Return how many registers are written while a product may still read them.

    Assemblers before CUDA 13.3 are known to do so (triton-lang/triton#11781).
    """
    reads: set[int] = set()
    count = 0
    for line in lines:
        if found := _OF_REGISTERS.match(line):
            reads |= set(range(int(found[1]), int(found[1]) + 4))
        elif line.startswith("WARPGROUP.DEPBAR") and line.endswith("0x0"):
            reads = set()
        elif not line.startswith(_NO_WRITE) and (found := _WRITES.match(line)):
            wide = 4 if ".128" in found[1] else 2 if ".64" in found[1] or ".WIDE" in found[1] else 1
            count += len(reads & set(range(int(found[2]), int(found[2]) + wide)))
    return count


if __name__ == "__main__":
    main()
