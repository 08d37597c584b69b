# SPDX-License-Identifier: MIT
"""The choices of one answer, generated side by side and read as one stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence

from ..completion import TextDelta

ChoiceDelta = tuple[int, TextDelta]
Stream = AsyncGenerator[TextDelta, None]


async def interleaved(
    starts: Sequence[Callable[[], Stream]], group: int
) -> AsyncGenerator[ChoiceDelta, None]:
    """Yield the deltas of all choices as they come, each with its choice's index.

    The first choice of each `group` goes ahead; the others start when its first token came, and so
    find the prompt in the prefix cache.  Leaving early ends them all.
    """
    if len(starts) == 1:  # no task for what nothing runs beside
        async with contextlib.aclosing(starts[0]()) as alone:
            async for delta in alone:
                yield 0, delta
        return
    streams: dict[int, Stream] = {}
    reading: dict[asyncio.Future[TextDelta], int] = {}

    def read(index: int) -> None:
        reading[asyncio.ensure_future(anext(streams[index]))] = index

    def start(index: int) -> None:
        streams[index] = starts[index]()
        read(index)

    try:
        for leader in range(0, len(starts), group):
            start(leader)
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = reading.pop(task)
                try:
                    delta = task.result()
                except StopAsyncIteration:
                    continue
                if index % group == 0 and group > 1 and index + 1 not in streams:
                    for follower in range(index + 1, index + group):
                        start(follower)
                yield index, delta
                read(index)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams.values():
            await stream.aclose()
