# SPDX-License-Identifier: MIT
"""The table of kernels: which function computes an op on which device and dtype."""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

import attrs
import torch

from .tuning import TABLE, Contest

Function = TypeVar("Function", bound=Callable[..., Any])


class NoKernelError(LookupError):
    """No registered kernel can compute an op on this device and dtype."""


class PlugInError(ValueError):
    """Kernels of another distribution cannot be loaded."""


@attrs.frozen
class Kernel:
    """One way to compute an op.

    `supports` is the capability predicate: it says whether this kernel is legal for a device type
    and dtype on this machine.  `features` are the variants of the op that it computes beyond the
    plain one.  `preference` orders legal kernels; the highest runs, but where an engine tunes and
    another `contests` it, the faster of them.
    """

    op: str
    backend: str
    run: Callable[..., Any]
    supports: Callable[[str, torch.dtype], bool]
    preference: int = 0
    features: frozenset[str] = frozenset()
    contests: bool = False


_kernels: list[Kernel] = []
_wanted: dict[str, str] = {}  # backends by op, that an operator asked for
PLUG_INS = "tokenspeed.kernels"  # the group of entry points


def register(
    op: str,
    *,
    backend: str,
    supports: Callable[[str, torch.dtype], bool] = lambda device_type, dtype: True,
    preference: int = 0,
    features: Collection[str] = (),
    contests: bool = False,
) -> Callable[[Function], Function]:
    """Register the decorated function as a kernel for `op`."""

    def add(run: Function) -> Function:
        found = frozenset(features)
        _kernels.append(Kernel(op, backend, run, supports, preference, found, contests))
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
    preferred = choose(op, device_type, dtype, needs=needs)
    rivals = [
        kernel
        for kernel in candidates(op)
        if kernel.contests
        and kernel is not preferred
        and kernel.features.issuperset(needs)
        and kernel.supports(device_type, dtype)
    ]
    if not (TABLE.tunes or TABLE.times) or not rivals or op in _wanted:
        return preferred.run
    return Contest((preferred, *rivals), TABLE)


def prefer(wanted: Mapping[str, str], device_type: str, dtype: torch.dtype) -> None:
    """Run the named backend of each op from now on, and of others the preferred one.

    Raises:
        NoKernelError: there is no such kernel, or it is not legal for the device and dtype.
    """
    for op, backend in wanted.items():
        choose(op, device_type, dtype, backend)
    _wanted.clear()
    _wanted.update(wanted)
    select.cache_clear()


def tune(tunes: bool) -> None:
    """Say whether kernels that contest others are timed against them."""
    TABLE.tunes = tunes
    select.cache_clear()


def load_plug_ins() -> list[str]:
    """Import what other distributions offer as kernels, and return its names.

    An entry point of the group `tokenspeed.kernels` names a module that calls `register`.

    Raises:
        PlugInError: one cannot be imported; the message says which and why.
    """
    names = []
    for point in entry_points(group=PLUG_INS):
        try:
            point.load()
        except Exception as error:  # whatever a module of others may raise
            raise PlugInError(
                f"the kernels {point.name!r} of {point.value} cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall that distribution"
            ) from error
        names.append(point.name)
    return names


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
    backend = backend or _wanted.get(op)
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
