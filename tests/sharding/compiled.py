# SPDX-License-Identifier: MIT
"""A small model of one kind of parameters, compiled, simulated and held to its eager result."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tokenspeed_core.ops import Batch, declared_batch
from tokenspeed_core.sharding import Layout, Plan, build, declare, leaves, map_leaves, trace
from tokenspeed_core.sharding.recheck import recheck
from tokenspeed_core.sharding.simulate import Simulation


def batch() -> Batch:
    """Return eight tokens; nothing but they is read."""
    ids = torch.arange(8, dtype=torch.int32)
    columns = "positions cache_slots query_starts context_lens block_tables logit_rows state_blocks"
    counts = "num_rows num_decode_rows max_query max_context"
    unused = dict.fromkeys(columns.split(), ids) | dict.fromkeys(counts.split(), 8)
    return Batch(tokens=ids.flip(0), **unused)


def compiled(
    params: type, sizes: Mapping[str, int], function: Callable[..., Any], layout: Layout
) -> tuple[Plan, float]:
    """Compile, simulate, re-check; return the plan and its distance from the eager result."""

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        return function(p, batch), caches

    declared = declare(params, sizes, torch.float64)
    plan = build(
        trace(forward, declared, (), declared_batch()),
        layout,
        name="small",
        ops="tokenspeed_core.ops",
        params=declared,
        caches=(),
        constants={},
    )
    recheck(plan, plan.source)
    torch.manual_seed(1)
    values = {path: torch.randn(leaf.sizes).double() for path, leaf in leaves(declared)}
    eager, _ = forward(map_leaves(lambda path, _: values[path], declared), (), batch())
    got = Simulation(plan, values, blocks=1).step(batch())
    return plan, float((got - eager).abs().max())
