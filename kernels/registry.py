# SPDX-License-Identifier: MIT
"""The table of kernels: which function computes an op on which device and dtype."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TypeVar

import attrs
import torch

Function = TypeVar("Function", bound=Callable[..., Any])


class NoKernelError(LookupError):
    """No registered kernel can compute an op on this device and dtype."""


@attrs.frozen
class Kernel:
    """One way to compute an op.

    `supports` is the capability predicate: it says whether this kernel is legal for a device type
    and dtype on this machine.  `features` are the variants of the op that it computes beyond the
    plain one.  `preference` orders legal kernels; the highest runs.
    """

    op: str
    backend: str
    run: Callable[..., Any]
    supports: Callable[[str, torch.dtype], bool]
    preference: int = 0
    features: frozenset[str] = frozenset()


_kernels: list[Kernel] = []


def register(
    op: str,
    *,
    backend: str,
    supports: Callable[[str, torch.dtype], bool] = lambda device_type, dtype: True,
    preference: int = 0,
    features: Collection[str] = (),
) -> Callable[[Function], Function]:
    """Register the decorated function as a kernel for `op`."""

    def add(run: Function) -> Function:
        _kernels.append(Kernel(op, backend, run, supports, preference, frozenset(features)))
        select.cache_clear()
        return run

    return add


@cache
def select(
    op: str, device_type: str, dtype: torch.dtype, needs: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Return the most preferred kernel that is legal for `op` here and has the features it needs.

    Raises:
        NoKernelError: nothing registered for `op` supports the device, dtype and features.
    """
    return choose(op, device_type, dtype, needs=needs).run


def choose(
    op: str,
    device_type: str,
    dtype: torch.dtype,
    backend: str | None = None,
    needs: Collection[str] = (),
) -> Kernel:
    """Return the kernel `select` would run, or the named backend's if it is legal.

    Raises:
        NoKernelError: nothing registered for `op` supports the device, dtype and backend.
    """
    legal = [
        kernel
        for kernel in candidates(op)
        if backend in (None, kernel.backend)
        and kernel.features.issuperset(needs)
        and kernel.supports(device_type, dtype)
    ]
    if not legal:
        known = ", ".join(kernel.backend for kernel in candidates(op)) or "none"
        raise NoKernelError(
            f"no kernel for op {op!r} on {device_type} in {dtype}"
            f"{f' with {needs}' if needs else ''}"
            f"{f' from backend {backend!r}' if backend else ''}; registered backends: {known}. "
            f"Import the module that registers it, or choose another dtype."
        )
    return max(legal, key=lambda kernel: kernel.preference)


def candidates(op: str) -> list[Kernel]:
    """Return every kernel registered for `op`, legal here or not."""
    return [kernel for kernel in _kernels if kernel.op == op]


def operations() -> list[str]:
    """Return the names of all ops that have a kernel."""
    return sorted({kernel.op for kernel in _kernels})
