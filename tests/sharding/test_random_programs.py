# SPDX-License-Identifier: MIT
"""Random programs on random meshes with random placements: refused, or equal to one device."""

from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from mutants import mutants, refused

from tokenspeed_core.ops import (
    Batch,
    declared_batch,
    einsum,
    embedding,
    rms_norm,
    silu_mul,
    take_rows,
    zeros_like,
)
from tokenspeed_core.sharding import Layout, PlacementError, Plan, build, map_leaves, spmd, trace
from tokenspeed_core.sharding.emit import emit
from tokenspeed_core.sharding.line import Line
from tokenspeed_core.sharding.simulate import Simulation
from tokenspeed_core.sharding.spec import Dim, Placement, Spec, parse_spec
from tokenspeed_core.sharding.tree import Declared

MESHES = {"tp=2": ("tp",), "dp=2 tp=2": ("dp", "tp"), "tp=(kv=2,rep=2)": ("kv", "rep")}
SIZE = 8
NAMES = ("d", "e", "f")
KINDS = "project project project bias add mul norm gate scale pin rows zeros"
HERE = Line(__file__, 1)


@attrs.frozen
class Step:
    """One op of a random program; integers pick among the values made so far."""

    kind: str
    left: int
    right: int
    spec: Spec


@st.composite
def placed(draw: st.DrawFn, names: tuple[str, ...], axes: tuple[str, ...]) -> Spec:
    """Draw a spec with some of the axes on some of the dims."""
    where = {axis: draw(st.sampled_from([None, None, *names])) for axis in axes}
    return Spec(tuple(Dim(name, tuple(a for a in axes if where[a] == name)) for name in names))


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, Spec, list[Step]]:
    mesh = draw(st.sampled_from(list(MESHES)))
    axes = MESHES[mesh]
    steps = []
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(KINDS.split()))
        index = st.integers(0, 9)
        names = tuple(draw(st.permutations(NAMES))[:2])
        if kind in ("bias", "norm"):
            names = names[:1]
        if kind == "pin":
            names = ("n", "?")
        steps.append(Step(kind, draw(index), draw(index), draw(placed(names, axes))))
    return mesh, draw(placed(("v", "d"), axes)), steps


def weights_of(table: Spec, steps: list[Step]) -> Any:
    """Declare one parameter a step; a step that needs none leaves it unused."""
    fields = {"table": Declared(Placement(table, None, HERE), (SIZE, SIZE), torch.float64)}
    for index, step in enumerate(steps):
        if step.kind in ("project", "bias", "norm"):
            sizes = (SIZE,) * len(step.spec.dims)
            fields[f"w{index}"] = Declared(Placement(step.spec, None, HERE), sizes, torch.float64)
    made = attrs.make_class("Weights", list(fields), frozen=True, eq=False)
    return made(**fields)


def body(steps: list[Step], declared: Any) -> Any:
    """Return the program as an author would write it, choosing ops by the values' dims."""

    def forward(p: Any, caches: Any, batch: Any) -> Any:
        values = [(("n", "d"), embedding(batch.tokens, p.table))]
        for index, step in enumerate(steps):
            names, x = values[step.left % len(values)]
            weight = getattr(p, f"w{index}", None)
            kind = getattr(declared, f"w{index}").spec.names if weight is not None else ()
            same = [value for dims, value in values if dims == names]
            other = same[step.right % len(same)]
            if step.kind == "project" and names[1] in kind:
                out = kind[1 - kind.index(names[1])]
                row = names[0]
                equation = f"{row} {names[1]}, {' '.join(kind)} -> {row} {out}"
                values.append(((row, out), einsum(equation, x, weight)))
            elif step.kind == "bias" and kind == names[1:]:
                values.append((names, x + weight))
            elif step.kind == "norm" and kind == names[1:]:
                values.append((names, rms_norm(x, weight, 1e-2)))
            elif step.kind == "add":
                values.append((names, x + other))
            elif step.kind == "mul":
                values.append((names, x * other))
            elif step.kind == "gate":
                values.append((names, silu_mul(x, other)))
            elif step.kind == "scale":
                values.append((names, x * 0.5))
            elif step.kind == "rows" and names[0] == "n":
                values.append((("m", names[1]), take_rows(x, batch.logit_rows)))
            elif step.kind == "zeros":
                values.append((names, zeros_like(x)))
            elif step.kind == "pin":
                values.append((names, pinned(x, names, step.spec)))
        return values[-1][1], caches

    return forward


def pinned(x: Any, names: tuple[str, ...], spec: Spec) -> Any:
    dims = tuple(attrs.evolve(dim, name=name) for dim, name in zip(spec.dims, names, strict=True))
    placement = Placement(Spec(dims), None, HERE)

    @spmd
    def boundary(x):  # type: ignore[no-untyped-def]
        return x

    boundary.__wrapped__.__annotations__ = {"x": placement}  # type: ignore[attr-defined]
    return boundary(x)


def batch_of() -> Batch:
    ids = torch.arange(SIZE, dtype=torch.int32)
    columns = "positions cache_slots query_starts context_lens block_tables state_blocks"
    counts = "num_rows num_decode_rows max_query max_context"
    unused = dict.fromkeys(columns.split(), ids) | dict.fromkeys(counts.split(), SIZE)
    return Batch(tokens=ids.flip(0), logit_rows=ids.long() * 3 % SIZE, **unused)


def built(traced: Any, mesh: str, declared: Any) -> Plan | None:
    """Compile; None if the placements are refused.  Any other error is a bug of ours."""
    try:
        return build(
            traced,
            Layout(mesh),
            name="random",
            ops="tokenspeed_core.ops",
            params=declared,
            caches=(),
            constants={},
        )
    except PlacementError:
        return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@example(
    (
        "tp=2",
        parse_spec("v@tp d"),
        [Step("pin", 0, 0, parse_spec("n@tp e")), Step("rows", 1, 0, parse_spec("d e"))],
    )
)
@given(programs())
def test_a_random_program_is_refused_or_right(program: tuple[str, Spec, list[Step]]) -> None:
    mesh, table, steps = program
    declared = weights_of(table, steps)
    forward = body(steps, declared)
    traced = trace(forward, declared, (), declared_batch())
    assume(len(traced.graph.equations) > 2)
    plan = built(traced, mesh, declared)
    event("refused" if plan is None else f"{len(plan.groups)} groups")
    if plan is None:
        return
    torch.manual_seed(0)
    values = {
        field.name: torch.randn(SIZE, SIZE).double()
        if len(getattr(declared, field.name).sizes) == 2
        else torch.randn(SIZE).double()
        for field in attrs.fields(type(declared))
    }
    batch = batch_of()
    expected, _ = forward(map_leaves(lambda path, _: values[path], declared), (), batch)
    accepted = [("as planned", plan)]
    for label, mutant in mutants(plan.program):
        if not refused(mutant):
            # A sum that is paid later than planned is right too.
            source = emit(mutant, label, plan.ops)
            accepted.append((label, attrs.evolve(plan, program=mutant, source=source)))
    event(f"{len(accepted)} accepted")
    for label, each in accepted:
        got = Simulation(each, values, blocks=1).step(batch)
        torch.testing.assert_close(
            got, expected, rtol=1e-9, atol=1e-9, msg=lambda why, label=label: f"{label}: {why}"
        )
