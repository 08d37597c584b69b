# SPDX-License-Identifier: MIT
"""Which of several kernels of one meaning is the fastest: timed once, kept, and asked at each call.

Kernels that `contest` are timed against the preferred one where an engine was told to tune; others
go by what was measured before.  That holds for one op, sizes, dtype, device and versions of the
libraries, so a file of it may be carried to another machine: one comes with the package.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .registry import Kernel

Agree = Callable[[Sequence[float]], Sequence[float]]
_REPEATS = 5
_MARGIN = 0.95
SHIPPED = Path(__file__).with_name("measured.json")


class TuningFileError(ValueError):
    """A file holds no measurements of kernels."""


@attrs.define(eq=False)
class Table:
    """Microseconds by key and backend; `agree` is set while what is missing may be timed."""

    times: dict[str, dict[str, float]] = attrs.field(factory=dict)
    tunes: bool = False
    agree: Agree | None = None

    def winner(self, key: str, kernels: Sequence["Kernel"]) -> "Kernel | None":
        """Return the fastest of `kernels` for a key; None if it was not timed.

        The first of them is preferred: it loses to who is faster by more than a launch that is
        timed alone can tell.
        """
        known = self.times.get(key, {})
        timed = [kernel for kernel in kernels if kernel.backend in known]

        def time(kernel: "Kernel") -> float:
            return known[kernel.backend] * (_MARGIN if kernel is kernels[0] else 1)

        return min(timed, key=time) if timed else None

    def load(self, path: Path) -> None:
        """Add what a file holds; a file that is not there holds nothing.

        Raises:
            TuningFileError: it is no file of such measurements.
        """
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            for key, times in stored.items():
                self.times[key] = {name: float(us) for name, us in times.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise TuningFileError(
                f"{path} holds no kernel times ({error}); remove it, they are measured again"
            ) from error

    def save(self, path: Path) -> None:
        """Write all measurements, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.times, indent=1, sort_keys=True), encoding="utf-8")
        new.replace(path)

    @contextmanager
    def measuring(self, agree: Agree) -> Iterator[None]:
        """Time what is missing within; `agree` makes one of the times that all ranks saw."""
        self.agree = agree if self.tunes else None
        try:
            yield
        finally:
            self.agree = None


TABLE = Table()


@attrs.frozen(eq=False)
class Contest:
    """Kernels of one op, the preferred first; a call runs the one that was fastest on its sizes."""

    kernels: tuple["Kernel", ...]
    table: Table
    _won: dict[str, "Kernel"] = attrs.field(factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Run the op."""
        key = key_of(self.kernels[0].op, args)
        kernel = self._won.get(key) or self._decided(key, args)
        return kernel.run(*args)

    def _decided(self, key: str, args: tuple[Any, ...]) -> "Kernel":
        if key not in self.table.times and self.table.agree is not None:
            spent = [microseconds(kernel.run, args) for kernel in self.kernels]
            names = [kernel.backend for kernel in self.kernels]
            agreed = self.table.agree(spent)
            self.table.times[key] = dict(zip(names, agreed, strict=True))
        won = self.table.winner(key, self.kernels)
        if won is None:
            return self.kernels[0]
        self._won[key] = won
        return won


def key_of(op: str, args: Sequence[Any]) -> str:
    """Return what a measurement is kept under; rows are counted up to powers of two."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    rows = tensors[0].shape[0]
    bucket = 1 << max(rows - 1, 0).bit_length()
    sizes = [
        "x".join(map(str, (("n", *x.shape[1:]) if x.shape[0] == rows and x.dim() > 1 else x.shape)))
        for x in tensors
    ]
    about = (op, f"n<={bucket}", *sizes, str(tensors[0].dtype).removeprefix("torch."))
    return " ".join((*about, *_place(tensors[0].device)))


@cache
def _place(device: torch.device) -> tuple[str, ...]:
    if device.type != "cuda":
        return (device.type, f"torch={torch.__version__}")
    import triton

    name = torch.cuda.get_device_name(device).replace(" ", "_")
    return (name, f"torch={torch.__version__}", f"triton={triton.__version__}")


def microseconds(run: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Return the least time of a call: the first, which may compile, does not count."""
    from .case import microseconds as timed

    device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
    copies = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
    return timed(lambda: run(*copies), device, _REPEATS)


def explained(op: str, times: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield a line for each measurement of an op, the fastest backend first."""
    for key, spent in sorted(times.items()):
        if key.split(" ", 1)[0] == op:
            ordered = sorted(spent.items(), key=lambda item: item[1])
            listed = ", ".join(f"{name} {us:.1f} us" for name, us in ordered)
            yield f"  {key.partition(' ')[2]}: {listed}"
