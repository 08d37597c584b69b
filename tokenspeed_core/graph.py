# SPDX-License-Identifier: MIT
"""A function of fixed tensors, captured once and replayed."""

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import attrs
import torch
from torch import Tensor

Result = TypeVar("Result")


class Graph(Generic[Result]):
    """Runs `function` again and again on the same memory; without a memory pool it is called.

    The function reads nothing on the host.  Its first run, which may load kernels, is not captured.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, pool: Any) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if pool is None:
            self.result = function()
            return
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function()

    def release(self: "Graph[Tensor]") -> None:
        """Let graphs that are captured later overwrite the result, once it was read in order."""
        if self._graph is not None:
            self.result = _borrowed(self.result)

    def replay(self) -> Result:
        """Run the function; return its results, which the next run overwrites on a GPU."""
        if self._graph is None:
            self.result = self._function()
        else:
            self._graph.replay()
        return self.result


def replay_ms(graph: Graph[Any], device: torch.device) -> float:
    """Return the milliseconds that a GPU takes to run a captured graph."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    graph.replay()
    ended.record()
    torch.cuda.synchronize(device)
    return float(begun.elapsed_time(ended))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all first runs: what a stream allocated it keeps."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@attrs.frozen
class _Address:
    """Memory of float32 numbers, as the CUDA array interface describes it."""

    __cuda_array_interface__: dict[str, Any]


def _borrowed(tensor: Tensor) -> Tensor:
    """Return a tensor at the same place that does not keep the memory from being used again."""
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    about = {
        "shape": tuple(tensor.shape),
        "typestr": "<f4",
        "data": (tensor.data_ptr(), False),
        "version": 3,
    }
    borrowed: Tensor = torch.as_tensor(_Address(about), device=tensor.device)
    return borrowed
