# SPDX-License-Identifier: MIT
"""A mesh in one process: every value is the list of what each rank holds, ops run rank by rank."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import torch
from torch import Tensor

from .channels import Channels, NothingSentError, check_type, taken
from .error import VerificationError
from .merge import merged
from .mesh import Mesh
from .op import Op, Recorder
from .plan import Plan
from .reduction import SUM, SUM1, reduced
from .rule import Rule
from .tree import is_module, map_leaves


class Ranks(Recorder):
    """One value on all ranks, in rank order.  Ops and tensor methods apply rank by rank."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        if op.collective:  # a rank alone cannot run it
            assert op.definition is not None
            return op.definition(*args)
        return self._each(op.run, *args)

    def _each(self, run: Callable[..., Any], *args: Any) -> Any:
        results = [run(*(_of_rank(arg, rank) for arg in args)) for rank in range(len(self.parts))]
        return _joined(results)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = [getattr(part, name) for part in self.parts]
        if callable(found[0]):
            return lambda *args: self._each(
                lambda part, *rest: getattr(part, name)(*rest), self, *args
            )
        assert all(each == found[0] for each in found), f"ranks differ in {name}"
        return found[0]

    def __add__(self, other: Any) -> Any:
        return self._each(lambda left, right: left + right, self, other)

    def __mul__(self, other: Any) -> Any:
        return self._each(lambda left, right: left * right, self, other)

    __radd__, __rmul__ = __add__, __mul__


def _of_rank(arg: Any, rank: int) -> Any:
    if isinstance(arg, Ranks):
        return arg.parts[rank]
    if isinstance(arg, (tuple, list)) or is_module(arg):
        return map_leaves(lambda _, leaf: _of_rank(leaf, rank), arg)
    return arg


def _joined(results: Sequence[Any]) -> Any:
    first = results[0]
    if isinstance(first, tuple):
        return tuple(_joined(parts) for parts in zip(*results, strict=True))
    if is_module(first):
        return type(first)(
            **{
                field.name: _joined([getattr(result, field.name) for result in results])
                for field in attrs.fields(type(first))
            }
        )
    return Ranks(results)


@attrs.frozen(eq=False)
class Pending:
    """A collective that has begun: nothing may be computed with it."""

    operand: Ranks
    before: list[Tensor]
    result: Ranks


@attrs.define
class LockStep:
    """Collectives of a simulated mesh: exact, sums in rank order, and a log of what was issued.

    The ranks are those of one stage of a pipeline, `stage`, if there is one.
    """

    mesh: Mesh
    stage: int = 0
    channels: Channels = attrs.field(factory=lambda: Channels.between(1))
    log: list[tuple[str, str]] = attrs.field(factory=list)

    def rank(self, axis: str) -> Any:
        """Return each rank's place along `axis`; one number along the pipeline."""
        if not self._factors(axis):  # the pipeline's: these ranks are at one place of it
            return self.stage
        return Ranks(
            [self.mesh.index(rank, self._factors(axis)) for rank in range(self.mesh.num_ranks)]
        )

    def all_reduce(self, x: Ranks, axis: str, kind: str = SUM) -> Ranks:
        """Return the sum over `axis`, or the reduction of another `kind`."""
        return self._exchange("all_reduce", x, axis, lambda parts, place: _whole(parts, kind))

    def all_gather(self, x: Ranks, axis: str, dim: int) -> Ranks:
        """Return the shards of `axis` concatenated along `dim`."""
        return self._exchange("all_gather", x, axis, lambda parts, place: torch.cat(parts, dim))

    def reduce_scatter(self, x: Ranks, axis: str, dim: int, kind: str = SUM) -> Ranks:
        """Return this rank's shard along `dim` of the sum over `axis`."""
        return self._exchange(
            "reduce_scatter",
            x,
            axis,
            lambda parts, place: _shard(_whole(parts, kind), len(parts), dim, place),
        )

    def all_to_all(self, x: Ranks, axis: str, source: int, dim: int) -> Ranks:
        """Return dim `source` whole and this rank's shard of `dim`."""

        def combine(parts: list[Tensor], place: int) -> Tensor:
            return torch.cat([_shard(part, len(parts), dim, place) for part in parts], source)

        return self._exchange("all_to_all", x, axis, combine)

    def merge(self, x: Ranks, axis: str, dtype: str) -> Ranks:
        """Return attention merged from shares `[..., h + 1]`, the last column their log-sum-exp."""
        return self._exchange(
            "merge", x, axis, lambda parts, place: merged(parts).to(getattr(torch, dtype))
        )

    def start(self, kind: str, x: Ranks, *given: Any) -> "Pending":
        """Begin a collective; its operand must stay as it is until the wait."""
        return Pending(x, [part.clone() for part in x.parts], getattr(self, kind)(x, *given))

    def wait(self, pending: "Pending") -> Ranks:
        """Return a begun collective's result.

        Raises:
            VerificationError: its operand was written to meanwhile.
        """
        for before, part in zip(pending.before, pending.operand.parts, strict=True):
            if not torch.equal(_bits(before), _bits(part)):
                raise VerificationError("a collective's operand was written to while it went on")
        return pending.result

    def all_gathers(self, values: tuple[Ranks, ...], axis: str, dim: int) -> tuple[Ranks, ...]:
        """Return each value gathered, as one collective."""
        made = tuple(self.all_gather(x, axis, dim) for x in values)
        del self.log[len(self.log) - len(values) + 1 :]
        return made

    def dispatch(
        self, x: Ranks, ids: Ranks, weights: Ranks, axis: str, share: int
    ) -> tuple[Any, ...]:
        """Return the rows of which a rank has an expert, `share` experts a rank, and their way."""
        self.log.append(("dispatch", axis))
        trips: list[Any] = [None] * self.mesh.num_ranks
        received = {id(value): list[Any](value.parts) for value in (x, ids, weights)}
        for group in self.mesh.groups(self._factors(axis)):
            for place, rank in enumerate(group):
                rows = [
                    (ids.parts[source] // share == place).any(1).nonzero()[:, 0] for source in group
                ]
                trips[rank] = (rows, ids.parts[rank].shape[0])
                for value in (x, ids, weights):
                    received[id(value)][rank] = torch.cat(
                        [value.parts[s][taken] for s, taken in zip(group, rows, strict=True)]
                    )
        return (*(Ranks(received[id(value)]) for value in (x, ids, weights)), Ranks(trips))

    def combine(self, y: Ranks, trip: Ranks, axis: str) -> Ranks:
        """Return each rank's own rows, summed over the ranks that computed them, in rank order."""
        self.log.append(("combine", axis))
        results: list[Any] = [None] * self.mesh.num_ranks
        for group in self.mesh.groups(self._factors(axis)):
            for place, rank in enumerate(group):
                part = y.parts[rank]
                total = part.new_zeros(trip.parts[rank][1], *part.shape[1:])
                for other in group:
                    rows, _ = trip.parts[other]
                    mine = y.parts[other].split([len(taken) for taken in rows])[place]
                    total.index_add_(0, rows[place], mine)
                results[rank] = total
        return Ranks(results)

    def send(self, axis: str, *values: Ranks) -> None:
        """Hand values to the next stage."""
        self.log.append(("send", axis))
        self.channels.seams[self.stage + 1].put([value.parts for value in values])

    def receive(self, axis: str, *types: tuple[Any, ...]) -> list[Ranks]:
        """Return what the stage before sent, of these dtypes and sizes on each rank."""
        values = taken(self.channels.seams[self.stage])
        for parts, given in zip(values, types, strict=True):
            check_type(parts, given)
        return [Ranks(parts) for parts in values]

    def publish(self, axis: str, x: Ranks) -> Ranks:
        """Return the last stage's value, handed to all others."""
        self.log.append(("publish", axis))
        for channel in self.channels.results[:-1]:
            channel.put(x.parts)
        return x

    def published(self, axis: str, given: tuple[Any, ...]) -> Ranks:
        """Return the last stage's value, of this dtype and these sizes on each rank."""
        parts = taken(self.channels.results[self.stage])
        check_type(parts, given)
        return Ranks(parts)

    def check(self, x: Ranks, axes: tuple[str, ...], what: str) -> None:
        """Check that a value has the same bits on ranks that differ in other axes only.

        Raises:
            VerificationError: it does not.
        """
        rest = tuple(name for name, _ in self.mesh.factors if name not in axes)
        for group in self.mesh.groups(rest):
            agree(Ranks([x.parts[rank] for rank in group]), what)

    def _factors(self, axis: str) -> tuple[str, ...]:
        return self.mesh.expand(tuple(axis.split("+")))

    def _exchange(
        self, kind: str, x: Ranks, axis: str, combine: Callable[[list[Tensor], int], Tensor]
    ) -> Ranks:
        self.log.append((kind, axis))
        results: list[Any] = [None] * self.mesh.num_ranks
        for group in self.mesh.groups(self._factors(axis)):
            parts = [x.parts[rank] for rank in group]
            for place, rank in enumerate(group):
                results[rank] = combine(parts, place)
        return Ranks(results)


def _whole(parts: list[Tensor], kind: str) -> Tensor:
    if kind == SUM1 and (sum((part != 0).int() for part in parts) > 1).any():  # type: ignore[union-attr]
        raise VerificationError("two ranks add to one element of a sum1, which one rank owns alone")
    return reduced(parts, kind)


def _shard(x: Tensor, ways: int, dim: int, place: int) -> Tensor:
    if x.shape[dim] % ways:
        raise VerificationError(
            f"dim {dim} of size {x.shape[dim]} does not divide over {ways} ranks; "
            f"pad the step's tokens to a multiple of {ways}"
        )
    return x.chunk(ways, dim)[place]


def agree(x: Ranks, what: str) -> Tensor:
    """Return a Replicated value.

    Raises:
        VerificationError: two ranks hold different bits.
    """
    first: Tensor = x.parts[0]
    for rank, part in enumerate(x.parts):
        if part.shape != first.shape or not torch.equal(_bits(part), _bits(first)):
            raise VerificationError(f"{what} is Replicated, but rank {rank} differs from rank 0")
    return first


def _bits(x: Tensor) -> Tensor:
    return x.reshape(-1).contiguous().view(torch.uint8)


@attrs.define(eq=False)
class Place:
    """The ranks of one stage, or all of them: what they run and what they hold."""

    ranks: tuple[int, ...]
    forward: Callable[..., Any]
    weights: Mapping[str, Any]
    caches: Any
    collectives: LockStep


class Simulation:
    """A plan with weights and caches on a simulated mesh; stages of a pipeline run side by side.

    Every value is checked to have the same bits on all ranks that its placement says share it,
    unless `checked` is false: then the plan's own source runs as it is.
    """

    def __init__(
        self, plan: Plan, params: Mapping[str, Tensor], blocks: int, checked: bool = True
    ) -> None:
        self.plan = plan
        mesh = plan.mesh
        forward = (plan.checked() if checked else plan).load()
        count = mesh.size(mesh.stages)
        channels = Channels.between(count)
        self.places = []
        for stage in range(count):
            ranks = tuple(r for r in range(mesh.num_ranks) if mesh.index(r, mesh.stages) == stage)
            part = plan.of_rank(ranks[0])
            packs = [part.place(params, rank) for rank in ranks]
            self.places.append(
                Place(
                    ranks,
                    forward,
                    part.weights({name: Ranks([p[name] for p in packs]) for name in packs[0]}),
                    _joined([part.allocate_caches(blocks) for _ in ranks]),
                    LockStep(mesh.without(mesh.stages), stage, channels),
                )
            )

    @property
    def caches(self) -> Any:
        """The caches of all layers, each on the ranks that have it."""
        return tuple(cache for place in self.places for cache in place.caches)

    @property
    def collectives(self) -> LockStep:
        """Those of the first stage, of all ranks where there is one."""
        return self.places[0].collectives

    def step(self, *batches: Any) -> Tensor:
        """Run one step and return its result; a batch each where ranks serve different requests.

        Raises:
            VerificationError: ranks of the same requests differ in the result.
        """
        mesh = self.plan.mesh
        own = [mesh.index(rank, mesh.requests) for rank in range(mesh.num_ranks)]

        def run(place: Place) -> Any:
            everywhere = _joined([batches[own[rank]] for rank in place.ranks])
            c = place.collectives
            try:
                result, place.caches = place.forward(c, place.weights, place.caches, everywhere)
            except BaseException:
                c.channels.fail()
                raise
            return result

        found: dict[int, Tensor] = {}
        if len(self.places) == 1:
            found = dict(enumerate(run(self.places[0]).parts))
        else:
            with ThreadPoolExecutor(len(self.places)) as pool:
                runs = [pool.submit(run, place) for place in self.places]
            failed = [error for each in runs if (error := each.exception())]
            if failed:  # a stage that waited for another fails too, which tells less
                raise min(failed, key=lambda error: isinstance(error, NothingSentError))
            for place, each in zip(self.places, runs, strict=True):
                found |= dict(zip(place.ranks, each.result().parts, strict=True))
        parts = [
            agree(Ranks([found[rank] for rank in group]), "the result")
            for group in mesh.groups(tuple(n for n, _ in mesh.factors if n not in mesh.requests))
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
