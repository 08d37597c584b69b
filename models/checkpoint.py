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
        """Return the smallest slice of the file's tensor that holds these slices of its factors.

        Only the leading sliced factor of each dim narrows the window; `read` cuts the rest.
        """
        found = []
        for factors in self.dims():
            start, stop, inner = 0, 1, 1
            for factor in factors:
                inner *= sizes[factor]
            whole = inner
            stop = whole
            for factor in factors:
                inner //= sizes[factor]
                part = slices.get(factor, slice(0, sizes[factor]))
                start, stop = start + part.start * inner, start + part.stop * inner
                if part.stop - part.start != 1:
                    break
            found.append(slice(start, min(stop, whole)))
        return tuple(found)

    def read(
        self,
        part: Tensor,
        names: Sequence[str],
        sizes: Mapping[str, int],
        slices: Mapping[str, slice],
    ) -> Tensor:
        """Return the parameter slice, in parameter dims, from the window of the file's tensor."""
        window = self.window(sizes, slices)
        local: dict[str, int] = {}
        cut: dict[str, slice] = {}
        for factors, view in zip(self.dims(), window, strict=True):
            narrowed = True
            remaining = view.stop - view.start
            for position, factor in enumerate(factors):
                inner = 1
                for later in factors[position + 1 :]:
                    inner *= sizes[later]
                local[factor] = remaining // inner if narrowed else sizes[factor]
                if narrowed:
                    narrowed = local[factor] == 1
                    remaining = inner if narrowed else remaining
                wanted = slices.get(factor, slice(0, sizes[factor]))
                if local[factor] != wanted.stop - wanted.start:
                    cut[factor] = wanted
        flat = " ".join(factor for factors in self.dims() for factor in factors)
        left = self.pattern.partition("->")[0]
        opened = rearrange(part, f"{left} -> {flat}", **local)
        for factor, wanted in cut.items():
            at = flat.split().index(factor)
            opened = opened.narrow(at, wanted.start, wanted.stop - wanted.start)
        return rearrange(opened, f"{flat} -> {self.pattern.partition('->')[2]}")


Names = Mapping[str, Source]
