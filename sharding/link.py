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


def _rising(first: int, us: str) -> tuple[tuple[int, float], ...]:
    """Return the points of times measured at `first` bytes, half as many again, twice as many..."""
    return tuple(
        ((2 + at % 2) * first << at // 2 >> 1, float(each)) for at, each in enumerate(us.split())
    )


# Between two H200s (tests/bench/bench_collectives.py, the lesser of two runs), from 8 KiB of a
# rank on: sums in one launch over each other's memory, all else over NCCL. Of what is reduced or
# exchanged half travels.
_NVLINK_4 = {
    "all_reduce": _rising(
        8 << 10,
        "2.4 2.4 2.4 2.8 2.5 2.6 2.7 3 3.1 3.4 3.9 6.3 6.6 8 8.8 "
        "10.1 11.7 15.5 18.6 28.1 34.1 49.2 64.3 95.1 121 178 236 350 463",
    ),
    "all_gather": _rising(
        8 << 10,
        "8.5 8.3 8.3 8.4 8.5 8.8 9 8.7 9.3 10.1 10.4 11.6 13.1 16.1 19.1 "
        "26 28.1 36 41.1 51.7 62.9 84 107 151 189 269 355 514 679",
    ),
    "reduce_scatter": _rising(
        4 << 10,
        "9.9 10.3 10.5 11 10.8 10.8 11.1 11 11.1 11.1 11.5 12.2 12.8 14.7 15.9 "
        "17.9 18.5 21.8 24.9 32.3 39 54.2 69 90.7 110 154 198 285 370",
    ),
    "all_to_all": _rising(
        4 << 10,
        "10.3 10.7 11.1 11.4 11.3 11.7 11.6 11.3 11.7 11.7 12.1 12.8 13.5 15 16.6 "
        "18.5 19.3 22.9 25.8 34.7 41.2 56.1 72 95.1 116 161 207 298 388",
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
