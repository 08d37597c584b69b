# SPDX-License-Identifier: MIT
"""How a rank carries out plans: on its CPU, or on its GPU with tables and graphs that last."""

from collections.abc import Callable

from .decode_graph import DecodeGraphs
from .device_executor import DeviceExecutor
from .executor import Executor, HostExecutor
from .runner import Runner
from .transfers import Transfers

NewExecutor = Callable[[Transfers | None], Executor]


def execution(runner: Runner, graphs: bool = True) -> NewExecutor:
    """Return what makes the executor of an epoch; a GPU's first graphs are captured here.

    `graphs` says whether decode steps of a GPU replay captured graphs.  Models with several block
    groups run without.
    """
    if runner.device.type == "cpu":
        return lambda transfers: HostExecutor(runner, transfers)
    tables = runner.new_tables()
    captured = None
    if graphs and len(runner.groups) == 1:
        captured = DecodeGraphs(runner, tables)
        captured.capture_first()
    return lambda transfers: DeviceExecutor(runner, tables, captured, transfers)
