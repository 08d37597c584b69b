# SPDX-License-Identifier: MIT
"""The tokens of a step, perhaps still on their way to the host."""

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .told import Told


@attrs.frozen(eq=False)
class Sampled:
    """Tokens int32 [m] and log-probabilities float32 [m] in host memory once `wait` returned."""

    _tokens: Tensor
    _logprobs: Tensor
    has_logprobs: bool  # a row asked for them
    told: Sequence[Told] = ()
    _event: torch.cuda.Event | None = None

    @classmethod
    def download(
        cls, tokens: Tensor, logprobs: Tensor | None, told: Sequence[Told] = ()
    ) -> "Sampled":
        """Start the copy to the host of what a stream will have sampled."""
        asked = logprobs if logprobs is not None else tokens.new_empty(0, dtype=torch.float32)
        if tokens.device.type == "cpu":
            return cls(tokens.clone(), asked, logprobs is not None, told)
        host = [_downloaded(x) for x in (tokens, asked)]
        told = [each.moved(_downloaded) for each in told]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return cls(host[0], host[1], logprobs is not None, told, event)

    @property
    def is_here(self) -> bool:
        """Whether `wait` would return at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the tokens are in host memory; other threads run meanwhile."""
        if self._event is not None:
            self._event.synchronize()

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens [m], after `wait`."""
        return self._tokens.numpy()

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """The log-probabilities [m], after `wait`; empty if no row asked."""
        return self._logprobs.numpy()


def _downloaded(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
