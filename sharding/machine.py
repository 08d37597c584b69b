# SPDX-License-Identifier: MIT
"""Machines: what a plan's choices are priced on."""

import attrs

from .link import LINKS, Links


@attrs.frozen
class Machine:
    """The links between ranks, and how fast one rank reads memory and multiplies.

    Sums of at most `one_launch` bytes travel in one launch there, which costs less than two halves.
    """

    name: str
    links: Links
    gb_per_s: float
    tflops: float
    one_launch: int = 0


# An H100's rates were measured; those of two cores are estimates.
H100 = Machine("h100", Links(), 3030.0, 800.0, 512 << 10)
CPU = Machine("cpu", Links(LINKS["shared-memory"]), 10.0, 0.1)
