# SPDX-License-Identifier: MIT
"""Which rows share leading blocks: every token of a row is read exactly once, and in its blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed_core.shared_prefix import MIN_ROWS, MIN_SAVED, SharedPrefix

SIZE = 64  # tokens a block


@st.composite
def forests(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Return tables [r, t] and lengths [r] of rows that are paths of random trees, in any order."""
    blocks = iter(range(1, 1 << 20))
    rows: list[tuple[list[int], int]] = []

    def grow(path: list[int], depth: int) -> None:
        path = [*path, *(next(blocks) for _ in range(draw(st.sampled_from((0, 1, 7, 40, 200)))))]
        for _ in range(draw(st.integers(0, 5))):
            # A row may end within what others share.
            cut = draw(st.integers(0, len(path)))
            own = [*path[: draw(st.sampled_from((cut, len(path))))], next(blocks)]
            rows.append((own, (len(own) - 1) * SIZE + draw(st.integers(1, SIZE))))
        if depth < 3:
            for _ in range(draw(st.integers(0, 3))):
                grow(path, depth + 1)

    grow([], 0)
    rows = draw(st.permutations(rows or [([1], 1)]))
    tables = np.zeros((len(rows), max(len(own) for own, _ in rows) + 1), np.int32)
    for at, (own, _) in enumerate(rows):
        tables[at, : len(own)] = own
    return tables, np.array([length for _, length in rows], np.int32)


@settings(deadline=None, max_examples=60)
@given(forests(), st.sampled_from((8, 33, 66)), st.sampled_from((1, 4, 33)))
def test_leading_tokens_are_read_once(forest, num_parts: int, most: int) -> None:
    tables, lens = forest
    found = SharedPrefix.of(tables, lens, SIZE, num_parts, most)
    if found is None:
        return
    assert 0 < len(found.parts) <= num_parts
    order, shared, counts = found.rows.T
    assert sorted(order) == list(range(len(lens)))
    seen: list[list[tuple[int, int, int]]] = [[] for _ in lens]
    for first, count, begin, end, number in found.parts:
        assert count >= MIN_ROWS
        assert begin % SIZE == end % SIZE == 0
        members = order[first : first + count]
        pages = tables[members, begin // SIZE : end // SIZE]
        assert (pages == pages[0]).all()
        for row in members:
            seen[row].append((number, begin, end))
    for row, parts in enumerate(seen):
        assert [number for number, _, _ in sorted(parts)] == list(range(counts[row]))
        edges = [0, *(end for _, _, end in sorted(parts))]
        assert [begin for _, begin, _ in sorted(parts)] == edges[:-1]
        assert edges[-1] == shared[row] < lens[row]  # the new token is the row's own
        assert counts[row] <= most


def test_all_share_one_prefix() -> None:
    rows, blocks = 32, 256
    tables = np.zeros((rows, blocks + 2), np.int32)
    tables[:, :blocks] = np.arange(1, blocks + 1)
    tables[:, blocks] = 1000 + np.arange(rows)
    lens = np.full(rows, blocks * SIZE + 5, np.int32)
    found = SharedPrefix.of(tables, lens, SIZE, 33, 33)
    assert found is not None
    assert (found.rows[:, 1] == blocks * SIZE).all()
    assert 30 <= len(found.parts) <= 33
    # Many rows fill several programs a part: fewer parts do.
    many = SharedPrefix.of(tables.repeat(4, 0), lens.repeat(4), SIZE, 33, 33)
    assert many is not None
    assert 7 <= len(many.parts) <= 9


def test_what_does_not_pay_is_not_shared() -> None:
    blocks = MIN_SAVED // SIZE
    tables = np.tile(np.arange(1, blocks + 2, dtype=np.int32), (MIN_ROWS, 1))
    lens = np.full(MIN_ROWS, blocks * SIZE + 1, np.int32)
    for at in range(MIN_ROWS):
        tables[at, blocks] = 9000 + at
    assert SharedPrefix.of(tables, lens, SIZE, 33, 33) is not None
    assert SharedPrefix.of(tables[1:], lens[1:], SIZE, 33, 33) is None  # too few rows
    alone = tables + np.arange(MIN_ROWS, dtype=np.int32)[:, None] * 20000
    assert SharedPrefix.of(alone, lens, SIZE, 33, 33) is None
    short = MIN_SAVED // (MIN_ROWS - 1) // SIZE  # the last token of so many blocks is new
    assert SharedPrefix.of(tables, np.full_like(lens, short * SIZE), SIZE, 33, 33) is None
    assert SharedPrefix.of(tables[:1], lens[:1], SIZE, 33, 33) is None
