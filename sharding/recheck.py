# SPDX-License-Identifier: MIT
"""Re-verification of an emitted file from its text: it is run on types instead of tensors.

Each op and collective of the file makes one step of a program, which the verifier checks; weights
and caches have the types that the plan stores.  So a program that was opened and edited by hand
is accepted only if it still denotes what the model computes on one device, placement by placement.
"""

import linecache
import math
from typing import Any

import attrs

from .error import VerificationError
from .infer import Operand, RuleViolationError, infer
from .line import author_line
from .op import OPS, Op, Recorder
from .plan import Plan
from .pointwise import ADD, MUL, pointwise
from .program import Apply, Code, Loop, Step, Var
from .region import placed
from .rule import Rule, contraction
from .spec import Dim, Spec
from .storage import Member, Pack, nest
from .tree import leaves, map_leaves
from .typed_collectives import Collectives, Start, moved
from .verify import Verification


def recheck(plan: Plan, source: str, path: str = "<program>") -> None:
    """Check a text of the emitted program of `plan`; `path` is its file, for messages.

    Raises:
        VerificationError: naming the line of the text, and the rule that it breaks.
    """
    lines = source.splitlines(keepends=True)
    linecache.cache[path] = (len(source), None, lines, path)
    names: dict[str, Any] = {"__name__": path}
    exec(compile(source, path, "exec"), names)
    if plan.parts:
        from .recheck_stages import recheck_stages  # it runs this file's classes

        return recheck_stages(plan, names["forward"])
    check = Check(plan)
    columns = {var.name.partition(".")[2]: check.given(var) for var in plan.program.driver.batch}
    batch = attrs.make_class("Columns", list(columns))(**columns)
    result, _ = names["forward"](Collectives(check), check.weights(), check.caches(), batch)
    check_results(result, plan.program.driver.results)


def check_results(result: Any, expected: tuple[Var, ...]) -> None:
    """Raise VerificationError where a text's result has other types than the program's."""
    made = tuple(leaf.var for _, leaf in leaves(result))
    for got, wanted in zip(made, expected, strict=True):
        if (got.spec, got.dtype) != (wanted.spec, wanted.dtype):
            wrong = f"{got.line}: the result is {got}, it should be '{wanted.spec}'"
            raise VerificationError(wrong)


class Check:
    """One run of a text: what the plan stores, and the verifier that sees every step."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.mesh = plan, plan.mesh
        empty: tuple[Any, ...] = ()
        code = Code(plan.name, empty, empty, empty, empty, empty, empty, empty, empty, empty)
        self.verifier = Verification(plan.mesh, code)

    def given(self, var: Var) -> "Local":
        """Return a stored value of the type of `var`."""
        own = attrs.evolve(var)
        self.verifier.define(own, "the plan")
        return Local(self, own)

    def step(self, step: Step) -> None:
        self.verifier.step(step)

    def weights(self) -> dict[str, Any]:
        packs: dict[str, Any] = {}
        for pack in self.plan.storage:
            members = [self.given(_stored(member, pack)) for member in pack.params]
            plain = "(" not in pack.members[0].pattern
            packs[pack.name] = members[0] if plain else Weights(pack, tuple(members))
        return nest(packs)

    def caches(self) -> Any:
        specs: dict[str, Var] = {var.name: var for var in self.plan.program.driver.cache}
        loops = [step for step in self.plan.program.driver.steps if isinstance(step, Loop)]
        for step in loops:
            for layer in range(step.start, step.stop):
                for var in step.block.cache:
                    at = layer - loops[0].start  # a stage has its own layers' only
                    specs[f"caches.{at}.{var.name.partition('.')[2]}"] = var

        def stored(path: str, _: Any) -> Any:
            var = specs.get(f"caches.{path}")
            return self.given(var) if var else None

        return map_leaves(stored, self.plan.caches)


class Local(Recorder):
    """A typed value of the text: what stands there for a tensor."""

    def __init__(self, check: Check, var: Var) -> None:
        self.check, self.var, self.names = check, var, var.spec.names

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        if op.definition:
            return op.definition(*args)
        if op.name == "split":
            raise VerificationError(f"{author_line()}: split takes one product's, got {self.var}")
        if op.name == "linear" and isinstance(args[1], Weights):
            return args[1].applied(self, self)
        if op.name == "linear":  # one parameter that other ops read too, stored as it is
            (row, shared), (out, _) = self.names, args[1].names
            equation = f"{row} {shared}, {out} {shared} -> {row} {out}"
            bound = contraction(equation)
            return applied(self.check, OPS["einsum"], (equation, self, args[1]), bound)
        if op.name == "shard":
            ways = self.check.mesh.size(args[1].axes)
            if args[2] != ways:
                raise VerificationError(f"{author_line()}: {args[2]} shards, not {ways}")
            return moved(self, "slice", args[1].axes, args[3])
        if op.name == "own":
            return moved(self, "own", args[1].axes, None)
        for whole in OPS.values():
            if whole.share == op.name:
                return applied(self.check, whole, args[:-2], rule, args[-2:])
        return applied(self.check, op, args, rule)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Return the sizes of a rank's shard."""
        return self.var.local(self.check.mesh)

    def flatten(self, start: int) -> "Columns":
        return Columns(self)

    def __add__(self, other: Any) -> Any:
        return pointwise(ADD, self, other)

    def __mul__(self, other: Any) -> Any:
        return pointwise(MUL, self, other)

    __radd__, __rmul__ = __add__, __mul__


class Columns(Recorder):
    """A value whose dims after the first are side by side, as `linear` takes it."""

    def __init__(self, of: Local) -> None:
        self.of = of

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        return op.definition(*args) if op.definition else args[1].applied(self.of, self)


class Rows(Recorder):
    """The results of one `linear`, side by side until they are split."""

    def __init__(self, check: Check, values: tuple[Local, ...]) -> None:
        self.check, self.values = check, values

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Return the sizes of a rank's shard: rows, and all columns."""
        widths = (math.prod(size or 1 for size in value.shape[1:]) for value in self.values)
        return (self.values[0].shape[0], sum(widths))

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        if op.definition:
            return op.definition(*args)
        if op.name == "split":
            if tuple(value.shape[1:] for value in self.values) != args[1:]:
                raise VerificationError(f"{author_line()}: split does not meet what is stored")
            return self.values
        for user in OPS.values():
            if user.packed == op.name:
                return applied(self.check, user, self.values, None)
        raise VerificationError(f"{author_line()}: {op.name} takes values that are not split")

    def unflatten(self, dim: int, shape: tuple[int, ...]) -> Local:
        assert (dim, shape) == (1, self.values[0].shape[1:]), (dim, shape)
        return self.values[0]


@attrs.frozen(eq=False)
class Weights:
    """A stored tensor of several parameters that one `linear` contracts with an activation."""

    pack: Pack
    members: tuple[Local, ...]

    def applied(self, x: Local, given: Recorder) -> Any:
        """Return the contractions of `x` with each parameter."""
        made = []
        for member, weight in zip(self.pack.params, self.members, strict=True):
            out, shared = member.pattern.partition("->")[2].strip(" ()").split(") (")
            left = (x.names[0], *shared.split())
            if x.names != left or (len(left) > 2) != isinstance(given, Columns):
                raise VerificationError(
                    f"{author_line()}: {self.pack.name} contracts '{shared}', got {x.var}"
                )
            equation = f"{' '.join(left)}, {' '.join(weight.names)} -> {left[0]} {out}"
            rule = contraction(equation)
            made.append(applied(x.check, OPS["einsum"], (equation, x, weight), rule))
        alone = len(made) == 1 and len(made[0].names) == 2
        return made[0] if alone else Rows(x.check, tuple(made))


def applied(
    check: Check,
    op: Op,
    args: tuple[Any, ...],
    rule: Rule | None,
    share: tuple[Any, ...] = (),
) -> Any:
    """Return the typed results of an op, which may move nothing; `share` is (place, ways) of one.

    Raises:
        VerificationError: no rule makes them, or the op is told another shard than its operands'.
    """
    line = author_line()
    found = [leaf for _, leaf in leaves(args) if isinstance(leaf, Local)]
    count = len((rule or op.rule).inputs)
    operands = tuple(leaf.var for leaf in found[:count])
    bound = (rule or op.rule).expanded(tuple(len(var.spec.dims) for var in operands))
    for factors, var in zip(bound.inputs, operands, strict=False):
        if len(factors) != len(var.spec.dims) or len(operands) < count:
            raise VerificationError(f"{line}: {op.name} takes '{' '.join(factors)}', got {var}")
    specs = [var.spec for var in operands]
    region = op.region
    try:
        if region:
            inferred = placed(region, specs, bound, check.mesh)
        else:
            inferred = infer(bound, [Operand(spec, False) for spec in specs], check.mesh)
    except RuleViolationError as error:
        raise VerificationError(f"{line}: {op.name}: {error}") from None
    for var, target in zip(operands, inferred.targets, strict=True):
        if var.spec != target:
            raise VerificationError(f"{line}: {op.name} needs {var} as '{target}'")
    names, sizes = _factors(op, bound, operands, args)
    kinds = op.dtype(operands[op.dtype_of].dtype)
    donors = {result: operand for operand, result in op.donates}
    results = []
    for index, factors in enumerate(bound.outputs):
        if index in donors:
            results.append(attrs.evolve(operands[donors[index]], line=line))
            continue
        spec = inferred.result(factors, [names[factor] for factor in factors])
        dtype = kinds[len(results)] if isinstance(kinds, tuple) else kinds
        size = tuple(sizes[factor] for factor in factors)
        if region:
            named = [[names[factor] for factor in each] for each in bound.outputs]
            spec = region.results(check.mesh, named)[index]
        results.append(Var(op.name, spec, size, dtype, "activation", line))
    merged: tuple[str, ...] = ()
    if region and (merged := region.told(check.mesh)):
        args, share = args[:-2], args[-2:]
    plain = tuple(arg.var if isinstance(arg, Local) else arg for arg in args)
    metadata = tuple(leaf.var for leaf in found[count:])
    step = Apply(op, bound, plain, operands, metadata, tuple(results), line, ())
    if offset := step.offset(check.mesh):
        var, at, axes = offset
        start = Start(axes, var.local(check.mesh)[at])
        if start not in args:
            raise VerificationError(
                f"{line}: {op.name} is not told that its shard starts at {start}"
            )
    merged = merged if region else step.share()
    if share != ((Start(merged), check.mesh.size(merged)) if merged else ()):
        over = "+".join(merged) or "nothing"
        raise VerificationError(f"{line}: {op.name} is cut over {over}, it is told {share}")
    check.step(step)
    flat = tuple(Local(check, var) for var in results)
    if op.result:
        return op.result(args, flat)
    return flat[0] if len(flat) == 1 else flat


def _factors(
    op: Op, rule: Rule, operands: tuple[Var, ...], args: tuple[Any, ...]
) -> tuple[dict[str, str], dict[str, int | None]]:
    names: dict[str, str] = {}
    sizes: dict[str, int | None] = {}
    for factors, var in zip(rule.inputs, operands, strict=True):
        for factor, dim, size in zip(factors, var.spec.dims, var.sizes, strict=True):
            names.setdefault(factor, dim.name)
            if sizes.get(factor) is None:
                sizes[factor] = size
    for factor, size in op.sizes(sizes, args).items():
        names[factor], sizes[factor] = factor, size
    return names, sizes


def _stored(member: Member, pack: Pack) -> Var:
    dims = tuple(Dim(n, a) for n, a in zip(member.names, member.axes, strict=True))
    return Var(member.path, Spec(dims), member.sizes, pack.dtype, "param", author_line())
