# SPDX-License-Identifier: MIT
"""Meshes: ranks arranged along named axes, which may be factored, `dp=2 tp=(kv=2,rep=4)`."""

import math
import re

import attrs

from .error import MeshError

_AXIS = re.compile(r"([A-Za-z_]\w*)=(?:(\d+)|\(([^()]*)\))")


@attrs.frozen
class Mesh:
    """Ranks in row-major order over `factors`; `names` maps each written axis to its factors.

    An axis of size 1 is known by name but has no factors: it vanishes from every placement.
    Along the factors `requests` ranks serve different requests (`Layout.requests`), along those of
    `stages` they run different layers (`Layout.stages`).
    """

    names: tuple[tuple[str, tuple[str, ...]], ...]
    factors: tuple[tuple[str, int], ...]
    requests: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [self.text]
        words += [f"(requests over {self.group(self.requests)})"] if self.requests else []
        words += [f"(stages over {self.group(self.stages)})"] if self.stages else []
        return " ".join(words)

    @property
    def text(self) -> str:
        """The axes as `parse_mesh` reads them."""
        sizes = dict(self.factors)
        words = []
        for name, factors in self.names:
            if factors in ((), (name,)):
                words.append(f"{name}={sizes.get(name, 1)}")
            else:
                words.append(f"{name}=({','.join(f'{f}={sizes[f]}' for f in factors)})")
        return " ".join(words)

    @property
    def num_ranks(self) -> int:
        return math.prod(size for _, size in self.factors)

    def expand(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the factors of `axes`, major first; axes of size 1 vanish.

        Raises:
            MeshError: the mesh has no such axis.
        """
        known = dict(self.names) | {factor: (factor,) for factor, _ in self.factors}
        for axis in axes:
            if axis not in known:
                raise MeshError(
                    f"axis {axis!r} is not in mesh {str(self)!r}; its axes are "
                    f"{', '.join(sorted(known)) or 'none'}. Write {axis}=1 if it is not used"
                )
        return tuple(factor for axis in axes for factor in known[axis])

    def group(self, factors: tuple[str, ...]) -> str:
        """Return the shortest name of a group of factors: an axis' name, or factors joined by +."""
        for name, members in self.names:
            if members == factors:
                return name
        return "+".join(factors)

    def ordered(self, factors: set[str]) -> tuple[str, ...]:
        """Return factors in mesh order."""
        return tuple(name for name, _ in self.factors if name in factors)

    def size(self, factors: tuple[str, ...]) -> int:
        """Return how many ranks stand along the flattened factors."""
        sizes = dict(self.factors)
        return math.prod(sizes[factor] for factor in factors)

    def index(self, rank: int, factors: tuple[str, ...]) -> int:
        """Return the place of `rank` along the flattened factors, major first."""
        coordinates = {}
        for name, size in reversed(self.factors):
            rank, coordinates[name] = divmod(rank, size)
        place = 0
        for factor in factors:
            place = place * self.size((factor,)) + coordinates[factor]
        return place

    def without(self, factors: tuple[str, ...]) -> "Mesh":
        """Return the mesh of ranks that differ along other factors only, in the same order."""
        names = tuple((n, tuple(f for f in own if f not in factors)) for n, own in self.names)
        kept = tuple((name, size) for name, size in self.factors if name not in factors)
        left = tuple(name for name in self.stages if name not in factors)
        return attrs.evolve(self, names=names, factors=kept, stages=left)

    def groups(self, factors: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the rank groups that differ only along `factors`, each in index order."""
        rest = tuple(name for name, _ in self.factors if name not in factors)
        found: dict[int, list[int]] = {}
        for rank in range(self.num_ranks):
            found.setdefault(self.index(rank, rest), []).append(rank)
        return tuple(
            tuple(sorted(ranks, key=lambda rank: self.index(rank, factors)))
            for ranks in found.values()
        )


def parse_mesh(text: str) -> Mesh:
    """Parse `dp=2 tp=4` or `tp=(kv=2,rep=4)`.

    Raises:
        MeshError: malformed, a size below 1, or a name that stands twice.
    """
    names: list[tuple[str, tuple[str, ...]]] = []
    factors: list[tuple[str, int]] = []
    words = re.findall(r"[^\s()]+(?:\([^()]*\))?", text)
    for word in words:
        found = _AXIS.fullmatch(word)
        parts = []
        if found and found[2]:
            parts = [(found[1], int(found[2]))]
        elif found:
            inner = [part.partition("=") for part in found[3].split(",")]
            parts = [(n.strip(), int(s)) for n, _, s in inner if s.strip().isdigit()]
            if len(parts) != len(inner):
                parts = []
        if not found or not parts or any(size < 1 for _, size in parts):
            raise MeshError(f"{word!r} in mesh {text!r} is not axis=size or axis=(part=size,...)")
        kept = [(name, size) for name, size in parts if size > 1]
        names.append((found[1], tuple(name for name, _ in kept)))
        names.extend((name, ()) for name, size in parts if size == 1 and name != found[1])
        factors.extend(kept)
    every = [name for name, _ in names]
    every += [name for name, _ in factors if name not in every]
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise MeshError(f"axis {twice[0]!r} stands twice in mesh {text!r}")
    if len({name for name, _ in factors}) != len(factors):
        raise MeshError(f"a factor stands twice in mesh {text!r}")
    return Mesh(tuple(names), tuple(factors))
