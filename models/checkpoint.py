# SPDX-License-Identifier: MIT
"""Sources: which tensor of a checkpoint a parameter comes from, and how its dims lie there."""

import re
from collections.abc import Mapping, Sequence

import attrs
from einops import rearrange
from torch import Tensor

_WORD = re.compile(r"\(([^()]*)\)|(\S+)")


@attrs.frozen
class Source:
    """One tensor of a checkpoint: its name, and the einops pattern from its dims to a parameter's.

    `"(k g h) d -> d k g h"` reads a `[k*g*h, d]` tensor into a parameter of dims `d k g h`.
    """

    name: str
    pattern: str

    def dims(self) -> tuple[tuple[str, ...], ...]:
        """Return the factors of each dim of the file's tensor."""
        left = self.pattern.partition("->")[0]
        return tuple(tuple((group or word).split()) for group, word in _WORD.findall(left))

    def window(self, sizes: Mapping[str, int], slices: Mapping[str, slice]) -> tuple[slice, ...]:
        """Return the smallest slice of the file's tensor that holds these slices of its factors."""
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
        return rearrange(opened, f"{' '.join(flat)} -> {' '.join(names)}")


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
