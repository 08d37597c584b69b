# SPDX-License-Identifier: MIT
"""The benchmark of the host path runs: its worker speaks the protocol of today."""

import asyncio

from tests.bench.bench_host import rows


def test_every_row_is_measured() -> None:
    async def measured() -> list[dict[str, object]]:
        async with asyncio.timeout(60):
            return await rows(size=3000, repeats=1, streams=4, tokens=3)

    found = asyncio.run(measured())
    assert [each["unit"] for each in found] == ["ms", "ms", "ms", "tok/s", "tok/s"]
    for each in found:
        assert float(str(each["ours"])) > 0, each
