# SPDX-License-Identifier: MIT
"""The emitted driver on ops that do nothing: what `bench_trace.py` times of it runs."""

import pytest

from tests.bench.bench_trace import LAYOUTS, compiled, null_step


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_step_of_null_equations_runs_every_layer(layout: object) -> None:
    plan = compiled(layout)
    step, count = null_step(plan)
    step()
    (block,) = plan.program.blocks
    assert count == 80 * len(block.steps) + len(plan.program.driver.steps) - 1
