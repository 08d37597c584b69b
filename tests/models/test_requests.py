# SPDX-License-Identifier: MIT
"""Ranks that serve different requests: data parallelism, alone and with every other layout."""

import pytest
import torch
from tiny import BLOCK, CASES, apart, make_tiny

from tokenspeed_core.models import compile_plan
from tokenspeed_core.sharding import Layout, MeshError
from tokenspeed_core.sharding.simulate import Simulation

NUM_BLOCKS = 17
LAYOUTS = {
    "dp": Layout("dp=2 tp=1", requests="dp"),
    "dp-tp": Layout("dp=2 tp=2", requests="dp"),
    "tp-dp": Layout("tp=2 dp=2", requests="dp"),
    "dp-sp": Layout("dp=2 tp=2", requests="dp", types={"Hidden": "n@tp d"}),
    "dp-factored": Layout("dp=2 tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep"}, requests="dp"),
    "mlp-over-dp": Layout("dp=2 tp=2", place={"f": "dp"}, requests="dp"),
    "mlp-over-all": Layout(
        "dp=2 tp=2", place={"f": "dp+tp"}, types={"Hidden": "n@tp d"}, requests="dp"
    ),
    "vocabulary-over-dp": Layout("dp=2 tp=2", place={"v": "dp"}, requests="dp"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_answers_its_own_requests(layout: str) -> None:
    tiny = make_tiny(CASES["gqa-biases"], torch.float64)
    one, many = (
        Simulation(
            compile_plan(tiny.family, tiny.config, each, dtype=torch.float64, block_size=BLOCK),
            tiny.params,
            NUM_BLOCKS,
        )
        for each in (Layout(), LAYOUTS[layout])
    )
    for expected, got in apart(tiny, one.step, many.step):
        assert (got - expected).abs().max() < 1e-12


def test_pure_data_parallelism_needs_no_collective() -> None:
    tiny = make_tiny({"num_hidden_layers": 1})
    plan = compile_plan(
        tiny.family, tiny.config, LAYOUTS["dp"], dtype=torch.float32, block_size=BLOCK
    )
    assert not plan.groups


def test_an_axis_that_the_mesh_lacks_is_named() -> None:
    with pytest.raises(MeshError, match="'dp' is not in mesh 'tp=2'"):
        Layout("tp=2", requests="dp")
