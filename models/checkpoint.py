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
_TWO = "two"


@attrs.frozen
class Source:
    """Tensors of a checkpoint: their name, and the einops pattern from their dims to a parameter's.

    `"(k g h) d -> d k g h"` reads a `[k*g*h, d]` tensor into a parameter of dims `d k g h`.  A name
    with `{e}` stands for one tensor an index of dim e, which only the parameter has.  Where the
    pattern has a factor `two`, the parameter is that `half` of it.  `other` is where files of
    another form keep the same parameter.
    """

    name: str
    pattern: str
    half: int = 0
    other: "Source | None" = None

    def under(self, prefix: str) -> "Source":
        """Return this source with `prefix` before its names."""
        other = self.other.under(prefix) if self.other else None
        return attrs.evolve(self, name=prefix + self.name, other=other)

    def among(self, names: Container[str]) -> "Source":
        """Return this source, or the other one if only that is among the names of a checkpoint."""
        if self.other is None or _EACH.sub("0", self.name) in names:
            return self
        return self.other.among(names)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of each of the file's tensors for a parameter of these sizes."""
        sizes = {**sizes, _TWO: 2}
        return tuple(math.prod(sizes[factor] for factor in factors) for factors in self.dims())

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
        left = self.pattern.partition("->")[0]
        return tuple(tuple((group or word).split()) for group, word in _WORD.findall(left))

    def whole(
        self, read: Callable[[str, tuple[slice, ...]], Tensor], sizes: Mapping[str, int]
    ) -> Tensor:
        """Return the whole parameter, as `load` does a slice of it."""
        names = self.pattern.partition("->")[2].split()
        return self.load(read, names, sizes, {name: slice(0, sizes[name]) for name in names})

    def window(self, sizes: Mapping[str, int], slices: Mapping[str, slice]) -> tuple[slice, ...]:
        """Return the smallest slice of the file's tensor that holds these slices of its factors."""
        sizes, slices = self._halved(sizes, slices)
        found = []
        for factors in self.dims():
            extents = _extents(factors, sizes, slices)
            start, width = 0, 1
            for factor in reversed(factors):
                at = slices[factor].start if extents[factor] != sizes[factor] else 0
                start += at * width
                width *= sizes[factor]
            length = 1
            for factor in factors:
                length *= extents[factor]
            found.append(slice(start, start + length))
        return tuple(found)

    def read(
        self,
        part: Tensor,
        names: Sequence[str],
        sizes: Mapping[str, int],
        slices: Mapping[str, slice],
    ) -> Tensor:
        """Return the slice of the parameter, dims `names`, from the window of the file's tensor."""
        sizes, slices = self._halved(sizes, slices)
        extents: dict[str, int] = {}
        for factors in self.dims():
            extents.update(_extents(factors, sizes, slices))
        flat = [factor for factors in self.dims() for factor in factors]
        left = self.pattern.partition("->")[0]
        opened = rearrange(part, f"{left} -> {' '.join(flat)}", **extents)
        for at, factor in enumerate(flat):
            wanted = slices[factor]
            if extents[factor] != wanted.stop - wanted.start:
                opened = opened.narrow(at, wanted.start, wanted.stop - wanted.start)
        if _TWO in flat:
            opened = opened.squeeze(flat.index(_TWO))
            flat.remove(_TWO)
        return rearrange(opened, f"{' '.join(flat)} -> {' '.join(names)}")

    def _halved(
        self, sizes: Mapping[str, int], slices: Mapping[str, slice]
    ) -> tuple[Mapping[str, int], Mapping[str, slice]]:
        return {**sizes, _TWO: 2}, {**slices, _TWO: slice(self.half, self.half + 1)}


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
