# SPDX-License-Identifier: MIT
"""What a launch must know of the device it runs on."""

from functools import cache
from typing import Any

import attrs
import torch
import triton
from torch import Tensor

# Programs that one launch may merge at once; each has a counter that it leaves at zero.
MERGES = 1 << 16


@attrs.frozen
class Device:
    """A kind of processor, as far as launches depend on it."""

    processors: int
    shared_bytes: int  # of one program
    max_stages: int  # of a software pipeline
    has_dependent_launch: bool  # a kernel may start before the one ahead of it has ended
    has_gluon: bool = False  # Hopper, and the Triton that `hopper_attention.py` is for

    def options(self, warps: int) -> dict[str, Any]:
        """Return launch options; kernels take the constexpr PDL beside them."""
        return {"num_warps": warps, **({"launch_pdl": True} if self.has_dependent_launch else {})}


# Triton's interpreter, on tensors of the host: few programs, so that tests stay quick.
INTERPRETER = Device(4, 1 << 20, 1, False)


def device_of(x: Tensor) -> Device:
    """Return what is known of the device that holds `x`."""
    return _device(x.device) if x.is_cuda else INTERPRETER


@cache
def _device(device: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Device(properties.multi_processor_count, 64 << 10, 2, False)
    return Device(
        processors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        max_stages=8,
        has_dependent_launch=properties.major >= 9,
        has_gluon=properties.major == 9 and triton.__version__.startswith("3.6."),
    )


def counters(x: Tensor) -> Tensor:
    """Return `[MERGES]` int32 zeros on the device of `x`, shared by all launches of its stream.

    Programs count arrivals there and the last one sets its counter back.  A launch that was cut
    short leaves them dirty: `counters(x).zero_()` then.
    """
    return _counters(x.device)


@cache
def _counters(device: torch.device) -> Tensor:
    return torch.zeros(MERGES, dtype=torch.int32, device=device)
