# SPDX-License-Identifier: MIT
"""The kernel that an op runs on a tensor."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..kernels.registry import select


def kernel(op: str, x: Tensor, *needs: str) -> Callable[..., Any]:
    """Return the preferred kernel of `op` for the device and dtype of `x` with these features.

    Raises:
        NoKernelError: nothing registered is legal there.
    """
    # `device.type` makes a string each time, at several times the cost of all the rest here.
    return select(op, "cpu" if x.is_cpu else x.device.type, x.dtype, needs)
