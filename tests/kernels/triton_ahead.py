# SPDX-License-Identifier: MIT
"""Compiles ahead what calls would launch on a device that is not here: `python -m ...`."""

import json
from types import SimpleNamespace

import pytest
import torch
import triton
from triton import knobs

from tests.kernels.triton_compile import TARGETS
from tokenspeed_core.kernels.triton import compilation, norm, pointwise


def main() -> None:
    """Print the launched calls, the kernels found, and those in the cache before and after."""
    target, device = TARGETS["sm_90"]
    there = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    triton.runtime.driver.set_active(there)
    calls = 0

    def launches() -> None:
        nonlocal calls
        calls += 1
        for rows in (1, 7, 7):
            x, w = torch.rand(rows, 64), torch.rand(64)
            y = norm.rms_norm(x, w, 1e-6)
            assert not y.any(), "memory that no kernel wrote is zeros"
            y = pointwise.silu_mul(x)

    hits: list[bool] = []
    with pytest.MonkeyPatch().context() as patch:
        for module in (norm, pointwise):
            patch.setattr(module, "device_of", lambda x: device)
        sources: list[compilation.Source] = []
        with compilation.recorded(sources.append):
            launches()
        compilation.compile_ahead(launches, "tiny")
        compilation.compile_ahead(launches, "tiny")  # nothing is left to do
        knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
        for source in sources:
            source.compile(target)
    print(json.dumps([calls, sorted(each.name for each in sources), hits]))


if __name__ == "__main__":
    main()
