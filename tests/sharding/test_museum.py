# SPDX-License-Identifier: MIT
"""The bug museum: silent wrong sums that other engines shipped, rebuilt and refused.

Each exhibit is the program of a mixture of experts with a shared expert in which one reduction
was misplaced by hand, as a communication layer or a fusion gate did there.  An author can write
none of them: a model has no collectives.
"""

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from mutants import rebuilt, renamed
from test_bad_programs import imported

from tokenspeed_core.ops import declared_batch
from tokenspeed_core.sharding import (
    Layout,
    Plan,
    ShardingError,
    VerificationError,
    build,
    declare,
    trace,
)
from tokenspeed_core.sharding.program import Apply, Move, Program, Step, Var
from tokenspeed_core.sharding.verify import verify

MODEL = """
from torch import Tensor

from tokenspeed_core.ops import *
from tokenspeed_core.sharding import *

SIZES = dict(d=8, e=4, j=4, f=8, v=16)
Rows = Placed[Tensor, "n d"]


@module
class Weights:
    embed: Placed[Tensor, "v d"]
    router: Placed[Tensor, "d e"]
    w_gate: Placed[Tensor, "e@ep j@tp d"]
    w_up: Placed[Tensor, "e@ep j@tp d"]
    w_down: Placed[Tensor, "e@ep d j@tp"]
    shared_up: Placed[Tensor, "d f@tp"]
    shared_down: Placed[Tensor, "f@tp d"]
    norm: Placed[Tensor, "d"]


@spmd
def block(p: Weights, x: Rows) -> Rows:
    ids, weights = softmax_router(einsum("n d, d e -> n e", x, p.router), 2, True)
    routed = experts(x, ids, weights, p.w_gate, p.w_up, p.w_down)  # routed
    shared = einsum("n f, f d -> n d", einsum("n d, d f -> n f", x, p.shared_up), p.shared_down)
    return routed + shared  # sum


def forward(p, caches, batch):
    return rms_norm(block(p, embedding(batch.tokens, p.embed)), p.norm, 1e-5), caches  # norm
"""


def compiled(path: Path, layout: Layout, source: str = MODEL) -> Plan:
    module = imported(source, path)
    params = declare(module.Weights, module.SIZES, torch.float32)
    traced = trace(module.forward, params, (), declared_batch())
    return build(
        traced, layout, name="moe", ops="tokenspeed_core.ops", params=params, caches=(),
        constants={},
    )  # fmt: skip


def move(kind: str, source: Var, result: Var, axes: tuple[str, ...], like: Step) -> Move:
    return Move(kind, axes, None, source, result, "a communication layer", like.line, ())


def without(program: Program, step: Move) -> Program:
    """Return a program in which a reduction was skipped, its readers taking the unsummed value."""
    code = program.driver
    at = code.steps.index(step)
    after = [renamed(each, step.result, step.operand) for each in code.steps[at + 1 :]]
    return rebuilt(program, code, [*code.steps[:at], *after], code.results)


def reductions(program: Program) -> list[Move]:
    kinds = ("all_reduce", "reduce_scatter")
    steps = program.driver.steps
    return [step for step in steps if isinstance(step, Move) and step.kind in kinds]


def sum_of_experts(program: Program) -> Apply:
    steps = program.driver.steps
    return next(s for s in steps if isinstance(s, Apply) and s.op.name in ("add", "add_rms_norm"))


def reduced_twice(program: Program) -> Program:
    """The shared expert reduces its own output, then the sum of both is reduced again."""
    code, add = program.driver, sum_of_experts(program)
    shared = add.operands[0 if add.op.name == "add_rms_norm" else 1]
    made = attrs.evolve(shared, name="again", spec=attrs.evolve(shared.spec, partial=()))
    again = move("all_reduce", shared, made, shared.spec.partial, add)
    at = code.steps.index(add)
    after = [renamed(step, shared, made) for step in code.steps[at:]]
    return rebuilt(program, code, [*code.steps[:at], again, *after], code.results)


def never_reduced(program: Program) -> Program:
    """A data-parallel path forgets the reduction that the tensor-parallel one makes."""
    return without(program, reductions(program)[-1])


def summed_again(program: Program) -> Program:
    """The layer after the experts reduces what is reduced already."""
    code, paid = program.driver, reductions(program)[-1]
    made = attrs.evolve(paid.result, name="again")
    again = move("all_reduce", paid.result, made, paid.axes, paid)
    at = code.steps.index(paid) + 1
    after = [renamed(step, paid.result, made) for step in code.steps[at:]]
    return rebuilt(program, code, [*code.steps[:at], again, *after], code.results)


def half_reduced(program: Program) -> Program:
    """A fusion gate reduces over the experts' columns and skips the axis of the experts."""
    first, second = reductions(program)
    assert (first.axes, second.axes) == (("ep",), ("tp",))
    return without(program, first)


EXPERTS, SHARED_WHOLE = "ep=2 tp=2", {"f": ""}
EXHIBITS: dict[str, tuple[Layout, Callable[[Program], Program], str]] = {
    # vllm#49122, vllm#49366; tpu-inference#3151: GSM8K 0.0038
    "shared expert reduced twice": (Layout("ep=1 tp=2"), reduced_twice, "# sum"),
    "reduced by the experts and by the layer": (Layout("ep=1 tp=2"), summed_again, "# norm"),
    # tpu-inference#3435: 96.3% -> 23.9%
    "shared expert never reduced": (Layout("ep=1 tp=2"), never_reduced, "# norm"),
    # TensorRT-LLM#15922: the shared expert counted eight times
    "whole shared expert added before the sum": (
        Layout("ep=1 tp=2", place=SHARED_WHOLE), never_reduced, "# norm"),
    # sglang#32963: GSM8K 0.012
    "reduced over one of two axes": (Layout(EXPERTS), half_reduced, "# sum"),
    # vllm#37856
    "shared expert under sequence parallelism": (
        Layout("ep=1 tp=2", types={"Rows": "n@tp d"}), never_reduced, "# norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_is_refused_on_the_line_of_the_fault(name: str, tmp_path: Path) -> None:
    layout, broken, marker = EXHIBITS[name]
    program = compiled(tmp_path / "moe.py", layout).program
    verify(program)
    with pytest.raises(VerificationError) as raised:
        verify(broken(program))
    numbers = [n for n, line in enumerate(MODEL.splitlines(), 1) if line.endswith(marker)]
    assert any(f"moe.py:{n}" in str(raised.value) for n in numbers), raised.value


@pytest.mark.parametrize("layout", ["ep=1 tp=2", "ep=1 tp=4"])
def test_routed_and_shared_experts_cost_one_reduction(layout: str, tmp_path: Path) -> None:
    plan = compiled(tmp_path / "moe.py", Layout(layout))
    found = reductions(plan.program)
    assert len(found) == 1
    assert found[0].axes == tuple(axis for axis, _ in plan.mesh.factors)


AUTHORS: dict[str, tuple[str, str]] = {
    # Wrong sums that an author could try to write: none is in the language of a model.
    "a collective in the model": ("routed + shared", "torch.distributed.nn.all_reduce(routed)"),
    "a scale for the ranks": ("routed + shared", "routed / rank + shared"),
    "a branch on the tokens": ("routed + shared", "routed if ids.max() else shared"),
    "a view between": ("routed + shared", "(routed + shared).view(-1, 8)"),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_an_author_cannot_write_it(name: str, tmp_path: Path) -> None:
    before, after = AUTHORS[name]
    source = "import torch.distributed.nn\nrank = object()\n" + MODEL.replace(before, after)
    with pytest.raises(ShardingError) as raised:
        compiled(tmp_path / "moe.py", Layout("ep=1 tp=2"), source)
    (number,) = (n for n, line in enumerate(source.splitlines(), 1) if line.endswith("# sum"))
    assert str(raised.value).startswith(f"moe.py:{number}: "), raised.value


def test_the_model_is_small() -> None:
    assert MODEL[MODEL.index("@module") :].count("\n") <= 30
