# SPDX-License-Identifier: MIT
"""Every Triton kernel compiles for five devices from a machine that has none of them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)
KERNELS = {
    "vector", "matrix", "norm_row", "silu_mul_row", "table_row", "slot_row", "rotate_heads",
    "decode", "attend_shared", "attend_latents", "delta_rule", "convolve", "prepare", "extend",
    "merge", "choose", "row_hidden", "row_update", "ranks", "expert_hidden", "expert_down",
    "expert_sum", "keep_latents", "sum_ranks", "sum_parts", "sum_words",
    "find_top", "count_digit", "weigh", "draw_part", "pick_part", "draw_row",
}  # fmt: skip


# Each differs little from one that is always tried.
_NEAR = [
    pytest.param(name, kind, marks=pytest.mark.soak)
    for name, kind in (
        ("sm_80", "optimised"), ("sm_90", "variants"), ("sm_100", "optimised"),
        ("gfx950", "optimised"),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "kind"), [("sm_80", "plain"), ("sm_90", "plain"), ("gfx942", "plain"), *_NEAR]
)
def test_every_kernel_compiles(target: str, kind: str, tmp_path: Path) -> None:
    # NVIDIA's assembler takes a fourth of the time, most of it to optimise what nobody runs here.
    env = {"DISABLE_PTXAS_OPT": "1"} if kind == "plain" else {}
    lines = _ran(tmp_path, "tests.kernels.triton_compile", target, kind, **env)
    rows = [json.loads(line) for line in lines]
    gathered = {"gather"} if target in ("sm_90", "sm_100") else set()  # it needs much shared memory
    gathered |= {"extend_rows"} if target == "sm_90" else set()
    made = {"float8_matrix", "float8_row", "rounded_groups"}
    narrow = made if target in ("sm_90", "sm_100", "gfx950") else set()
    assert {row[0] for row in rows} == KERNELS | gathered | narrow
    for name, shared, limit, waits in rows:
        assert shared <= limit, name
        # A kernel launched ahead of its predecessor's end must wait for it, or break others.
        assert waits == (target in ("sm_90", "sm_100")), name


def test_the_assembler_keeps_to_what_the_hopper_attention_is_written_for(tmp_path: Path) -> None:
    (line,) = _ran(tmp_path, "tests.kernels.hopper_assembly")
    counts = json.loads(line)
    assert counts.pop("copies") == 4  # keys and values, 64 numbers of a row at a time
    # Of 16 keys each, in the two loops and behind them, of two groups of warps.
    assert counts.pop("products of registers") == 8 * 3 * 2
    assert counts.pop("spilled") <= 16  # a number or two, stored before the loops and read behind
    assert not any(counts.values()), counts


def test_kernels_are_compiled_ahead_in_other_processes(tmp_path: Path) -> None:
    (line,) = _ran(tmp_path, "tests.kernels.triton_ahead")
    calls, names, hits = json.loads(line)
    # Three rows of two kernels are two compilations; a stamp says that they are there.
    assert calls == 2
    assert names == ["norm_row", "silu_mul_row"]
    assert hits == [True, True]
    assert len(list(tmp_path.glob("tokenspeed-*"))) == 1


def _ran(cache: Path, module: str, *arguments: str, **variables: str) -> list[str]:
    """Return the lines a module prints in a process of its own.

    The interpreter and the compiler define kernels differently.
    """
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache), **variables}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
