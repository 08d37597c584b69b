# SPDX-License-Identifier: MIT
"""Compiles every Triton kernel for a device that need not be here.

`python -m ... sm_90 plain`, or `variants` instead of any other word, which are more of each.
"""

import json
import sys

import pytest
from triton.backends.compiler import GPUTarget

from tests.kernels.triton_launches import every_call, recorded
from tokenspeed_core.kernels.triton.device import Device

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 166912, 8, False)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 232448, 8, True, True)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 232448, 8, True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 65536, 2, False)),
    "gfx950": (GPUTarget("hip", "gfx950", 64), Device(256, 65536, 2, False)),
}

# gfx942 has another float8, and sm_80 none.
WITH_FLOAT8 = ("sm_90", "sm_100", "gfx950")


def main(name: str, kind: str) -> None:
    """Print a JSON line for each kernel: its name, its shared memory and what the device has."""
    target, device = TARGETS[name]
    with recorded(pytest.MonkeyPatch(), device) as launches:
        for call in every_call(variants=kind == "variants", narrow=name in WITH_FLOAT8):
            call()
    for each in launches:
        made = each.compile(target)
        waits = "griddepcontrol.wait" in made.asm.get("ptx", "")
        row = (each.function.__name__, made.metadata.shared, device.shared_bytes, waits)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
