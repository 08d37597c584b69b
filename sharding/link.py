# SPDX-License-Identifier: MIT
"""Links: how fast ranks exchange bytes along each mesh axis."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs

from .error import MeshError


@attrs.frozen
class Link:
    """An alpha-beta model of a link: microseconds to start a collective, GB/s a rank sustains.

    Where a rank's own cores do the copying (`busy`) nothing can be computed meanwhile.
    """

    name: str
    alpha_us: float
    gb_per_s: float
    busy: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.alpha_us:g} us + bytes / {self.gb_per_s:g} GB/s)"


# Estimates of what a ring sustains, four fifths of one direction's peak, until a table measured
# on the machine replaces them: NVLink 4 is 450 GB/s each way, NVLink 3 300, PCIe 5 x16 63.
NVLINK = Link("nvlink-h100", 9.0, 360.0)
LINKS: Mapping[str, Link] = MappingProxyType(
    {
        link.name: link
        for link in (
            NVLINK,
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
