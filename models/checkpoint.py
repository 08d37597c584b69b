# SPDX-License-Identifier: MIT
"""Sources: which tensor of a checkpoint a parameter comes from, and how its dims lie there."""

import math
import re
from collections.abc import Callable, Container, Mapping, Sequence

import attrs
import torch
from einops import rearrange
from torch import Tensor

_WORD = re.compile(r"\(([^()]*)\)|(\S+)")
_EACH = re.compile(r"\{(\w+)\}")
_DROPPED = {"one": 1, "two": 2}  # factors of files that parameters do not have
_BEFORE, _AFTER = re.compile(r"(\d+)\+"), re.compile(r"\+(\d+)")


@attrs.frozen
class _Dim:
    """One dim of a file's tensor: its factors; from factor `at` on they are one part of a sum.

    `before` and `after` are the sizes of what stands beside that part, once for every index of
    the factors before it.
    """

    factors: tuple[str, ...]
    at: int = 0
    before: int = 0
    after: int = 0

    @staticmethod
    def parse(words: Sequence[str]) -> "_Dim":
        factors: list[str] = []
        at = before = after = 0
        for word in words:
            if found := _BEFORE.fullmatch(word):
                at, before = len(factors), int(found[1])
            elif found := _AFTER.fullmatch(word):
                after = int(found[1])
            else:
                factors.append(word)
        return _Dim(tuple(factors), at, before, after)

    def unit(self, sizes: Mapping[str, int]) -> int:
        """Return the size of the whole sum."""
        return self.before + math.prod(sizes[name] for name in self.factors[self.at :]) + self.after

    def inside(self, extents: Mapping[str, int]) -> bool:
        """Return whether a window of these extents lies in the part of one index."""
        return all(extents[name] == 1 for name in self.factors[: self.at])


@attrs.frozen
class Source:
    """Tensors of a checkpoint: their name, and the einops pattern from their dims to a parameter's.

    `"(k g h) d -> d k g h"` reads a `[k*g*h, d]` tensor into a parameter of dims `d k g h`.  A name
    with `{e}` stands for one tensor an index of dim e, which only the parameter has.  Where the
    pattern has a factor `two`, the parameter is that `half` of it.  `"(k 8+ r +4) d"` is rows of
    8, r and 4 for each k, of which the parameter is the middle.  `shift` is added in float32.
    `other` is where files of another form keep the same parameter.
    """

    name: str
    pattern: str
    half: int = 0
    other: "Source | None" = None
    shift: float = 0.0

    def under(self, prefix: str) -> "Source":
        """Return this source with `prefix` before its names."""
        other = self.other.under(prefix) if self.other else None
        return attrs.evolve(self, name=prefix + self.name, other=other)

    def among(self, names: Container[str]) -> "Source":
        """Return this source, or the other one if only that is among the names of a checkpoint."""
        if self.other is None or _EACH.sub("0", self.name) in names:
            return self
        return self.other.among(names)

    def or_without(self, prefix: str) -> "Source":
        """Return this source for files that may also leave `prefix` out of their names."""
        forms = [self]
        while forms[-1].other is not None:
            forms.append(forms[-1].other)
        bare = [attrs.evolve(form, name=form.name.removeprefix(prefix)) for form in forms]
        found = attrs.evolve(bare.pop(), other=None)
        for form in reversed(forms + bare):
            found = attrs.evolve(form, other=found)
        return found

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of each of the file's tensors for a parameter of these sizes."""
        sizes = {**sizes, **_DROPPED}
        return tuple(
            math.prod(sizes[name] for name in dim.factors[: dim.at]) * dim.unit(sizes)
            for dim in self.parsed()
        )

    def load(
        self,
        read: Callable[[str, tuple[slice, ...]], Tensor],
        names: Sequence[str],
        sizes: Mapping[str, int],
        slices: Mapping[str, slice],
    ) -> Tensor:
        """Return the slice of the parameter, dims `names`; `read(name, window)` reads a tensor."""
        window = self.window(sizes, slices)
        each = _EACH.search(self.name)
        if each is None:
            return self.read(read(self.name, window), names, sizes, slices)
        rest = [name for name in names if name != each[1]]
        wanted = range(slices[each[1]].start, slices[each[1]].stop)
        parts = (read(_EACH.sub(str(index), self.name), window) for index in wanted)
        found = [self.read(part, rest, sizes, slices) for part in parts]
        return torch.stack(found, names.index(each[1]))

    def dims(self) -> tuple[tuple[str, ...], ...]:
        """Return the factors of each dim of the file's tensor."""
        return tuple(dim.factors for dim in self.parsed())

    def parsed(self) -> tuple[_Dim, ...]:
        """Return how each dim of the file's tensor is made up."""
        left = self.pattern.partition("->")[0]
        return tuple(_Dim.parse((group or word).split()) for group, word in _WORD.findall(left))

    def whole(
        self, read: Callable[[str, tuple[slice, ...]], Tensor], sizes: Mapping[str, int]
    ) -> Tensor:
        """Return the whole parameter, as `load` does a slice of it."""
        names = self.pattern.partition("->")[2].split()
        return self.load(read, names, sizes, {name: slice(0, sizes[name]) for name in names})

    def window(self, sizes: Mapping[str, int], slices: Mapping[str, slice]) -> tuple[slice, ...]:
        """Return the smallest slice of the file's tensor that holds these slices of its factors."""
        sizes, slices = self._dropped(sizes, slices)
        found = []
        for dim in self.parsed():
            extents = _extents(dim.factors, sizes, slices)
            inside = dim.inside(extents)
            start = dim.before if inside else 0
            width = 1
            for at, factor in reversed(list(enumerate(dim.factors))):
                if extents[factor] != sizes[factor]:
                    start += slices[factor].start * width
                width = dim.unit(sizes) if at == dim.at else width * sizes[factor]
            part = math.prod(extents[name] for name in dim.factors[dim.at :])
            outer = math.prod(extents[name] for name in dim.factors[: dim.at])
            found.append(slice(start, start + (part if inside else outer * dim.unit(sizes))))
        return tuple(found)

    def read(
        self,
        part: Tensor,
        names: Sequence[str],
        sizes: Mapping[str, int],
        slices: Mapping[str, slice],
    ) -> Tensor:
        """Return the slice of the parameter, dims `names`, from the window of the file's tensor."""
        sizes, slices = self._dropped(sizes, slices)
        extents: dict[str, int] = {}
        for at, dim in enumerate(self.parsed()):
            extents.update(_extents(dim.factors, sizes, slices))
            if not dim.inside(extents):
                unit = dim.unit(sizes)
                sums = part.reshape(*part.shape[:at], -1, unit, *part.shape[at + 1 :])
                part = sums.narrow(at + 1, dim.before, unit - dim.before - dim.after)
                part = part.flatten(at, at + 1)
        groups = [dim.factors for dim in self.parsed()]
        flat = [factor for factors in groups for factor in factors]
        left = " ".join(f"({' '.join(factors)})" for factors in groups)
        opened = rearrange(part, f"{left} -> {' '.join(flat)}", **extents)
        for at, factor in enumerate(flat):
            wanted = slices[factor]
            if extents[factor] != wanted.stop - wanted.start:
                opened = opened.narrow(at, wanted.start, wanted.stop - wanted.start)
        kept = [factor for factor in flat if factor not in _DROPPED]
        for at, factor in reversed(list(enumerate(flat))):
            opened = opened.squeeze(at) if factor in _DROPPED else opened
        if self.shift:
            opened = opened.to(torch.promote_types(opened.dtype, torch.float32)) + self.shift
        return rearrange(opened, f"{' '.join(kept)} -> {' '.join(names)}")

    def _dropped(
        self, sizes: Mapping[str, int], slices: Mapping[str, slice]
    ) -> tuple[Mapping[str, int], Mapping[str, slice]]:
        index = {"one": slice(0, 1), "two": slice(self.half, self.half + 1)}
        return {**sizes, **_DROPPED}, {**slices, **index}


def _extents(
    factors: Sequence[str], sizes: Mapping[str, int], slices: Mapping[str, slice]
) -> dict[str, int]:
    """Return how much of each factor of one dim lies in the window.

    A contiguous window narrows a factor only while every factor before it is narrowed to one.
    """
    extents = {}
    narrowing = True
    for factor in factors:
        wanted = slices[factor].stop - slices[factor].start
        extents[factor] = wanted if narrowing else sizes[factor]
        narrowing = narrowing and wanted == 1
    return extents
