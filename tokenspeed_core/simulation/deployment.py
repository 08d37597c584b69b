# SPDX-License-Identifier: MIT
"""One deployment under one workload, and what its users would see."""

from typing import Any

import attrs
import numpy as np

from ..scheduler._scheduler import Trace, simulate
from .device_model import DeviceModel

Requests = np.ndarray[Any, np.dtype[np.void]]


class DeploymentError(ValueError):
    """A deployment that cannot be simulated; it names the value and what to give instead."""


@attrs.frozen
class Workload:
    """How the conversations of a trace come: so many at once, or at random `rate` a second.

    `gap_cap_s` cuts the pauses within a conversation; `requests` 0 plays each conversation once.
    """

    sessions: int = 16
    rate: float = 0.0
    requests: int = 0
    gap_cap_s: float = 600.0
    seed: int = 0
    names: bool = True
    hints: bool = True


@attrs.frozen
class Deployment:
    """A replica: device, pools in tokens, and the scheduler's limits."""

    device: DeviceModel
    pool_tokens: int
    host_tokens: int = 0
    eviction: str = "reuse"
    block_size: int = 64
    max_running: int = 256
    max_step_tokens: int = 8192
    max_prefill_tokens: int = 0
    decode_stretch: float = 1.5
    transfer_ms: int = 10_000
    depth: int = 2

    def __attrs_post_init__(self) -> None:
        for name, least in (("pool_tokens", self.block_size), ("host_tokens", 0)):
            value = getattr(self, name)
            if not least <= value < 2**31 * self.block_size - 2**10:
                raise DeploymentError(
                    f"{name} = {value}; give {least} to {2**31 * self.block_size - 2**10} tokens"
                )

    @property
    def label(self) -> str:
        """What tells it from others of a sweep."""
        host = f", host {tokens_text(self.host_tokens)}" if self.host_tokens else ""
        return f"{self.eviction}, pool {tokens_text(self.pool_tokens)}{host}"


@attrs.frozen
class Spread:
    """Quantiles of a time, in seconds; 0 of nothing."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: "np.ndarray[Any, np.dtype[np.float64]]") -> "Spread":
        if len(seconds) == 0:
            return cls(0.0, 0.0, 0.0)
        return cls(*(float(value) for value in np.quantile(seconds, (0.5, 0.9, 0.99))))


@attrs.frozen
class Outcome:
    """What came of a run; `requests` has one record each (fields of simulate::Served)."""

    deployment: Deployment
    workload: Workload
    requests: Requests = attrs.field(repr=False)
    totals: dict[str, int]
    gaps: Spread  # between tokens of a request

    @property
    def served(self) -> Requests:
        """The requests that were not refused."""
        served: Requests = self.requests[self.requests["refused"] == 0]
        return served

    @property
    def refused(self) -> int:
        return len(self.requests) - len(self.served)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return self.totals["end_ns"] * 1e-9

    @property
    def prompt_tokens(self) -> int:
        return int(self.served["prompt"].sum())

    @property
    def output_tokens(self) -> int:
        return int(self.served["output"].sum())

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were found in the pool or the host tier."""
        return _share(int(self.served["cached"].sum()), self.prompt_tokens)

    @property
    def host_rate(self) -> float:
        """Share of prompt tokens that were loaded from the host tier."""
        return _share(int(self.served["host"].sum()), self.prompt_tokens)

    @property
    def ideal_rate(self) -> float:
        """The hit rate of a cache without bounds."""
        return _share(int(self.served["ideal"].sum()), self.prompt_tokens)

    @property
    def amplification(self) -> float:
        """Prompt tokens computed, in those that a cache without bounds would compute."""
        computed = self.prompt_tokens - int(self.served["cached"].sum())
        computed += self.totals["recomputed_tokens"]
        return _share(computed, self.prompt_tokens - int(self.served["ideal"].sum()))

    @property
    def first_token(self) -> Spread:
        return self._between("arrived", "first")

    @property
    def whole(self) -> Spread:
        return self._between("arrived", "last")

    @property
    def queue(self) -> Spread:
        return self._between("arrived", "admitted")

    @property
    def utilisation(self) -> float:
        """Share of the time in which the device computed."""
        return _share(self.totals["busy_ns"], self.totals["end_ns"])

    @property
    def output_rate(self) -> float:
        """Generated tokens a second and card."""
        return _share(self.output_tokens, self.seconds) / self.deployment.device.tp

    @property
    def user_rate(self) -> float:
        """Tokens a second that the median request gets between its first and its last."""
        many = self.served[self.served["output"] > 1]
        if len(many) == 0:
            return 0.0
        took = (many["last"] - many["first"]) * 1e-9
        return float(np.median((many["output"] - 1) / np.maximum(took, 1e-9)))

    def _between(self, begin: str, end: str) -> Spread:
        served = self.served
        return Spread.of((served[end] - served[begin]) * 1e-9)


def run(deployment: Deployment, workload: Workload, trace: Trace) -> Outcome:
    """Simulate; equal inputs give equal outcomes.

    Raises:
        DeploymentError: the scheduler refuses the limits.
    """
    try:
        requests, totals, gaps = simulate(
            trace,
            deployment.device.device(),
            pool_blocks=deployment.pool_tokens // deployment.block_size,
            block_size=deployment.block_size,
            host_blocks=deployment.host_tokens // deployment.block_size,
            max_running=deployment.max_running,
            max_step_tokens=max(deployment.max_step_tokens, deployment.max_running),
            max_prefill_tokens=deployment.max_prefill_tokens,
            decode_stretch=deployment.decode_stretch,
            eviction=deployment.eviction,
            depth=deployment.depth,
            transfer_ms=deployment.transfer_ms,
            sessions=workload.sessions,
            rate=workload.rate,
            seed=workload.seed,
            requests=workload.requests,
            longest_pause_s=workload.gap_cap_s,
            names=workload.names,
            hints=workload.hints,
        )
    except ValueError as error:
        raise DeploymentError(str(error)) from error
    p50, p90, p99, _ = (gap * 1e-9 for gap in gaps)
    return Outcome(deployment, workload, requests, totals, Spread(p50, p90, p99))


def tokens_text(tokens: int) -> str:
    """A count of tokens for people: 760k, 1.5M."""
    if tokens >= 1_000_000:
        return f"{tokens / 1e6:.3g}M"
    return f"{tokens / 1e3:.3g}k" if tokens >= 1000 else str(tokens)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
