# SPDX-License-Identifier: MIT
"""The certificate that no placements of a block need cheaper collectives: all of them are tried.

Propagation decides op by op.  This search does not: it follows, equation by equation, every way of
placing operands that the rules allow, holds each value in all placements that a way has paid for,
and keeps the ways that no other beats (dynamic programming over Pareto fronts).  What a Replicated
value becomes for nothing, its shards, it counts as.  Parameters, caches and carries are where the
plan has them, boundaries pin what they pin.  Each collective is priced apart, as placements ask for
it; the plan's own may be cheaper than that, where gathers side by side have become one.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs

from .bundle import bundle
from .cost import cost, moves
from .equation import Block, Equation, Pin, Scan
from .error import PlacementError
from .infer import RuleViolationError
from .layout import Layout
from .link import Links
from .program import Code, Move, Var
from .propagate import propagate
from .redistribute import hops
from .reduction import SUM, SUM1, weakest
from .spec import Dim, Spec
from .trace import Traced
from .value import Value

Held = frozenset[Spec]
Group = tuple[int, ...]
Choice = Mapping[str, str | Group]  # by mesh axis: R, the factor that is sharded, who owes
REPLICATED = "R"
NO_FREE = 1e-9


@attrs.frozen
class Certificate:
    """Microseconds of a block's collectives, the least of any placements, how many were tried."""

    name: str
    equations: int
    us: float
    least: float
    tried: int

    @property
    def minimal(self) -> bool:
        return self.us <= self.least + NO_FREE

    def __str__(self) -> str:
        verdict = "none is cheaper" if self.minimal else f"{self.least:.2f} us is possible"
        return (
            f"{self.name}: {self.us:.2f} us of collectives a layer; {verdict} "
            f"({self.equations} equations, {self.tried} ways tried)"
        )


def certificates(
    traced: Traced, layout: Layout, tokens: int, links: Links
) -> Iterator[Certificate]:
    """Yield the certificate of each distinct layer, for steps of `tokens` tokens.

    Raises:
        PlacementError: the layout spreads requests, or slots of a cache: those are not covered.
    """
    if layout.requests:
        raise PlacementError("no certificate for a layout that spreads requests: it is not covered")
    program = bundle(propagate(traced, layout))
    scans = [each for each in traced.graph.equations if isinstance(each, Scan)]
    blocks = {run.block.name: run.block for scan in scans for run in scan.runs}
    for code in program.blocks:
        yield certify(blocks[code.name], code, layout, tokens, links)


def certify(block: Block, code: Code, layout: Layout, tokens: int, links: Links) -> Certificate:
    """Hold the collectives of a block, as it was placed, to those of every other placement."""
    given = {"n": tokens, "m": tokens}
    us = sum(cost(move, layout.mesh, given, links.over(move.axes)).us for move, _ in moves(code))
    search = _Search(layout, given, links, us)
    least = search.least_of(block, code)
    return Certificate(code.name, len(block.graph.equations), us, least, search.tried)


@attrs.frozen
class _Way:
    """A way to have come so far: what it paid, and the placements in which values are held."""

    us: float
    held: Mapping[Value, Held]


class _Search:
    """Follows the ways that cost no more than `most`, the plan's own price."""

    def __init__(self, layout: Layout, given: Mapping[str, int], links: Links, most: float) -> None:
        self.layout, self.mesh, self.given, self.links = layout, layout.mesh, given, links
        self.most = most + NO_FREE
        self.axes = [axis for axis, _ in layout.mesh.factors]
        self.prices: dict[tuple[Value, Spec, Spec], float | None] = {}
        self.tried = 0

    def least_of(self, block: Block, code: Code) -> float:
        """Return the least that the collectives of a block can cost."""
        held = dict[Value, Held]()
        carried = zip((*block.carry, *block.constants), (*code.carry, *code.constants), strict=True)
        for value, var in carried:
            held[value] = frozenset({var.spec})
        for value in (*block.params, *block.cache):
            assert value.placement is not None
            held[value] = frozenset({self.layout.stationary(value.placement.spec)})
        equations = block.graph.equations
        last = {value: at for at, each in enumerate(equations) for value in each.reads}
        last |= dict.fromkeys(block.carry_out, len(equations))
        ways = [_Way(0.0, held)]
        for at, equation in enumerate(equations):
            step = self.apply if isinstance(equation, Equation) else self.pin
            made = [after for way in ways for after in step(equation, way)]  # type: ignore[arg-type]
            self.tried += len(made)
            ways = self.best([self.live(way, last, at) for way in made if way.us <= self.most])
        ends = [
            after.us
            for way in ways
            if (
                after := self.taken(
                    way,
                    [(v, r.spec) for v, r in zip(block.carry_out, code.results, strict=True)],
                )
            )
        ]
        return min([*ends, self.most - NO_FREE])

    def price(self, value: Value, source: Spec, target: Spec) -> float | None:
        """Return what a value's way from one placement to another costs, or None without one."""
        key = (value, source, target)
        if key not in self.prices:
            self.prices[key] = self._price(value, source, target)
        return self.prices[key]

    def _price(self, value: Value, source: Spec, target: Spec) -> float | None:
        us, spec = 0.0, source
        try:
            found = hops(source, target, exchange=True)
        except RuleViolationError:
            return None
        if value.kind in ("param", "cache") and any(hop.kind != "own" for hop in found):
            return None
        for hop in found:
            before, after = (
                Var(value.name, each, value.sizes, value.dtype, "activation", value.line)
                for each in (spec, hop.spec)
            )
            move = Move(hop.kind, hop.axes, hop.dim, before, after, "", value.line, (), hop.source)
            us += cost(move, self.mesh, self.given, self.links.over(move.axes)).us
            spec = hop.spec
        return us

    def taken(self, way: _Way, wanted: Sequence[tuple[Value, Spec]]) -> _Way | None:
        """Return the way on which values were also brought to these placements, if there is one."""
        us, held = way.us, dict(way.held)
        for value, spec in wanted:
            prices = [self.price(value, source, spec) for source in held[value]]
            price = min((each for each in prices if each is not None), default=None)
            if price is None:
                return None
            us += price
            if price > NO_FREE:  # what follows from it for nothing is held with it
                rest = (each for each in held[value] if not self.free(value, spec, each))
                held[value] = frozenset((spec, *rest))
        return _Way(us, held)

    def apply(self, equation: Equation, way: _Way) -> Iterator[_Way]:
        operands, rule = equation.operands, equation.rule
        stored = {
            value: next(iter(way.held[value]))
            for value in operands
            if value.kind in ("param", "cache")
        }
        order = {
            factor: dim.axes
            for factors, value in zip(rule.inputs, operands, strict=True)
            if value in stored
            for factor, dim in zip(factors, stored[value].dims, strict=True)
        }
        for choice in self.choices(equation, order):
            axes = {
                factor: self.over(choice, factor) for factors in rule.inputs for factor in factors
            }
            axes |= {factor: used for factor, used in order.items() if used}
            wanted: list[tuple[Value, Spec]] = []
            for index, (factors, value) in enumerate(zip(rule.inputs, operands, strict=True)):
                owed = tuple(a for a in self.axes if _owes(choice[a], index))
                dims = tuple(
                    Dim(name, axes[factor])
                    for factor, name in zip(factors, value.names, strict=True)
                )
                kind = self.kind(value, owed, way) if owed else SUM
                wanted.append((value, Spec(dims, owed, kind)))
            axes |= dict.fromkeys(rule.parts, axes.get(rule.inputs[0][-1], ()))
            groups = {group for group in choice.values() if isinstance(group, tuple)}
            kept = [rule.kept(g, [wanted[i][1].reduce for i in g]) for g in groups]
            after = None if None in kept else self.taken(way, wanted)
            if after is None:
                continue
            kinds = [kind for kind in kept if kind and not rule.constant]
            results = self.results(equation, choice, axes, kinds, stored)
            if results is not None:
                yield _Way(after.us, {**after.held, **results})

    def kind(self, value: Value, owed: tuple[str, ...], way: _Way) -> str:
        """Return as what a value owes a sum over these axes: a stored one is added by one rank."""
        found = [s.reduce for s in way.held[value] if set(owed) <= set(s.partial)]
        return found[0] if found else SUM1

    def over(self, choice: Choice, factor: str) -> tuple[str, ...]:
        return tuple(axis for axis in self.axes if choice[axis] == factor)

    def choices(self, equation: Equation, order: Mapping[str, tuple[str, ...]]) -> Iterator[Choice]:
        """Yield every choice on every axis; stored values stay, what they hold whole is not cut."""
        rule = equation.rule
        sizes = {
            factor: size
            for factors, value in zip(rule.inputs, equation.operands, strict=True)
            for factor, size in zip(factors, value.sizes, strict=True)
        }
        options: list[list[str | Group]] = []
        for axis in self.axes:
            own = [factor for factor, axes in order.items() if axis in axes]
            if own:
                options.append([*own] if set(own) <= rule.shardable and len(own) == 1 else [])
                continue
            ways = self.mesh.size((axis,))
            shards = [
                factor
                for factor, size in sizes.items()
                if factor in rule.shardable and factor not in order and not (size or 0) % ways
            ]
            options.append([REPLICATED, *shards, *dict.fromkeys((*rule.linear, *rule.alone))])
        for chosen in itertools.product(*options):
            yield dict(zip(self.axes, chosen, strict=True))

    def results(
        self,
        equation: Equation,
        choice: Choice,
        axes: Mapping[str, tuple[str, ...]],
        kinds: Sequence[str],
        stored: Mapping[Value, Spec],
    ) -> dict[Value, Held] | None:
        """Return where the results are, or None if they would owe two things at once."""
        rule, made = equation.rule, dict[Value, Held]()
        donors = {result: equation.operands[operand] for operand, result in equation.op.donates}
        for index, (factors, value) in enumerate(zip(rule.outputs, equation.results, strict=True)):
            if index in donors:
                made[value] = frozenset({stored[donors[index]]})
                continue
            reads = rule.depends[index] if rule.depends else range(len(rule.inputs))
            read = {factor for operand in reads for factor in rule.inputs[operand]}
            reduced = [
                axis
                for factor, used in axes.items()
                if factor not in factors and factor in read and not rule.parts
                for axis in used
            ]
            if any(choice[axis] not in rule.sums for axis in reduced):
                return None
            owed = [a for a in self.axes if isinstance(choice[a], tuple) and not rule.constant]
            kind = weakest(*[*kinds, *([rule.reduce] if reduced else [])] or [SUM])
            if kind is None:
                return None
            dims = tuple(
                Dim(name, axes.get(factor, ()))
                for factor, name in zip(factors, value.names, strict=True)
            )
            partial = self.mesh.ordered({*reduced, *owed})
            made[value] = frozenset({Spec(dims, partial, kind if partial else SUM)})
        return made

    def pin(self, pin: Pin, way: _Way) -> Iterator[_Way]:
        wanted = self.layout.boundary(pin.alias, pin.placement.spec)
        for source in way.held[pin.value]:
            owed = tuple(a for a in source.partial if a not in wanted.axes or a in wanted.partial)
            dims = tuple(
                attrs.evolve(old, axes=new.axes)
                for old, new in zip(source.dims, wanted.dims, strict=True)
            )
            for partial in {owed, ()}:
                target = Spec(dims, partial, source.reduce if partial else SUM)
                if after := self.taken(way, [(pin.value, target)]):
                    yield _Way(after.us, {**after.held, pin.result: frozenset({target})})

    def live(self, way: _Way, last: Mapping[Value, int], at: int) -> _Way:
        """Return a way without what nobody reads any more."""
        held = {
            value: specs
            for value, specs in way.held.items()
            if last.get(value, -1) > at or value.kind in ("param", "cache", "batch")
        }
        return _Way(way.us, held)

    def best(self, ways: list[_Way]) -> list[_Way]:
        """Return the ways that no other one beats, at their price and in what they hold."""
        kept: list[_Way] = []
        for way in sorted(ways, key=lambda way: way.us):
            if not any(self.beats(other, way) for other in kept):
                kept.append(way)
        return kept

    def beats(self, left: _Way, right: _Way) -> bool:
        """Return whether a way that paid no more has, for nothing, all that another one holds."""
        return all(
            specs <= left.held[value]
            or all(
                any(self.free(value, source, spec) for source in left.held[value]) for spec in specs
            )
            for value, specs in right.held.items()
        )

    def free(self, value: Value, source: Spec, target: Spec) -> bool:
        price = self.price(value, source, target)
        return price is not None and price <= NO_FREE


def _owes(choice: str | Group, operand: int) -> bool:
    return isinstance(choice, tuple) and operand in choice
