# SPDX-License-Identifier: MIT
"""The captured steps of a runner."""

import attrs
import torch

from .decode_graph import DecodeGraphs
from .device_tables import DeviceTables
from .extend_graph import ExtendGraphs
from .runner import Runner


@attrs.frozen(eq=False)
class Graphs:
    """Decode steps by rows, small prefills and mixed steps by tokens; all share their memory.

    The results of one are overwritten by the next.
    """

    decode: DecodeGraphs
    extend: ExtendGraphs

    @classmethod
    def capture(
        cls, runner: Runner, tables: DeviceTables, chunk: int, dry: bool = False
    ) -> "Graphs":
        """Capture steps of up to `chunk` tokens; on a CPU, and `dry`, they are only run once."""
        on_gpu = tables.device.type == "cuda"
        pool = torch.cuda.graph_pool_handle() if on_gpu and not dry else None
        # The largest first: the others fit the memory that it took.
        extend = ExtendGraphs(runner, tables, chunk, pool)
        made = cls(DecodeGraphs(runner, tables, pool), extend)
        if pool is not None:
            # Each first run kept what it allocated on a stream of its own.
            torch.cuda.empty_cache()
        return made
