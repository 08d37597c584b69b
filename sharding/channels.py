# SPDX-License-Identifier: MIT
"""What stages of a simulated pipeline send each other."""

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import attrs
from torch import Tensor

from .error import VerificationError


class NothingSentError(VerificationError):
    """A stage of a pipeline waits for one that failed."""


@attrs.frozen
class Channels:
    """What stages of a simulated pipeline have sent each other: to the next one, and the result."""

    seams: tuple["SimpleQueue[Any]", ...]
    results: tuple["SimpleQueue[Any]", ...]

    @staticmethod
    def between(stages: int) -> "Channels":
        """Return empty channels of so many stages."""
        return Channels(*(tuple(SimpleQueue() for _ in range(stages)) for _ in range(2)))

    def fail(self) -> None:
        """Tell every stage that waits that nothing will come."""
        for channel in (*self.seams, *self.results):
            channel.put(None)


def taken(channel: "SimpleQueue[Any]") -> Any:
    """Return what a stage has put there, waiting for it.

    Raises:
        NothingSentError: that stage failed.
    """
    found = channel.get()
    if found is None:
        raise NothingSentError("a stage waits for what another one, which failed, did not send")
    return found


def check_type(parts: Sequence[Tensor], given: tuple[Any, ...]) -> None:
    """Check that each rank's part has the dtype and sizes that the receiver is told.

    Raises:
        VerificationError: it does not.
    """
    dtype, *sizes = given
    for part in parts:
        if str(part.dtype) != f"torch.{dtype}" or list(part.shape) != sizes:
            raise VerificationError(
                f"a stage is told {dtype} {sizes} and receives {part.dtype} {list(part.shape)}"
            )
