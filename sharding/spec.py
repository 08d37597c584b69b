# SPDX-License-Identifier: MIT
"""Placement specs: the grammar `n@dp d k@tp !tp`, and `Placed`, which puts one on a tensor type.

name         a dimension                  name@tp+dp   sharded, major axis first
~name        ragged (padded) dimension    (a|b|c)@tp   direct sum, segments shard separately
!tp  !max:tp Partial: a sum is owed, or    ?dp          Varying: differs, no global meaning
             another kind (`reduction.py`)
"""

import re
import sys
from typing import TYPE_CHECKING, Any

import attrs
import torch

from .error import AnnotationError
from .line import Line, line_of
from .reduction import KINDS, SUM

_NAME = r"[A-Za-z_]\w*"
_AXES = rf"{_NAME}(?:\+{_NAME})*"
_DIM = re.compile(rf"(~?)(?:({_NAME})|\(({_NAME}(?:\|{_NAME})+)\))(?:@({_AXES}))?")
_PARTIAL = re.compile(rf"!(?:({'|'.join(KINDS)}):)?({_AXES})")
_VARYING = re.compile(rf"\?({_AXES})")


_JOINT = "__"
_SUM = re.compile(rf"\(({_NAME}(?:\|{_NAME})+)\)")


def direct_sums(text: str) -> str:
    """Return `text` with each `(g|u)` as the name of that dim, `g__u`."""
    return _SUM.sub(lambda found: found[1].replace("|", _JOINT), text)


@attrs.frozen
class Dim:
    """One named dimension: the mesh axes it is sharded over, major first.

    A direct sum `(g|u)` has the name `g__u`, an identifier: it is so called in patterns, too.
    """

    name: str
    axes: tuple[str, ...] = ()
    ragged: bool = False

    @property
    def segments(self) -> tuple[str, ...]:
        """Return the parts of a direct sum, in order; each rank has a shard of every one."""
        return tuple(self.name.split(_JOINT)) if _JOINT in self.name else ()

    def __str__(self) -> str:
        name = f"({'|'.join(self.segments)})" if self.segments else self.name
        axes = f"@{'+'.join(self.axes)}" if self.axes else ""
        return f"{'~' if self.ragged else ''}{name}{axes}"


@attrs.frozen
class Spec:
    """The placement of one value: its dims, and the axes over which it is Partial or Varying.

    On an axis that is named nowhere the value is Replicated: bitwise equal on all ranks.
    """

    dims: tuple[Dim, ...]
    partial: tuple[str, ...] = ()
    reduce: str = SUM
    varying: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [str(dim) for dim in self.dims]
        if self.partial:
            kind = "" if self.reduce == SUM else f"{self.reduce}:"
            words.append(f"!{kind}{'+'.join(self.partial)}")
        if self.varying:
            words.append(f"?{'+'.join(self.varying)}")
        return " ".join(words) or "scalar"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dim.name for dim in self.dims)

    @property
    def axes(self) -> tuple[str, ...]:
        """Return every axis the spec names, dims first."""
        sharded = [axis for dim in self.dims for axis in dim.axes]
        return (*sharded, *self.partial, *self.varying)

    def sharded(self, axes: dict[str, tuple[str, ...]]) -> "Spec":
        """Return this spec with the axes of each dim taken from `axes` by name, Partial kept."""
        dims = tuple(attrs.evolve(dim, axes=axes.get(dim.name, ())) for dim in self.dims)
        return attrs.evolve(self, dims=dims)


def parse_spec(text: str) -> Spec:
    """Parse a placement string.

    Raises:
        AnnotationError: a word is not in the grammar, or a dim or an axis stands twice.
    """
    dims: list[Dim] = []
    partial: tuple[str, ...] = ()
    varying: tuple[str, ...] = ()
    kinds: list[str] = []
    for word in text.split():
        if found := _PARTIAL.fullmatch(word):
            kinds.append(found[1] or SUM)
            partial = (*partial, *found[2].split("+"))
        elif found := _VARYING.fullmatch(word):
            varying = (*varying, *found[1].split("+"))
        elif found := _DIM.fullmatch(word):
            axes = tuple(found[4].split("+")) if found[4] else ()
            if found[2] and _JOINT in found[2]:
                raise AnnotationError(
                    f"dim {found[2]!r} in placement {text!r}: two underscores are kept for direct "
                    f"sums; write ({found[2].replace(_JOINT, '|')}) if it is one"
                )
            dims.append(Dim(found[2] or direct_sums(f"({found[3]})"), axes, bool(found[1])))
        else:
            raise AnnotationError(
                f"{word!r} in placement {text!r} is not a dimension (name, name@axis+axis, ~name, "
                f"(a|b)@axis), a Partial (!axis, or !max:axis; {', '.join(KINDS)}) or a Varying "
                f"(?axis)"
            )
    if len(set(kinds)) > 1:
        raise AnnotationError(
            f"placement {text!r} owes reductions of several kinds, {', '.join(kinds)}: "
            f"the order in which they are paid would change the value; name one kind"
        )
    spec = Spec(tuple(dims), partial, kinds[0] if kinds else SUM, varying)
    for kind, words in (("dimension", spec.names), ("mesh axis", spec.axes)):
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise AnnotationError(f"{kind} {twice[0]!r} stands twice in placement {text!r}")
    return spec


@attrs.frozen(eq=False)
class Placement:
    """A tensor annotation at run time: its spec, a dtype if pinned, and the line that wrote it.

    Each `Placed[...]` is an object of its own, so an alias (`Hidden = Placed[...]`) is known by
    identity and a layout may override it by name.
    """

    spec: Spec
    dtype: torch.dtype | None
    line: Line
    optional: bool = False

    def __or__(self, other: object) -> "Placement":
        if other is not None and other is not type(None):
            raise AnnotationError(f"{self.line}: a placed tensor may only be joined with None")
        return attrs.evolve(self, optional=True)


if TYPE_CHECKING:
    from typing import Annotated as Placed
else:

    class Placed:
        """`Placed[Tensor, "n d@tp"]`: a tensor with named, placed dims; optionally a dtype."""

        def __class_getitem__(cls, arguments: Any) -> Placement:
            line = line_of(sys._getframe(1))
            if not isinstance(arguments, tuple) or len(arguments) not in (2, 3):
                raise AnnotationError(f"{line}: write Placed[Tensor, 'dims'] or add a dtype")
            try:
                spec = parse_spec(arguments[1])
            except AnnotationError as error:
                raise AnnotationError(f"{line}: {error}") from None
            return Placement(spec, arguments[2] if len(arguments) == 3 else None, line)


__all__ = ["Dim", "Placed", "Placement", "Spec", "parse_spec"]
