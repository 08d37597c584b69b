# SPDX-License-Identifier: MIT
"""Propagation: from a traced graph and a layout to the typed local program of every rank."""

from collections.abc import Sequence
from typing import Any

import attrs

from .equation import Block, Equation, Pin, Scan
from .error import PlacementError, explained
from .fix import annotate
from .infer import Operand, RuleViolationError, infer
from .layout import Layout
from .line import Line
from .op import OPS
from .program import Apply, Code, Loop, Move, Program, Step, Var
from .redistribute import hops
from .reduction import SUM, passes, weakest
from .region import placed
from .spec import Spec
from .suggest import fixes
from .trace import Graph, Traced
from .tree import leaves
from .value import STATIONARY, Value

_RESERVED = ("c", "w", "p", "kv", "batch", "caches", "forward")


def propagate(traced: Traced, layout: Layout) -> Program:
    """Give every value a placement, forward and in order, and insert the redistributions.

    Raises:
        PlacementError: operands meet in placements that no redistribution reconciles.
    """
    state = Propagation(layout, traced.graph, "forward")
    state.inputs([value for value in traced.graph.values if value.kind in STATIONARY])
    state.run(traced.graph)
    results = []
    for value in traced.results:
        var = state.env[value]
        # Ranks of other requests need no part of it.
        own = {
            dim.name: tuple(a for a in dim.axes if a in layout.mesh.requests)
            for dim in var.spec.dims
        }
        target = attrs.evolve(var.spec.sharded(own), partial=(), reduce=SUM)
        results.append(state.move(var, target, "a program's result is Replicated", var.line, ()))
    driver = state.code(results, [])
    blocks = dict.fromkeys(step.block for step in driver.steps if isinstance(step, Loop))
    return Program(layout.mesh, tuple(blocks), driver)


class Propagation:
    """The state of one pass over one graph: types so far, steps so far, moves already made."""

    def __init__(self, layout: Layout, graph: Graph, name: str) -> None:
        self.layout, self.graph, self.name = layout, graph, name
        self.env: dict[Value, Var] = {}
        self.steps: list[Step] = []
        self.moved: dict[tuple[Var, Spec], Var] = {}
        called = {each.op.name for each in graph.equations if isinstance(each, Equation)}
        self.names = dict.fromkeys((*OPS, *_RESERVED, *called), 1)
        self.made: dict[tuple[int, tuple[Spec, ...]], Code] = {}
        self.entered: dict[str, list[Var]] = {}
        self.uses: dict[Value, list[Equation | Pin | Scan]] = {}
        for equation in graph.equations:
            for value in equation.reads:
                self.uses.setdefault(value, []).append(equation)

    def fresh(self, name: str) -> str:
        """Return `name`, numbered if it is taken."""
        name = "".join(c if c.isalnum() else "_" for c in name)
        count = self.names.get(name, 0)
        self.names[name] = count + 1
        return f"{name}_{count}" if count else name

    def inputs(self, values: Sequence[Value], specs: Sequence[Spec] | None = None) -> None:
        """Enter values whose placement is given by their annotation, or by `specs`."""
        for index, value in enumerate(values):
            if value in self.env:
                continue
            spec = specs[index] if specs else self.stationary(value)
            named = value.kind in STATIONARY
            name = value.name if named else self.fresh(value.name)
            var = Var(name, spec, value.sizes, value.dtype, value.kind, value.line)
            self.env[value] = var
            self.entered.setdefault(value.kind, []).append(var)

    def stationary(self, value: Value) -> Spec:
        """Return the placement of a parameter, cache or batch column, which must divide."""
        assert value.placement is not None
        spec = self.layout.stationary(value.placement.spec)
        refuse_varying(spec, value.line)
        if spec.partial:
            raise PlacementError(
                explained(
                    value.line,
                    f"{value.name} is annotated Partial over {'+'.join(spec.partial)}",
                    why="a stored value is read by many steps; nobody would pay its sum",
                    fixes=[annotate("it", attrs.evolve(spec, partial=()), value.line)],
                )
            )
        return spec

    def run(self, graph: Graph) -> None:
        for equation in graph.equations:
            match equation:
                case Equation():
                    self.apply(equation)
                case Pin():
                    self.pin(equation)
                case Scan():
                    self.scan(equation)

    def apply(self, equation: Equation) -> None:
        self.inputs([v for v in (*equation.operands, *equation.metadata) if v.kind in STATIONARY])
        operands = [self.env[value] for value in equation.operands]
        seen = [Operand(var.spec, var.kind in ("param", "cache")) for var in operands]
        region, mesh = equation.op.region, self.layout.mesh
        try:
            if region:
                found = placed(region, [var.spec for var in operands], equation.rule, mesh)
            else:
                found = infer(equation.rule, seen, mesh, self.wanted(equation))
            moved = [
                self.move(
                    var,
                    target,
                    reason(var, target, equation.op.name, operands),
                    equation.line,
                    equation.regions,
                )
                for var, target in zip(operands, found.targets, strict=True)
            ]
        except RuleViolationError as violation:
            raise PlacementError(
                explained(
                    equation.line,
                    f"{equation.op.name} cannot run on these placements",
                    operands=[f"{var} (placed by {var.line})" for var in operands],
                    why=str(violation),
                    fixes=fixes(equation.rule, operands, self.layout.mesh, equation.line),
                )
            ) from None
        results = []
        declared = region.results(mesh, [v.names for v in equation.results]) if region else ()
        for index, value in enumerate(equation.results):
            spec = found.result(equation.rule.outputs[index], value.names)
            spec = declared[index] if region else spec
            name = self.fresh(value.name) if value.kind == "activation" else value.name
            var = Var(name, spec, value.sizes, value.dtype, value.kind, equation.line)
            self.env[value] = var
            results.append(var)
        renamed = dict(zip(equation.operands, moved, strict=True))
        self.steps.append(
            Apply(
                equation.op,
                equation.rule,
                tuple(self.argument(arg, renamed) for arg in equation.args),
                tuple(moved),
                tuple(self.env[value] for value in equation.metadata),
                tuple(results),
                equation.line,
                equation.regions,
            )
        )

    def wanted(self, equation: Equation) -> Spec | None:
        """Return what the first result is pinned to, if nothing else uses it."""
        uses = self.uses.get(equation.results[0], [])
        if len(uses) != 1 or not isinstance(uses[0], Pin):
            return None
        return self.layout.boundary(uses[0].alias, uses[0].placement.spec)

    def argument(self, arg: Any, renamed: dict[Value, Var]) -> Any:
        """Return an argument with values replaced by variables; trees by tuples of them."""
        if isinstance(arg, Value):
            return renamed.get(arg) or self.env[arg]
        if attrs.has(type(arg)):
            return tuple(self.argument(leaf, renamed) for _, leaf in leaves(arg))
        return arg

    def pin(self, pin: Pin) -> None:
        """Meet an annotation: shards as it says; Partial passes unless it places that axis."""
        var = self.env[pin.value]
        wanted = self.layout.boundary(pin.alias, pin.placement.spec)
        refuse_varying(wanted, pin.placement.line)
        kept = [axis for axis in var.spec.partial if axis not in wanted.axes]
        kept += [axis for axis in wanted.partial if axis in var.spec.partial]
        target = attrs.evolve(
            wanted.sharded({dim.name: dim.axes for dim in wanted.dims}),
            dims=tuple(
                attrs.evolve(old, axes=new.axes)
                for old, new in zip(var.spec.dims, wanted.dims, strict=True)
            ),
            partial=self.layout.mesh.ordered(set(kept)),
            reduce=var.spec.reduce if kept else SUM,
        )
        where = f"{pin.alias or 'the annotation'} '{wanted}' of {pin.placement.line}"
        try:
            both = set(wanted.partial) & set(var.spec.partial)
            if both and not passes(var.spec.reduce, wanted.reduce):
                raise RuleViolationError(f"a {var.spec.reduce} is owed, not a {wanted.reduce}")
            self.env[pin.result] = self.move(
                var, target, f"pinned by {where}", pin.line, pin.regions, exchange=True
            )
        except RuleViolationError as violation:
            raise PlacementError(
                explained(
                    pin.line,
                    f"{var} cannot meet {where}",
                    operands=[f"{var} (placed by {var.line})"],
                    why=str(violation),
                    fixes=[annotate("it", var.spec, pin.placement.line)],
                )
            ) from None

    def move(
        self,
        var: Var,
        target: Spec,
        why: str,
        line: Line,
        regions: tuple[str, ...],
        exchange: bool = False,
    ) -> Var:
        """Return `var` in placement `target`; the same move is made once."""
        if var.spec == target:
            return var
        key = (var, target)
        if key not in self.moved:
            found = hops(var.spec, target, exchange)
            if var.kind in ("param", "cache") and [hop.kind for hop in found] != ["own"]:
                raise RuleViolationError(f"{var} is stationary and is not moved to '{target}'")
            for hop in found:
                made = Var(
                    self.fresh(var.name.rpartition(".")[2].rstrip("_0123456789") or var.name),
                    hop.spec,
                    var.sizes,
                    var.dtype,
                    "activation",
                    line,
                )
                self.steps.append(
                    Move(hop.kind, hop.axes, hop.dim, var, made, why, line, regions, hop.source)
                )
                var = made
            self.moved[key] = var
        return self.moved[key]

    def scan(self, scan: Scan) -> None:
        """Place each block of a scan so that carries leave it as they came in."""
        self.inputs([value for value in scan.constants if value.kind in STATIONARY])
        constants = [self.env[value] for value in scan.constants]
        carry = [self.env[value] for value in scan.carry]
        specs = [var.spec for var in carry]
        while (settled := self.settled(scan, specs, [v.spec for v in constants])) != specs:
            specs = settled
        carry = [
            self.move(var, spec, "the layers hand it on so", scan.line, scan.regions)
            for var, spec in zip(carry, specs, strict=True)
        ]
        for run in scan.runs:
            code = self.block(run.block, tuple(specs), tuple(v.spec for v in constants))
            results = [
                attrs.evolve(inner, name=self.fresh(inner.name), kind="activation", line=scan.line)
                for inner in code.carry
            ]
            self.steps.append(
                Loop(
                    run.start,
                    run.stop,
                    scan.layers,
                    code,
                    tuple(carry),
                    tuple(constants),
                    tuple(results),
                    scan.line,
                )
            )
            carry = results
        self.env.update(zip(scan.results, carry, strict=True))

    def settled(self, scan: Scan, specs: list[Spec], constants: list[Spec]) -> list[Spec]:
        """Return carry placements no more owed than what every block hands on."""
        for run in scan.runs:
            code = self.block(run.block, tuple(specs), tuple(constants))
            specs = [
                _settled(spec, out.spec) for spec, out in zip(specs, code.results, strict=True)
            ]
        return specs

    def block(self, block: Block, carry: tuple[Spec, ...], constants: tuple[Spec, ...]) -> Code:
        """Return the code of a block for these carry placements; the same is made once."""
        key = (id(block), (*carry, *constants))
        if key not in self.made:
            inner = Propagation(self.layout, block.graph, block.name)
            inner.inputs((*block.params, *block.cache))
            inner.inputs(block.carry, carry)
            inner.inputs(block.constants, constants)
            inner.run(block.graph)
            results = []
            for value, spec in zip(block.carry_out, carry, strict=True):
                var = inner.env[value]
                owed = set(spec.partial) <= set(var.spec.partial)
                results.append(
                    inner.move(var, spec, "the carry's type is fixed", var.line, ())
                    if owed
                    else var
                )
            code = inner.code(
                results,
                [inner.env[value] for value in block.cache_out],
                [inner.env[value] for value in block.constants],
                [inner.env[value] for value in block.carry],
            )
            self.made[key] = code
        return self.made[key]

    def code(
        self,
        results: list[Var],
        cache: list[Var],
        constants: Sequence[Var] = (),
        carry: Sequence[Var] = (),
    ) -> Code:
        entered = self.entered
        return Code(
            self.name,
            tuple(entered.get("param", ())),
            () if constants else tuple(entered.get("batch", ())),
            tuple(entered.get("cache", ())),
            tuple(carry),
            tuple(constants),
            live(self.steps, (*results, *cache)),
            tuple(results),
            tuple(cache),
            tuple((regions, budget.all_reduce) for regions, budget in self.graph.budgets.items()),
        )


def _settled(spec: Spec, out: Spec) -> Spec:
    """Return what a carry of type `spec` may owe where a block hands it on as `out`."""
    kind = weakest(spec.reduce, out.reduce)
    kept = tuple(axis for axis in spec.partial if axis in out.partial and kind)
    return attrs.evolve(spec, partial=kept, reduce=kind if kept and kind else SUM)


def refuse_varying(spec: Spec, line: Line) -> None:
    """Refuse a Varying annotation where a global value is meant."""
    if spec.varying:
        raise PlacementError(
            explained(
                line,
                f"'{spec}' is Varying over {'+'.join(spec.varying)}",
                why="such a value has no global meaning, so no op may use it",
                fixes=[annotate("it", attrs.evolve(spec, varying=()), line)],
            )
        )


def live(steps: Sequence[Step], results: Sequence[Var]) -> tuple[Step, ...]:
    """Return the steps that a result or a cache depends on; an unused collective is not issued."""
    needed = set(results)
    kept = []
    for step in reversed(steps):
        writes = isinstance(step, Loop) or any(var.kind == "cache" for var in step.results)
        if writes or needed & set(step.results):
            needed.update(step.operands)
            needed.update(step.metadata if isinstance(step, Apply) else ())
            kept.append(step)
    return tuple(reversed(kept))


def reason(var: Var, target: Spec, op: str, operands: Sequence[Var]) -> str:
    """Return why an op moves an operand, for people."""
    if not var.spec.partial and target.partial:
        return f"one rank adds {var.name} to the sum that {op} finds owed"
    if set(var.spec.partial) - set(target.partial):
        return f"the sum owed since {var.line} is paid before {op}"
    for other in operands:
        shared = set(other.spec.axes) & set(var.spec.axes)
        if other.kind in ("param", "cache") and shared:
            return f"{other.name} '{other.spec}' owns {'+'.join(sorted(shared))} in this {op}"
    return f"{op} needs '{target}'"
