# SPDX-License-Identifier: MIT
"""Every deployment under every workload, some at once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from ..scheduler._scheduler import Trace
from .deployment import Deployment, Outcome, Workload, run


def sweep(
    deployments: Sequence[Deployment], workloads: Sequence[Workload], trace: Trace, *, jobs: int = 0
) -> list[Outcome]:
    """Simulate the grid, workloads innermost.  `jobs` 0: as many at once as there are cores.

    Raises:
        DeploymentError: the scheduler refuses a deployment's limits.
    """
    grid = list(product(deployments, workloads))
    workers = min(jobs or len(os.sched_getaffinity(0)), len(grid))
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return list(pool.map(lambda point: run(point[0], point[1], trace), grid))
