# SPDX-License-Identifier: MIT
"""Links: how fast ranks exchange bytes along each mesh axis."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs

from .error import MeshError


@attrs.frozen
class Link:
    """An alpha-beta model of a link: microseconds to start a collective, GB/s a rank sustains.

    Where a rank's own cores do the copying (`busy`) nothing can be computed meanwhile.  Of kinds of
    collectives that were `measured`, (bytes on the wire, microseconds) by rising bytes.
    """

    name: str
    alpha_us: float
    gb_per_s: float
    busy: bool = False
    measured: Mapping[str, Sequence[tuple[int, float]]] = attrs.field(factory=dict, hash=False)

    def us(self, kind: str, wire: int) -> float:
        """Return the time of a collective in which a rank sends so many bytes.

        Between measured sizes it is interpolated, both on logarithmic scales.
        """
        points = self.measured.get(kind)
        if not points:
            return self.alpha_us + wire / (self.gb_per_s * 1e3)
        at = bisect_left(points, wire, key=lambda point: point[0])
        if at == 0:
            return points[0][1]
        below, us = points[at - 1]
        if at == len(points):
            return us * wire / below
        above, more = points[at]
        share = math.log(wire / below) / math.log(above / below)
        return us * math.exp(share * math.log(more / us))

    def __str__(self) -> str:
        how = f"{self.alpha_us:g} us + bytes / {self.gb_per_s:g} GB/s"
        if self.measured:
            how = f"{', '.join(self.measured)} as measured; others {how}"
        return f"{self.name} ({how})"


def _doubling(first: int, *us: float) -> tuple[tuple[int, float], ...]:
    """Return the points of times that were measured at twice the bytes each."""
    return tuple((first << at, each) for at, each in enumerate(us))


# Between two H200s (tests/bench/bench_collectives.py), from 8 KiB of a rank on: sums in one launch over
# each other's memory, all else over NCCL. Of reductions and exchanges half travels.
_NVLINK_4 = {
    "all_reduce": _doubling(
        8 << 10, 2.4, 2.4, 2.5, 2.8, 3.9, 3.9, 6.6, 8.8, 11.7, 18.6, 34.1, 65.0, 121, 241, 463
    ),
    "all_gather": _doubling(
        8 << 10, 8.7, 8.3, 8.7, 9.2, 9.7, 10.5, 13.2, 19.3, 28.3, 41.1, 62.9, 107, 189, 357, 679
    ),
    "reduce_scatter": _doubling(
        4 << 10, 9.9, 10.5, 11.4, 11.6, 11.5, 11.5, 13.0, 15.9, 18.5, 24.9, 39.0, 69.0, 110, 202, 370
    ),
    "all_to_all": _doubling(
        4 << 10, 10.3, 11.1, 11.8, 12.2, 11.8, 12.1, 13.7, 16.6, 19.3, 25.8, 41.2, 72.0, 116, 211, 388
    ),
}

# Estimates of what a ring sustains, four fifths of one direction's peak, unless they say measured:
# NVLink 4 is 450 GB/s each way, NVLink 3 300, PCIe 5 x16 63.
NVLINK = Link("nvlink-h100", 9.0, 360.0)
LINKS: Mapping[str, Link] = MappingProxyType(
    {
        link.name: link
        for link in (
            NVLINK,
            Link("nvlink-h200", 9.0, 360.0, measured=_NVLINK_4),
            Link("nvlink-a100", 9.0, 240.0),
            Link("pcie5", 15.0, 50.0),
            Link("pcie4", 15.0, 25.0),
            Link("infiniband-400g", 20.0, 40.0),
            Link("ethernet-100g", 40.0, 10.0),
            Link("shared-memory", 60.0, 5.0, busy=True),
        )
    }
)


@attrs.frozen
class Links:
    """The link of every mesh axis: `axes` by name, `default` for the others."""

    default: Link = NVLINK
    axes: Mapping[str, Link] = attrs.field(factory=dict)

    def over(self, axes: Sequence[str]) -> Link:
        """Return the slowest link that a collective over `axes` crosses."""
        crossed = [self.axes.get(axis, self.default) for axis in axes]
        return min(crossed, key=lambda link: link.gb_per_s)

    def __str__(self) -> str:
        listed = [f"{axis} on {link}" for axis, link in self.axes.items()]
        return "; ".join([*listed, str(self.default)])


def parse_links(words: Sequence[str], default: Link = NVLINK) -> Links:
    """Parse `nvlink-h100` for every axis, or `dp=ethernet-100g` for one; the rest has `default`.

    Raises:
        MeshError: no such link; the table is listed.
    """
    axes = {}
    for word in words:
        axis, _, name = word.rpartition("=")
        if name not in LINKS:
            raise MeshError(f"no link {name!r} in {word!r}; links are {', '.join(LINKS)}")
        if axis:
            axes[axis] = LINKS[name]
        else:
            default = LINKS[name]
    return Links(default, axes)
