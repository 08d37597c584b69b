# SPDX-License-Identifier: MIT
"""Cases tell a right kernel from a wrong one, and `tokenspeed kernels` says so."""

import attrs
import pytest
import torch

from tokenspeed_core import ops  # noqa: F401  (registers every backend)
from tokenspeed_core.__main__ import main
from tokenspeed_core.kernels.case import TOLERANCE, cases


@pytest.mark.parametrize("tokens", [1, 5])
def test_every_kernel_here_is_near_its_reference(tokens: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases("cpu", dtype, tokens, 64):
            kernels = case.kernels()
            assert kernels[-1].backend == "torch"
            for kernel in kernels:
                assert case.error(kernel) < TOLERANCE[dtype], (case.op, kernel.backend)


def test_a_kernel_that_is_wrong_in_one_row_is_found() -> None:
    for case in cases("cpu", torch.float32, 4, 64):
        (kernel,) = [each for each in case.kernels() if each.backend == "torch"]

        def wrong(*args, run=kernel.run):
            result = run(*args)
            first = result[0] if isinstance(result, tuple) else result
            first[-1] += first[-1].abs().max()
            return result

        assert case.error(attrs.evolve(kernel, run=wrong)) > TOLERANCE[torch.float32], case.op


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list", "rms_norm", "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["rms_norm"] * len(rows)
    assert sum(" runs" in row for row in rows) == 1
    assert main(["kernels", "explain", "linear", "--device", "cpu", "--dtype", "float16"]) == 0
    assert "refuses cpu with torch.float16" in capsys.readouterr().out
    assert main(["kernels", "check", "linear", "--device", "cpu", "--width", "64"]) == 0
    assert "all hold on cpu" in capsys.readouterr().out
    words = ["kernels", "bench", "silu_mul", "--device", "cpu", "--width", "64"]
    assert main([*words, "--bandwidth", "0.01"]) == 0
    assert "floor" in capsys.readouterr().out
    assert main(["kernels", "list", "unheard_of"]) == 1
    assert "unheard_of" in capsys.readouterr().err
