# SPDX-License-Identifier: MIT
"""How a rank carries out plans: on its CPU, or on its GPU with tables and graphs that last."""

from collections.abc import Callable

from .device_executor import DeviceExecutor
from .executor import Executor, HostExecutor
from .grammar.library import Library
from .graphs import Graphs
from .group_executor import GroupExecutor
from .runner import Runner
from .start_clock import timed
from .transfers import Transfers

NewExecutor = Callable[[Transfers | None], Executor]


def execution(
    runner: Runner, chunk: int, graphs: bool = True, library: Library | None = None
) -> NewExecutor:
    """Return what makes the executor of an epoch; here a GPU's graphs are captured.

    `chunk` is the most tokens of a step; `graphs` says whether decode steps of a GPU replay
    captured graphs.  Models with several block groups run without.
    """
    mesh = runner.plan.mesh
    if mesh.requests:
        own = mesh.index(runner.ranks.rank, mesh.requests)
        axis = mesh.group(mesh.requests)
        return lambda transfers: GroupExecutor(runner, own, axis, library)
    if runner.device.type == "cpu":
        return lambda transfers: HostExecutor(runner, transfers, library)
    tables = runner.new_tables()
    if len(runner.groups) > 1:
        return lambda transfers: DeviceExecutor(runner, tables, None, transfers, library)
    with timed("captured graphs"):
        captured = Graphs.capture(runner, tables, chunk) if graphs else None
    return lambda transfers: DeviceExecutor(runner, tables, captured, transfers, library)
