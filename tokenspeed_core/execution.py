# SPDX-License-Identifier: MIT
"""How a rank carries out plans: on its CPU, or on its GPU with tables and graphs that last."""

from collections.abc import Callable

from .decode_graph import buckets
from .device_executor import DeviceExecutor
from .executor import Executor, HostExecutor
from .graphs import Graphs
from .runner import Runner
from .transfers import Transfers
from .warm_up import warm_up

NewExecutor = Callable[[Transfers | None], Executor]


def execution(runner: Runner, chunk: int, graphs: bool = True) -> NewExecutor:
    """Return what makes the executor of an epoch; here a GPU's kernels and graphs are made.

    `chunk` is the most tokens of a step; `graphs` says whether decode steps of a GPU replay
    captured graphs.  Models with several block groups run without.
    """
    if runner.device.type == "cpu":
        return lambda transfers: HostExecutor(runner, transfers)
    tables = runner.new_tables()
    if len(runner.groups) > 1:
        return lambda transfers: DeviceExecutor(runner, tables, None, transfers)
    warm_up(runner, tables, buckets(runner.num_slots), chunk)
    captured = Graphs.capture(runner, tables, chunk) if graphs else None
    return lambda transfers: DeviceExecutor(runner, tables, captured, transfers)
