# SPDX-License-Identifier: MIT
"""Re-verification of an emitted pipeline: the text is run on types once a stage, in order."""

from typing import Any

import attrs

from .error import VerificationError
from .line import author_line
from .mesh import Mesh
from .plan import Plan
from .program import Var
from .recheck import Check, Local, check_results
from .typed_collectives import Collectives


def recheck_stages(plan: Plan, forward: Any) -> None:
    """Check that each stage of a text takes what the one before sends, and all give the result.

    Raises:
        VerificationError: naming the line of the text, and the rule that it breaks.
    """
    sent: tuple[Var, ...] = ()
    for stage, part in enumerate(plan.stages()):
        check = Check(part)
        columns = {
            var.name.partition(".")[2]: Column(check, check.given(var).var)
            for var in plan.program.driver.batch
        }
        batch = attrs.make_class("Columns", list(columns))(**columns)
        c = Seams(check, stage, sent, plan.program.driver.results)
        try:
            result, _ = forward(c, check.weights(), check.caches(), batch)
        except KeyError as missing:
            raise VerificationError(
                f"stage {stage} of the text reads weight {missing}, which its ranks do not store"
            ) from None
        check_results(result, plan.program.driver.results)
        is_last = stage + 1 == len(plan.parts)
        if c.expected or c.is_published != is_last or bool(c.sent) == is_last:
            raise VerificationError(
                f"stage {stage} of the text must receive once, and send once or, if it is the "
                f"last, publish the result"
            )
        sent = c.sent


@attrs.frozen
class Count:
    """How many elements of a dim of the step a rank has: one of `parts` of all."""

    dim: str
    parts: int

    def __floordiv__(self, parts: int) -> "Count":
        return attrs.evolve(self, parts=self.parts * parts)


class Column(Local):
    """A column of the batch, whose sizes say how large what a stage receives is."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return the sizes of a rank's shard."""
        return sizes_of(self.var, self.check.mesh)


def sizes_of(var: Var, mesh: Mesh) -> tuple[Any, ...]:
    """Return the sizes of a rank's shard, counts where the step decides them."""
    return tuple(
        Count(dim.name, mesh.size(dim.axes)) if size is None else size
        for dim, size in zip(var.spec.dims, var.local(mesh), strict=True)
    )


class Seams(Collectives):
    """The `c` of a stage: it gives what the stage before sent, and notes what is sent."""

    def __init__(
        self, check: Check, stage: int, expected: tuple[Var, ...], results: tuple[Var, ...]
    ) -> None:
        super().__init__(check)
        self.stage, self.expected, self.results = stage, expected, results
        self.sent: tuple[Var, ...] = ()
        self.is_published = False

    def rank(self, group: str) -> Any:
        if group == self.check.mesh.group(self.check.mesh.stages):
            return self.stage
        return super().rank(group)

    def send(self, group: str, *values: Local) -> None:
        self.sent = tuple(value.var for value in values)

    def receive(self, group: str, *types: tuple[Any, ...]) -> list[Local]:
        expected, self.expected = self.expected, ()
        if len(types) != len(expected):
            raise VerificationError(
                f"{author_line()}: {len(types)} values are received, {len(expected)} are sent"
            )
        return [self._given(var, given) for var, given in zip(expected, types, strict=True)]

    def publish(self, group: str, x: Local) -> Local:
        self.is_published = True
        return x

    def published(self, group: str, given: tuple[Any, ...]) -> Local:
        (result,) = self.results
        return self._given(result, given)

    def _given(self, var: Var, given: tuple[Any, ...]) -> Local:
        wanted = (str(var.dtype).removeprefix("torch."), *sizes_of(var, self.check.mesh))
        if given != wanted:
            raise VerificationError(f"{author_line()}: {var} comes as {wanted}, not as {given}")
        return self.check.given(var)
