# SPDX-License-Identifier: MIT
"""A function of fixed tensors, captured once and replayed."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

Result = TypeVar("Result")


class Graph(Generic[Result]):
    """Runs `function` again and again on the same memory; on a CPU it is called.

    The function reads nothing on the host.  Its first run, which may load kernels, is not captured.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, pool: Any) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            self.result = function()
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function()

    def replay(self) -> Result:
        """Run the function; return its results, which the next run overwrites on a GPU."""
        if self._graph is None:
            self.result = self._function()
        else:
            self._graph.replay()
        return self.result
