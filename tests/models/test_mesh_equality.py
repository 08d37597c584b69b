# SPDX-License-Identifier: MIT
"""Every family on 12 and 16 ranks is one device to 1e-12, Replicated values bit by bit.

`test_families.py` holds meshes of two and four ranks to the same; here all axes meet.
"""

from functools import cache

import pytest
from test_expert_parallel import plan_of, tiny
from tiny import Tiny, batch_of
from tiny_families import FAMILIES, MIXTURES
from torch import Tensor

from tokenspeed_core.sharding import Layout
from tokenspeed_core.sharding.layout_text import parse_layout
from tokenspeed_core.sharding.simulate import Simulation

NUM_BLOCKS = 17
TENSOR = "dp=4 pp=2 tp=2; requests:dp stages:pp; Hidden=n@tp d"
SLOTS = "dp=2 pp=2 tp=2 cp=2; s:cp requests:dp stages:pp"
EXPERTS = "dp=4 pp=2 tp=2; f: j: e:dp+tp requests:dp stages:pp; Hidden=n@tp d; Tokens=n@tp d"
PARTS = "dp=2 pp=3 tp=2; f: e:dp j:tp requests:dp stages:pp; Hidden=n@tp d; Tokens=n@tp d"
MANY = 1 << 20  # tokens for which rows are sent to their experts, not gathered
CASES = [
    *((family, layout, 0) for family in FAMILIES for layout in (TENSOR, SLOTS)),
    *((family, EXPERTS, tokens) for family in MIXTURES for tokens in (0, MANY)),
    # Expert biases are summed apart from their products where those are cut: over budget.
    *((family, PARTS, 0) for family in MIXTURES if family != "gpt-oss"),
]


def rows(model: Tiny) -> list[list[tuple[Tensor, int, int]]]:
    """A prefill of both requests, then a decode step."""
    lengths = [len(ids) - 1 for ids in model.tokens]
    pairs = list(zip(model.tokens, lengths, strict=True))
    return [[(ids[: n + done], n * done, i) for i, (ids, n) in enumerate(pairs)] for done in (0, 1)]


@cache
def expected(family: str) -> list[Tensor]:
    model = tiny(family)
    one = Simulation(plan_of(model, Layout()), model.params, NUM_BLOCKS)
    return [one.step(batch_of(step)) for step in rows(model)]


@pytest.mark.parametrize(("family", "layout", "tokens"), CASES)
def test_up_to_16_ranks_are_one_device(family: str, layout: str, tokens: int) -> None:
    model = tiny(family)
    plan = plan_of(model, parse_layout(layout), tokens)
    assert plan.mesh.num_ranks in (12, 16)
    many = Simulation(plan, model.params, NUM_BLOCKS)
    ways = plan.mesh.size(plan.mesh.requests)
    for step, wanted in zip(rows(model), expected(family), strict=True):
        longest = max(len(ids) - cached for ids, cached, _ in step)
        own = [batch_of([row], multiple=longest + longest % 2) for row in step]
        got = many.step(*(own * (ways // 2)))
        assert (got - wanted.repeat(ways // 2, 1)).abs().max() < 1e-12
