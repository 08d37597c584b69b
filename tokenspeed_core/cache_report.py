# SPDX-License-Identifier: MIT
"""Why the tokens of a prompt did not come from the prefix cache."""

from collections.abc import Iterator

import attrs

from .ipc.codec import read_column
from .ipc.messages import TokenDeltas


@attrs.frozen
class CacheReport:
    """Prompt tokens by where they came from; the cached ones and the four reasons add up to all."""

    host: int  # of the cached tokens: loaded from the host tier
    new: int  # never seen here
    evicted: int  # seen, but gone to make room
    salted: int  # the session had them under another salt
    diverged: int  # behind the first token that the session's last request had differently
    diverged_at: int | None  # that token's position
    volatile_prefix: bool  # the session differs there again and again: a nonce or a timestamp


def cache_reports(deltas: TokenDeltas) -> Iterator[tuple[int, CacheReport]]:
    """Yield (request id, report) of each request whose first token these deltas bring."""
    for request_id, host, new, evicted, salted, diverged, at, is_volatile in zip(
        read_column("Q", deltas.report_ids),
        read_column("i", deltas.report_host),
        read_column("i", deltas.report_new),
        read_column("i", deltas.report_evicted),
        read_column("i", deltas.report_salted),
        read_column("i", deltas.report_diverged),
        read_column("i", deltas.report_diverged_at),
        read_column("B", deltas.report_volatile),
        strict=True,
    ):
        position = at if at >= 0 else None
        yield (
            request_id,
            CacheReport(host, new, evicted, salted, diverged, position, bool(is_volatile)),
        )
