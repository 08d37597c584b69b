# SPDX-License-Identifier: MIT
"""Whether tokens are flowing (`/health`) and whether new requests are welcome (`/ready`)."""

import attrs

from ..sdk import Client

STALL_S = 10.0  # the longest step that is not a hang
SILENCE_S = 2.0  # the scheduler speaks four times a second


@attrs.frozen
class Verdict:
    """A yes or no with its reason."""

    is_good: bool
    reason: str


def health(client: Client, *, stall_s: float = STALL_S, silence_s: float = SILENCE_S) -> Verdict:
    """Good while the scheduler is heard and every piece of work makes progress."""
    stats = client.stats
    if client.unheard_s > silence_s:
        return Verdict(False, f"the scheduler has been silent for {client.unheard_s:.1f} s")
    if not client.is_ready:
        return Verdict(False, "the engine is starting, or its workers are gone")
    if stats is not None:
        step_s = stats.oldest_step_age_ns / 1e9
        if stats.in_flight_steps and step_s > stall_s:
            return Verdict(False, f"a step has been in flight for {step_s:.1f} s")
        if client.stalled_s > stall_s:
            return Verdict(
                False,
                f"{stats.waiting} waiting and {stats.running} running requests made no progress "
                f"for {client.stalled_s:.1f} s",
            )
    return Verdict(True, "ok")


def readiness(client: Client, *, is_draining: bool) -> Verdict:
    """Good while new requests are admitted."""
    if is_draining:
        return Verdict(False, "draining")
    return health(client)
