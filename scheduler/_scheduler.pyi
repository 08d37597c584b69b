# SPDX-License-Identifier: MIT
"""The scheduler core in process; columns are bytes as in `ipc/messages.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

class SchedulerError(ValueError):
    """A call or a frame that the core cannot accept, or (from `check`) a broken invariant."""

class Scheduler:
    """Requests in, plans out, results in, tokens out; see scheduler/csrc/plan/scheduler.h."""

    def __init__(
        self,
        *,
        max_slots: int,
        max_step_tokens: int,
        max_model_len: int,
        vocab_size: int,
        max_waiting: int = 1024,
        depth: int = 2,
        max_prefill_tokens: int = 0,
        prefix_caching: bool = True,
        transfer_ms: int = 10_000,
        hash_key: bytes = ...,
        eviction: str = "reuse",
        decode_stretch: float = 1.5,
        ageing_ns: int = 10_000_000_000,
    ) -> None: ...
    def begin_epoch(
        self,
        epoch: int,
        num_blocks: int,
        block_size: int,
        host_blocks: int = 0,
        max_drafts: int = 0,
        groups: Sequence[tuple[int, int, int, int]] = (),
    ) -> None:
        """Begin an epoch; a group is (kind, tokens, span, share) as the columns of Hello.

        Raises:
            SchedulerError: epochs do not ascend, or the shape is out of range.
        """

    def end_epoch(self) -> None: ...
    def submit(
        self,
        client: int,
        request_id: int,
        prompt: bytes,
        max_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        logprobs: bool = False,
        stop_ids: bytes = b"",
        priority: int = 0,
        salt: bytes = b"",
        time_ns: int = 0,
        session: str = "",
        retain_ns: int = 0,
        deadline_ns: int = 0,
    ) -> tuple[int, str] | None:
        """Return None, or the RefusalCode and why."""

    def hint(
        self, session: str, action: int, *, time_ns: int = 0, ttl_ns: int = 0, salt: bytes = b""
    ) -> None:
        """Say what is known about a session (SessionAction); an unknown one does nothing."""

    def abort(self, client: int, request_id: int, kept: int = -1) -> None: ...
    def abort_client(self, client: int) -> None: ...
    def drain(self) -> None: ...
    def plan(self, time_ns: int = 0) -> bytes | None:
        """Return the next StepPlan frame, None if there is nothing to do now."""

    @property
    def digest(self) -> bytes:
        """The running digest after the last plan."""

    def advance(
        self,
        step: int,
        tokens: bytes,
        logprobs: bytes = b"",
        time_ns: int = 0,
        counts: bytes = b"",
    ) -> None: ...
    def transferred(self, ticket: int, ok: bool, time_ns: int = 0) -> bool:
        """A transfer has ended on all ranks; return whether somebody waited for this ticket."""

    def prefetch(self, tokens: bytes, salt: bytes = b"") -> None:
        """Load what the host tier has of these tokens into device blocks."""

    def demote(self, tokens: bytes, salt: bytes = b"") -> None:
        """Store the device blocks of these tokens in the host tier."""

    def take_events(self) -> list[tuple[int, int, int, float | None, int, int]]:
        """Return (client, request_id, token or -1, logprob, FinishReason, cached_tokens) rows."""

    def take_rejections(self) -> list[tuple[int, int, int, str]]:
        """Return (client, request_id, RefusalCode, why) of queued requests that never fit.

        They are known after `begin_epoch` and the `take_events` behind it.
        """

    def take_reports(self) -> list[tuple[int, int, int, int, int, int, int, bool]]:
        """Return (client, request_id, new, evicted, salted, diverged, diverged_at, volatile) rows.

        There is one for each first token that `take_events` returned before: prompt tokens that
        were computed, by reason.
        """

    def log_cache(self) -> None:
        """Keep what becomes findable in the cache, and what stops to be, from now on."""

    def take_cache_log(self) -> list[tuple[int, bytes, bytes, list[int]]]:
        """Return rows (0 stored, 1 removed, 2 all cleared; hash, parent, tokens) since the last."""

    def cached_blocks(self) -> list[tuple[int, bytes, bytes, list[int]]]:
        """Return what is findable now, in rows as of `take_cache_log`, parents first."""

    def stats(self) -> dict[str, int]: ...
    def check(self) -> None:
        """Walk every structure and raise at the first broken invariant."""

class Played:
    """An event of a black box and what came of it."""

    index: int  # counts the events of the recorded process
    event: str
    outcome: str
    step: int  # of the plan that came of it, 0: none
    replayed: bool  # False behind the part that is kept from the start: shown only
    settled: bool  # False: the process ended inside this event
    same: bool  # the outcome is the recorded one

class Replay:
    """A black box, event by event, into a core of its own.

    Raises:
        SchedulerError: the file cannot be read, is no black box or is of another release.
    """

    def __init__(self, path: str) -> None: ...
    def next(self) -> Played | None:
        """Play the next event; None at the end."""

    @property
    def closed(self) -> bool:
        """Whether the recorded process ended by itself."""

    def stats(self) -> dict[str, int]: ...
    def check(self) -> None:
        """As Scheduler.check."""

def diagram(format: str) -> str:
    """Return the state diagram of a request as "mermaid" or "dot" text."""

class Trace:
    """Conversations of which sizes, times and equal blocks are known."""

    def __init__(self, block_tokens: int) -> None: ...
    def add(
        self,
        *,
        tool_key: int,
        system_key: int,
        tool_blocks: int,
        shared_blocks: int,
        rows: list[tuple[int, int, int, int, float, float, int]],
    ) -> None:
        """Add a conversation.

        A row is (input tokens, output tokens, leading blocks kept, blocks, seconds of service,
        seconds of pause before, stop: 0 unknown, 1 tool call, 2 end of turn).
        """

def replay_cache(
    trace: Trace,
    *,
    sessions: int,
    pool_blocks: int,
    longest_pause_s: float,
    policy: str,
    names: bool = True,
    hints: bool = True,
) -> tuple[int, int, int, int, int, int]:
    """Return requests, prompt, hit, ideal hit, output tokens, long recomputes of a closed loop."""

class Device:
    """Costs of a rank's steps: seconds, bytes and FLOPs; see scheduler/csrc/simulate/device.h.

    Raises:
        ValueError: a rate is not positive, or a cost is negative.
    """

    def __init__(
        self,
        *,
        step_s: float,
        token_s: float,
        weight_bytes: float,
        expert_bytes: float,
        expert_share: float,
        kv_token_bytes: float,
        bandwidth: float,
        kv_bandwidth: float,
        token_flops: float,
        sample_flops: float,
        product_rate: float,
        pair_flops: float,
        attention_rate: float,
        link_bandwidth: float,
    ) -> None: ...
    def step_seconds(
        self, *, tokens: float, sampled: float, context_read: float, pairs: float
    ) -> float: ...

def simulate(
    trace: Trace,
    device: Device,
    *,
    pool_blocks: int,
    block_size: int,
    host_blocks: int,
    max_running: int,
    max_step_tokens: int,
    max_prefill_tokens: int,
    decode_stretch: float,
    eviction: str,
    depth: int,
    transfer_ms: int,
    sessions: int,
    rate: float,
    seed: int,
    requests: int,
    longest_pause_s: float,
    names: bool,
    hints: bool,
) -> tuple[np.ndarray[Any, np.dtype[np.void]], dict[str, int], list[int]]:
    """Play a trace through the core against a device.

    Return one record a request (fields as simulate::Served in scheduler/csrc/simulate), totals,
    and the quantiles 0.5, 0.9, 0.99 and 1 of the nanoseconds between tokens of a request.

    Raises:
        ValueError: a limit or a size is out of range.
    """

def siphash128(key: bytes, data: bytes) -> bytes:
    """Return SipHash-2-4 of `data` with 128 bits of output; the key has 16 bytes."""

def reencode(frame: bytes) -> bytes:
    """Decode any message and encode it again."""

def accepts_from_frontend(frame: bytes) -> bool:
    """Whether the frame is a message that a frontend may send."""

def accepts_from_worker(frame: bytes) -> bool:
    """Whether the frame is a message that a worker may send."""
