# SPDX-License-Identifier: MIT
"""What a link costs: an alpha-beta model, or what was measured."""

from itertools import pairwise

import pytest

from tokenspeed_core.sharding.link import LINKS, Link

MEASURED = Link("here", 9.0, 100.0, measured={"all_reduce": ((1000, 4.0), (4000, 8.0))})


@pytest.mark.parametrize(
    ("wire", "us"),
    [(0, 4.0), (1000, 4.0), (2000, 4.0 * 2**0.5), (4000, 8.0), (40_000, 80.0)],
)
def test_measured_times_are_kept_and_interpolated(wire: int, us: float) -> None:
    assert MEASURED.us("all_reduce", wire) == pytest.approx(us)


def test_other_kinds_start_and_send() -> None:
    assert MEASURED.us("all_gather", 1_000_000) == pytest.approx(9.0 + 10.0)
    assert str(MEASURED) == "here (all_reduce as measured; others 9 us + bytes / 100 GB/s)"


def test_measured_links_cost_more_for_more_bytes() -> None:
    for link in LINKS.values():
        for kind in link.measured:
            times = [link.us(kind, 1 << at) for at in range(12, 30)]
            # Two sizes may lie within the spread of a measurement.
            assert all(after > 0.95 * before for before, after in pairwise(times))
            assert times[-1] > 50 * times[0]
