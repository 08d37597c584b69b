# SPDX-License-Identifier: MIT
"""The verifier: re-checks a typed local program equation by equation, trusting no other pass.

Soundness is per mesh axis.  On each axis an op's operands must be in one of these states:

    all Replicated                              -> results Replicated
    one factor Sharded on all that have it,     -> results Sharded on it; Partial where a
      the rest Replicated                          reduced factor is gone, as the rule says
    one linear group Partial, rest Replicated   -> results Partial; sum1 passes groups that are
                                                   alone, linear or not, and stays sum1
    a merged factor Sharded, rest Replicated    -> first result Partial(lse), others Sharded on it
    ranks serve different requests there, and   -> results Sharded on theirs
      all operands that count rows of requests
      are Sharded on those, the rest Replicated

so every result denotes what the op denotes on one device (up to re-association of sums).
"""

from collections.abc import Iterable

import attrs

from .axis import PARTIAL, REPLICATED, own_rule, sharded_result, state_of
from .composite import alone, arguments
from .error import VerificationError
from .mesh import Mesh
from .program import STARTABLE, Apply, Code, Loop, Move, Program, Project, Step, Var
from .reduction import ARGMAX, LSE, MAX, SUM, SUM1, SUMS, passes
from .region import Region
from .rule import Rule
from .spec import Spec

_PAID = {"all_reduce": (*SUMS, MAX, ARGMAX), "merge": (LSE,)}  # by others, sums only


def verify(program: Program) -> None:
    """Check that every value denotes the single-device one and that ranks cannot diverge.

    Raises:
        VerificationError: naming the step, its line and the rule that it breaks.
    """
    for code in program.blocks:
        Verification(program.mesh, code).run()
    driver = program.driver
    Verification(program.mesh, driver).run()
    for var in driver.results:
        if not set(var.spec.axes) <= set(program.mesh.requests) or var.spec.partial:
            raise VerificationError(f"{var.line}: the program's result {var} is not Replicated")
    known = {id(code) for code in program.blocks}
    for step in driver.steps:
        if isinstance(step, Loop) and id(step.block) not in known:
            raise VerificationError(f"{step.line}: block {step.block.name} was not verified")


class Verification:
    """One pass over one function: the values defined so far, and the buffers given away.

    A stage of a pipeline hands its results to another function, not its carry to itself.
    """

    def __init__(self, mesh: Mesh, code: Code, is_stage: bool = False) -> None:
        self.mesh, self.code, self.is_stage = mesh, code, is_stage
        self.live: set[Var] = set()
        self.dead: set[Var] = set()
        self.reduced: set[Var] = set()
        self.routed: dict[Var, tuple[Move, ...]] = {}  # what has its experts' rows only
        self.last: Step | None = None

    def run(self) -> None:
        code = self.code
        for var in (*code.params, *code.batch, *code.cache, *code.carry, *code.constants):
            self.define(var, f"input of {code.name}")
            if var.kind in ("param", "cache") and var.spec.partial:
                self.fail(var, "a stored value is Partial")
        for step in code.steps:
            self.step(step)
        self.composites()
        for var in (*code.results, *code.cache_results):
            self.read(var, f"result of {code.name}")
            if var in self.routed:
                self.fail(var, "a result lacks the rows that went to other ranks")
        carry = () if self.is_stage else code.carry
        for before, after in zip(carry, code.results, strict=False):
            if after.spec.varying or before.spec.varying:
                self.fail(after, "Varying between layers")
            if not _may_be(after, before):
                self.fail(after, f"the carry came in as {before} and leaves as {after}")
        if carry and len(carry) != len(code.results):
            raise VerificationError(f"{code.name} takes {len(code.carry)} carries, not as many out")
        for before, after in zip(code.cache, code.cache_results, strict=False):
            if not _same_type(before, after):
                self.fail(after, f"the cache came in as {before} and leaves as {after}")

    def composites(self) -> None:
        """Check that each composite's call computes its parts, and hides nothing that is read."""
        parts = [id(part) for each in self.code.composites for part in each.parts]
        if len(set(parts)) != len(parts):
            raise VerificationError(f"{self.code.name}: a step is part of two composites")
        for each in self.code.composites:
            where = f"{each.last.line}: {each.name}"
            if arguments(each) is None:
                raise VerificationError(f"{where} does not compute the steps that it stands for")
            if not alone(self.code, each):
                raise VerificationError(f"{where}: another step reads what is inside it")

    def step(self, step: Step) -> None:
        applies = step.applies if isinstance(step, Project) else ()
        if isinstance(step, Apply):
            applies = (step,)
        where = f"{step.line}: {type(step).__name__}"
        for var in step.operands:
            self.read(var, where)
        if any(var in self.routed for var in step.operands):
            self.route(step, where)
        for apply in applies:
            spread = self.apply(apply)
            for var in apply.metadata:
                self.read(var, where)
                if set(var.spec.axes) != spread:
                    self.fail(var, f"{apply.op.name} reads metadata that is not of its rows")
        if isinstance(step, Project) and len({apply.operands[0] for apply in applies}) != 1:
            raise VerificationError(f"{where}: siblings of different activations share a pack")
        if isinstance(step, Move):
            self.move(step)
        if isinstance(step, Loop):
            self.loop(step)
        region = isinstance(step, Apply) and step.op.region
        for var in (*step.operands, *step.results):
            if var.spec.varying and not region:
                self.fail(var, "Varying outside a region that declares it")
        for var in step.results:
            self.define(var, where)
        self.last = step

    def route(self, step: Step, where: str) -> None:
        """Check who reads rows of which others are elsewhere: an op that routes, or a combine."""
        if isinstance(step, Move) and step.kind == "combine":
            sent = self.routed[step.operand]
            if (sent[0].axes, sent[0].dim, sent[0].routed) != (step.axes, step.dim, step.routed):
                raise VerificationError(f"{where}: rows come back another way than they went")
            return
        if not isinstance(step, Apply) or not own_rule(step).routes:
            raise VerificationError(f"{where}: it reads rows of which others are elsewhere")
        sent = self.routed.get(step.operands[0], ())
        if tuple(move.result for move in sent) != step.operands[:3]:
            raise VerificationError(f"{where}: its rows, ids and weights went different ways")
        self.routed[step.results[0]] = sent
        for factors, var in zip(step.rule.inputs, step.operands, strict=True):
            if step.rule.offset in factors:
                at = factors.index(step.rule.offset)
                count, axes = var.sizes[at] or 0, var.spec.dims[at].axes
                active = step.operands[1].sizes[1]
                routed = (count // self.mesh.size(sent[0].axes), active)
                if axes[: len(sent[0].axes)] != sent[0].axes or sent[0].routed != routed:
                    raise VerificationError(f"{where}: rows go to other ranks than {var} lies on")

    def read(self, var: Var, where: str) -> None:
        if var in self.dead:
            self.fail(var, f"read after it was donated, by {where}")
        if var not in self.live:
            self.fail(var, f"read before it is defined, by {where}")

    def define(self, var: Var, where: str) -> None:
        if var in self.live:
            self.fail(var, f"defined twice, by {where}")
        axes = var.spec.axes
        if len(set(axes)) != len(axes):
            self.fail(var, "one axis stands twice in its placement")
        unknown = set(axes) - {factor for factor, _ in self.mesh.factors}
        if unknown:
            self.fail(var, f"{unknown.pop()!r} is not a factor of mesh {self.mesh}")
        if set(axes) & set(self.mesh.stages):
            self.fail(var, "it is placed along the pipeline, whose ranks share no value")
        for dim, size in zip(var.spec.dims, var.sizes, strict=True):
            if size is not None and size % self.mesh.size(dim.axes):
                self.fail(var, f"{dim} does not divide its size {size}")
        self.live.add(var)

    def fail(self, var: Var, reason: str) -> None:
        raise VerificationError(f"{var.line}: {var} in {self.code.name}: {reason}")

    def apply(self, apply: Apply) -> set[str]:
        """Check one op; return the axes along which it runs on each rank's requests alone."""
        where = f"{apply.line}: {apply.op.name}"
        rule = own_rule(apply)
        if rule != apply.rule:
            raise VerificationError(f"{where} carries the rule {apply.rule}, its own is {rule}")
        if region := apply.op.region:
            self.region(apply, region, where)
        everything = (
            *zip(rule.inputs, apply.operands, strict=True),
            *zip(rule.outputs, apply.results, strict=True),
        )
        sizes: dict[str, int | None] = {}
        axes: dict[str, tuple[str, ...]] = {}
        for factors, var in everything:
            if len(factors) != len(var.spec.dims):
                raise VerificationError(f"{where}: {var} does not have the dims {factors}")
            for factor, dim, size in zip(factors, var.spec.dims, var.sizes, strict=True):
                if sizes.setdefault(factor, size) != size and None not in (size, sizes[factor]):
                    raise VerificationError(f"{where}: factor {factor} has two sizes, see {var}")
                if axes.setdefault(factor, dim.axes) != dim.axes and not region:
                    raise VerificationError(f"{where}: factor {factor} is placed twice, see {var}")
        if region:
            return set()
        spread = {axis for axis, _ in self.mesh.factors if self.axis(apply, rule, axis, where)}
        for operand, result in apply.op.donates:
            given, taken = apply.operands[operand], apply.results[result]
            if given.kind != "cache" or not _same_type(given, taken):
                raise VerificationError(f"{where}: {given} is donated to {taken}")
            self.dead.add(given)
        return spread

    def region(self, apply: Apply, region: Region, where: str) -> None:
        """Check a region against the types that it declares; that they are true, others try."""
        taken = region.targets(self.mesh, [var.spec for var in apply.operands])
        made = region.results(self.mesh, [var.spec.names for var in apply.results])
        everything = zip((*apply.operands, *apply.results), (*taken, *made), strict=True)
        for var, spec in everything:
            if var.spec != spec:
                raise VerificationError(f"{where} declares '{spec}', but meets {var}")

    def axis(self, apply: Apply, rule: Rule, axis: str, where: str) -> bool:
        """Check one op on one mesh axis against the table above; True: by its last line."""
        states = [
            state_of(f, v.spec, axis) for f, v in zip(rule.inputs, apply.operands, strict=True)
        ]
        results = [
            state_of(f, v.spec, axis) for f, v in zip(rule.outputs, apply.results, strict=True)
        ]
        partial = tuple(i for i, state in enumerate(states) if state == PARTIAL)
        spread = axis in self.mesh.requests and not rule.rows.isdisjoint(states)
        sharded = {state for state in states if state not in (REPLICATED, PARTIAL)}
        kind: str | None = rule.reduce
        if spread:
            for factors, state in zip(rule.inputs, states, strict=True):
                counts = rule.rows.intersection(factors)
                if state not in (counts or {REPLICATED}):
                    raise VerificationError(
                        f"{where}: on {axis}, along which requests differ, operands are {states}: "
                        f"rows would point into other ranks' requests"
                    )
            expected = [
                next(iter(rule.rows.intersection(factors)), REPLICATED) for factors in rule.outputs
            ]
        elif partial:
            kind = rule.kept(partial, [apply.operands[i].spec.reduce for i in partial])
            if kind is None or sharded:
                raise VerificationError(
                    f"{where}: on {axis} operands are {states}: a sum is owed where the op is "
                    f"not linear, or together with shards"
                )
            expected = [REPLICATED if rule.constant else PARTIAL] * len(results)
        elif sharded:
            factor = sharded.pop()
            if sharded or factor not in rule.shardable | rule.merges:
                raise VerificationError(f"{where}: on {axis} operands are {states}: not shardable")
            expected = [sharded_result(rule, index, factor) for index in range(len(rule.outputs))]
        else:
            expected = [REPLICATED] * len(results)
        if not rule.merges.isdisjoint(states):
            kind = LSE
        for state, result in zip(results, apply.results, strict=True):
            if state == PARTIAL and not (kind and passes(kind, result.spec.reduce)):
                raise VerificationError(f"{where}: on {axis} {result} owes another reduction")
        if results != expected:
            raise VerificationError(
                f"{where}: on {axis} operands {states} give {expected}, but it claims {results}"
            )
        return spread

    def move(self, move: Move) -> None:
        where = f"{move.line}: {move.kind} over {'+'.join(move.axes)} of {move.operand}"
        source, result = move.operand, move.result
        dims = list(source.spec.dims)
        partial = source.spec.partial
        if source.kind == "cache" or (source.kind == "param" and move.kind != "own"):
            raise VerificationError(f"{where}: stored values are never moved")
        if any(at is not None and at >= len(dims) for at in (move.dim, move.source)):
            raise VerificationError(f"{where}: it has no dim {move.dim} or {move.source}")
        if any(at is not None and dims[at].segments for at in (move.dim, move.source)):
            raise VerificationError(f"{where}: shards of a direct sum are not side by side")
        if move.joins and not (
            isinstance(self.last, Move)
            and (self.last.kind, self.last.axes, self.last.dim) == (move.kind, move.axes, move.dim)
            and self.last.routed == move.routed
            and move.kind in ("all_gather", "dispatch")
            and move.operand is not self.last.result
        ):
            raise VerificationError(f"{where}: it cannot join what stands before it")
        alone = move.kind in STARTABLE and not move.joins
        if move.started and (not alone or result in self.code.results):
            raise VerificationError(f"{where}: it cannot be started apart from its end")
        if (move.kind in ("dispatch", "combine")) != (move.routed is not None):
            raise VerificationError(f"{where}: rows are routed by a dispatch and a combine only")
        if move.kind == "dispatch":
            sent = self.routed[self.last.results[0]] if move.joins and self.last else ()
            for each in (*sent, move):
                self.routed[each.result] = (*sent, move)
        if move.kind == "combine" and source not in self.routed:
            raise VerificationError(f"{where}: nothing was dispatched")
        if move.kind == "all_reduce" and move.axes != self.mesh.ordered(set(move.axes)):
            raise VerificationError(f"{where}: a group is summed in mesh order, or bits differ")
        if move.kind in ("all_reduce", "reduce_scatter", "combine", "merge"):
            if source.spec.reduce not in _PAID.get(move.kind, SUMS):
                raise VerificationError(f"{where}: a {source.spec.reduce} is owed")
            if not move.axes or not set(move.axes) <= set(partial):
                raise VerificationError(f"{where}: nothing is owed there, it would be summed twice")
            if move.kind == "merge" and move.axes != partial:
                raise VerificationError(f"{where}: shares are merged all at once")
            if move.kind == "all_reduce" and source in self.reduced:
                raise VerificationError(f"{where}: summed in two steps, ranks may differ in bits")
            if move.kind == "all_reduce":
                self.reduced.add(result)
            partial = tuple(axis for axis in partial if axis not in move.axes)
        elif set(move.axes) & set(partial):
            raise VerificationError(f"{where}: a sum is owed over these axes")
        if move.kind in ("all_gather", "dispatch"):
            used = dims[move.dim or 0].axes
            if move.dim is None or not move.axes or used[-len(move.axes) :] != move.axes:
                raise VerificationError(f"{where}: not its minor axes on dim {move.dim}")
            dims[move.dim] = attrs.evolve(dims[move.dim], axes=used[: -len(move.axes)])
        elif move.kind == "all_to_all":
            used = dims[move.source or 0].axes
            if None in (move.dim, move.source) or move.dim == move.source or not move.axes:
                raise VerificationError(f"{where}: it moves a shard from one dim to another")
            if used[-len(move.axes) :] != move.axes:
                raise VerificationError(f"{where}: not the minor axes of dim {move.source}")
            assert move.source is not None
            assert move.dim is not None
            dims[move.source] = attrs.evolve(dims[move.source], axes=used[: -len(move.axes)])
            dims[move.dim] = attrs.evolve(dims[move.dim], axes=(*dims[move.dim].axes, *move.axes))
        elif move.kind in ("reduce_scatter", "combine", "slice"):
            if move.dim is None or source.spec.reduce == LSE:
                raise VerificationError(f"{where}: no dim to shard, or shares not merged")
            if source.spec.reduce == ARGMAX and move.dim == len(dims) - 1:
                raise VerificationError(f"{where}: a value and its index belong together")
            dims[move.dim] = attrs.evolve(dims[move.dim], axes=(*dims[move.dim].axes, *move.axes))
        elif move.kind == "own":
            axes = self.mesh.ordered(set(move.axes))
            if not axes or axes != move.axes or set(axes) & set(source.spec.axes) or partial:
                raise VerificationError(f"{where}: it is not Replicated over {axes}")
            partial = axes
        elif move.kind not in ("all_reduce", "merge"):
            raise VerificationError(f"{where}: unknown redistribution")
        if move.kind in ("all_reduce", "merge", "own") and move.dim is not None:
            raise VerificationError(f"{where}: it shards no dim")
        kind = SUM1 if move.kind == "own" else source.spec.reduce
        spec = Spec(tuple(dims), partial, kind if partial else SUM)
        if (spec, source.sizes, source.dtype) != (result.spec, result.sizes, result.dtype):
            raise VerificationError(f"{where} gives '{spec}', but it claims {result}")

    def loop(self, loop: Loop) -> None:
        where = f"{loop.line}: layers {loop.start}:{loop.stop}"
        pairs: Iterable[tuple[Var, Var]] = (
            *zip(loop.carry, loop.block.carry, strict=True),
            *zip(loop.constants, loop.block.constants, strict=True),
            *zip(loop.block.results, loop.results, strict=True),
        )
        for given, taken in pairs:
            if not _may_be(given, taken):
                raise VerificationError(f"{where}: {given} is passed for {taken}")
        if not loop.start < loop.stop:
            raise VerificationError(f"{where}: no layers")


def _same_type(left: Var, right: Var) -> bool:
    return (left.spec, left.sizes, left.dtype) == (right.spec, right.sizes, right.dtype)


def _may_be(given: Var, taken: Var) -> bool:
    """Return whether a value has a type, or a sum of a special kind passes for a plain one."""
    spec = given.spec
    if spec.partial and passes(spec.reduce, taken.spec.reduce):
        spec = attrs.evolve(spec, reduce=taken.spec.reduce)
    return (spec, given.sizes, given.dtype) == (taken.spec, taken.sizes, taken.dtype)
