# SPDX-License-Identifier: MIT
"""The cases of each bench: what is in the cache, what is new, and how it is timed."""

import time
from collections.abc import Iterator

import attrs

from .offline import CacheTooSmallError, Offline
from .row import Row

CHUNK = 8192  # tokens in a prefill step
_LONG = 4096
_REPEATS = 5


@attrs.frozen
class Case:
    """A shape of work: `batch` requests with `cached` tokens each, `new` to compute."""

    bench: str
    batch: int
    cached: int
    new: int = 0
    shared: int = 0

    @property
    def steps(self) -> int:
        """Decode steps of a sample, as many as peers' samples have: a step reads what it adds."""
        return 64 if self.bench == "decode" and self.cached > _LONG else 128

    @property
    def name(self) -> str:
        """The case in words, as peers' tables have it."""
        if self.bench == "decode":
            return f"batch {self.batch}, ctx {self.cached}"
        if self.bench == "shared":
            own = self.cached - self.shared
            return f"batch {self.batch}, prefix {self.shared}, own {own}"
        if self.bench == "prefill":
            return f"{self.new} tokens"
        return f"{self.cached} cached, {self.new} new"


_SMALL = tuple(Case("decode", batch, 512) for batch in (1, 16, 64, 256))
_LARGE = (
    *(Case("decode", batch, 1024) for batch in (1, 8, 32, 64, 128, 256)),
    *(Case("decode", batch, ctx) for batch, ctx in ((1, 16384), (16, 16384))),
    *(Case("decode", batch, ctx) for batch, ctx in ((1, 100000), (4, 65536))),
)
_TINY = {
    "decode": (Case("decode", 1, 20), Case("decode", 3, 20)),
    "prefill": (Case("prefill", 1, 0, 40),),
    "warm": (Case("warm", 1, 64, 20),),
    "shared": (Case("shared", 3, 48, 0, 32),),
}


def cases(model: str, bench: str) -> tuple[Case, ...]:
    """Return the cases of a bench that suit a model."""
    if model == "tiny":
        return _TINY[bench]
    if bench == "decode":
        return _SMALL if model == "qwen3-0.6b" else _LARGE
    if bench == "prefill":
        return tuple(Case("prefill", 1, 0, new) for new in (512, 2048, 8192, 30000))
    if bench == "warm":
        shapes = ((16384, 700), (65536, 700), (100000, 700), (100000, 64))
        return tuple(Case("warm", 1, cached, new) for cached, new in shapes)
    return (Case("shared", 32, 16384 + 512, 0, 16384),)


def measure(
    case: Case, offline: Offline, model: str, card: str, floor: float | None = None
) -> Iterator[Row]:
    """Time a case and yield its rows, one with its `floor`; none if the cache is too small.

    Where the offline executor times the device's gaps between steps, decode has their median too.
    """
    decodes = case.new == 0
    try:
        samples = _decode(case, offline) if decodes else _first_token(case, offline)
    except CacheTooSmallError:
        return
    metric = "step" if decodes else "time to first token"
    yield Row.of(model, card, case.bench, case.name, metric, samples, floor)
    gaps = offline.gaps()
    if decodes and gaps:
        found = [each / 1e3 for each in gaps]
        yield Row.of(model, card, case.bench, case.name, "gap", found, compared=False)


def _decode(case: Case, offline: Offline) -> list[float]:
    samples = []
    for _ in range(_REPEATS):
        offline.admit([case.cached] * case.batch, case.shared)
        offline.decode(1)
        offline.gaps()  # those of other work
        started = time.perf_counter()
        offline.decode(case.steps)
        samples.append((time.perf_counter() - started) * 1e3 / case.steps)
    return samples


def _first_token(case: Case, offline: Offline) -> list[float]:
    samples = []
    for _ in range(_REPEATS + 1):
        offline.admit([case.cached] * case.batch, case.shared)
        started = time.perf_counter()
        offline.extend(case.new, CHUNK)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples[1:]  # the first compiles and loads kernels
