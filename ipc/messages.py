# SPDX-License-Identifier: MIT
"""Every struct that crosses a process boundary.

A message is a msgpack array `[tag, field, ...]`.  Tags never change their meaning, fields are only
ever appended, and a reader ignores trailing fields that it does not know.  A *column* is a msgpack
`bin` holding little-endian values back to back; its element type is in the field's comment, and
columns of one group have one length.  Ids are unsigned unless a comment says otherwise.
"""

import msgspec

from .codes import FinishReason as FinishReason
from .codes import GroupKind as GroupKind
from .codes import RefusalCode as RefusalCode
from .codes import Role as Role
from .codes import SessionAction as SessionAction
from .step_plan import ROW_DRAFTS as ROW_DRAFTS
from .step_plan import ROW_HAS_TOKENS as ROW_HAS_TOKENS
from .step_plan import ROW_SAMPLES as ROW_SAMPLES
from .step_plan import StepPlan as StepPlan

WIRE_VERSION = 2
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_ERROR_CHARS = 2000


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class Hello(_Message, frozen=True, tag=1):
    """First message of every peer to the scheduler; a worker fills the worker fields."""

    version: int
    token: bytes  # 16 bytes, the run's session token
    role: int
    name: str  # for logs
    rank: int = 0
    num_ranks: int = 1
    num_blocks: int = 0  # KV blocks this rank can hold, scratch block 0 included
    block_size: int = 0  # tokens in a block
    program_hash: bytes = b""  # must agree on all ranks
    # The block groups, a column value each; all empty: one FULL group of `block_size`.  With groups
    # `num_blocks` counts parents, and block b of a group lies in parent b // share.
    group_kinds: bytes = b""  # u8: GroupKind
    # The first is FULL with tokens = block_size.
    group_tokens: bytes = b""  # i32: tokens in a block, a multiple of block_size; STATE: block_size
    group_spans: bytes = b""  # i32: window or snapshot interval, a multiple of tokens; 0 for FULL
    group_shares: bytes = b""  # i32: blocks of this group in a parent
    host_blocks: int = 0  # blocks of the host pool, with groups its parents; 0: no host tier
    max_drafts: int = 0  # tokens that the worker can draft for a row


class Welcome(_Message, frozen=True, tag=2):
    """The answer to Hello, sent again to frontends whenever `ready` or `epoch` changes."""

    version: int
    epoch: int
    ready: bool  # all ranks are in
    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    kept_prompts: int = 0  # prompts that are kept for a frontend: see Submit.keep


class Refused(_Message, frozen=True, tag=3):
    """The scheduler turned a connection away."""

    code: int
    message: str


class Heartbeat(_Message, frozen=True, tag=4):
    """Proof of life; sent by either side when it has nothing else to say."""

    time_ns: int


class HelloRequired(_Message, frozen=True, tag=5):
    """The scheduler does not know this peer (it restarted): say Hello again, forget everything."""


class Shutdown(_Message, frozen=True, tag=6):
    """The scheduler tells a worker to exit."""

    reason: str


class Sampling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one request samples."""

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    seed: int = 0  # u64
    logprobs: bool = False  # report the log-probability of each sampled token
    shaping: bytes = b""  # an encoded shaping.Shaping or empty; the scheduler does not read it


class Submit(_Message, frozen=True, tag=10):
    """A frontend asks for a completion of `prompt`."""

    request_id: int  # u64, unique within the frontend's connection
    prompt: bytes  # i32 column
    max_tokens: int
    sampling: Sampling
    stop_ids: bytes = b""  # i32 column; sampling one of them ends the request
    priority: int = 0  # signed, larger runs earlier; -100 to 100
    salt: bytes = b""  # prefix cache namespace
    session: str = ""  # requests of one conversation; a name within the salt
    deadline_ms: int = 0  # the first token is wanted this long after arrival; 0: no deadline
    retain_ms: int = 0  # keep its blocks if possible for this long after it ends
    # Where the whole prompt, of at most `max_model_len` ids, is kept until the next Hello, in place
    # of what is there: 1 to Welcome.kept_prompts; 0: nowhere ...
    keep: int = 0
    kept_tokens: int = 0  # ... and how many ids of what is there stand before `prompt`


class Abort(_Message, frozen=True, tag=11):
    """A frontend takes a request back; idempotent.

    `kept` is the number of generated tokens that the client was given (a stop string may cut some
    off); -1 keeps all.
    """

    request_id: int
    kept: int = -1


class SessionHint(_Message, frozen=True, tag=12):
    """A frontend says what it knows about a session: a hint, never a pin, never an error."""

    session: str
    action: int  # SessionAction
    ttl_ms: int = 0  # how long it holds; 0: until the session's next request
    salt: bytes = b""


class Profile(_Message, frozen=True, tag=13):
    """A frontend asks all processes to trace what they do, or, without a directory, to end that.

    The scheduler passes it on to the workers between two plans.  Each process leaves one file of
    Chrome trace events in the directory, an absolute path that exists, when the trace ends.
    """

    directory: str


class TokenDeltas(_Message, frozen=True, tag=20):
    """What one step brought the requests of one frontend, a row a request.

    A finished request appears exactly once with a finish reason, possibly with no token.
    """

    step: int
    request_ids: bytes  # u64 column
    counts: bytes  # i32 column: tokens of this row
    tokens: bytes  # i32 column, rows back to back
    logprobs: bytes  # f32 column beside tokens, empty if no row asked for it
    finish_reasons: bytes  # u8 column
    cached_tokens: bytes  # i32 column: prompt tokens served from the prefix cache
    # With a request's first token, a row a request: why its other prompt tokens were computed.
    # new + evicted + salted + diverged + cached tokens are the prompt.
    report_ids: bytes = b""  # u64 column
    report_host: bytes = b""  # i32: cached tokens that were loaded from the host tier
    report_new: bytes = b""  # i32: never seen here
    report_evicted: bytes = b""  # i32: seen, but their blocks went to make room
    report_salted: bytes = b""  # i32: the session had them under another salt
    report_diverged: bytes = b""  # i32: the session's last request had other tokens before them
    report_diverged_at: bytes = b""  # i32: the first such token's position, -1: none
    report_volatile: bytes = b""  # u8: 1 if the session diverges there again and again
    report_queued_us: bytes = b""  # i32: from the request's arrival until it first had a slot
    report_first_step: bytes = b""  # i64: the first step that could have a row of it
    # What workers tell of requests past the scheduler: an encoded details.Details a row.
    detail_ids: bytes = b""  # u64 column
    detail_bytes: bytes = b""  # i32 column
    details: bytes = b""  # u8 column, rows back to back
    step_began_ns: int = 0  # when the worker had the step's plan, by CLOCK_MONOTONIC ...
    step_ended_ns: int = 0  # ... and its tokens; 0: not told


class Rejected(_Message, frozen=True, tag=21):
    """A request was not admitted, or named an id that cannot be accepted."""

    request_id: int
    code: int
    message: str


class Stats(_Message, frozen=True, tag=22):
    """The scheduler's counters, sent to frontends as their heartbeat."""

    time_ns: int
    epoch: int
    ready: bool
    running: int
    waiting: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int  # sealed and unreferenced, evictable
    active_blocks: int  # referenced by requests, in-flight frees included
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    finished: int
    rejected: int
    dropped_frames: int
    in_flight_steps: int
    oldest_step_age_ns: int  # 0 if no step is in flight
    plan_time_ns: int  # total time in planning and result handling
    host_blocks: int = 0  # of the host tier
    host_free_blocks: int = 0
    stored_blocks: int = 0  # moved to the host tier
    loaded_blocks: int = 0  # moved back
    failed_transfers: int = 0
    sessions: int = 0  # remembered
    retained_blocks: int = 0  # cached blocks that a hint asks to keep
    missed_new: int = 0  # prompt tokens computed, by reason
    missed_evicted: int = 0
    missed_salted: int = 0
    missed_diverged: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    gap_ns: int = 0  # total time in which requests ran and no step was in flight


class StepResult(_Message, frozen=True, tag=40):
    """Rank 0 reports what a step sampled."""

    epoch: int
    step: int
    digest: bytes  # 16 bytes, the plan's running digest
    tokens: bytes  # i32: one per sampling row in row order; -1 if the row's logits were not finite,
    #                -2 if they were and its request allows none of the tokens
    logprobs: bytes  # f32 beside tokens, empty if no row asked
    counts: bytes = b""  # i32: tokens of each sampling row; empty: one each
    detail_slots: bytes = b""  # i32: slots of rows that tell something of their request ...
    detail_bytes: bytes = b""  # i32: ... in so many bytes
    details: bytes = b""  # u8: encoded details.Details back to back, which frontends read
    began_ns: int = 0  # when the rank had the step's plan, by CLOCK_MONOTONIC ...
    ended_ns: int = 0  # ... and its tokens; 0: not told


class StepAck(_Message, frozen=True, tag=41):
    """Every rank, 0 included, reports that it finished a step; it retires when all have."""

    epoch: int
    step: int
    digest: bytes  # 16 bytes
    token_hash: bytes  # 16 bytes: siphash128(key=digest, StepResult.tokens); equal on all ranks


class WorkerFailed(_Message, frozen=True, tag=42):
    """A worker reports why it is about to exit."""

    rank: int
    epoch: int
    step: int
    message: str


class Transfers(_Message, frozen=True, tag=43):
    """A rank reports stores and loads that ended; a ticket is done when all ranks have it."""

    rank: int
    epoch: int
    tickets: bytes  # i32 column
    ok: bytes  # u8 column: 1, or 0 if any of its blocks was not copied


class SchedulerConfig(_Message, frozen=True, tag=50):
    """All that `tokenspeed-scheduler` is told, read from a file of these bytes."""

    version: int
    token: bytes  # 16 bytes, session token
    hash_key: bytes  # 16 bytes, SipHash key of the prefix index
    frontend_endpoint: str  # ipc://... the scheduler binds
    worker_endpoint: str
    num_ranks: int
    max_slots: int  # requests running at once
    max_step_tokens: int  # token budget of a step
    max_model_len: int
    max_waiting: int  # queue bound: one more is refused with QUEUE_FULL
    vocab_size: int
    depth: int = 2  # plans in flight beyond which the scheduler waits for results
    prefix_caching: bool = True
    heartbeat_ms: int = 250
    parent_pid: int = 0  # exit when this process is gone; 0 watches nobody
    max_prefill_tokens: int = 0  # longest prefill chunk of one row in a step; 0: max_step_tokens
    eviction: str = "reuse"  # "reuse": least expected reuse x cost first; "lru"
    decode_stretch: float = 1.5  # a step with a long prefill lasts at most so many decode steps
    ageing_ms: int = 10_000  # a waiting request gains one priority level in this time
    record_path: str = ""  # the black box of events; empty: none
    record_bytes: int = 50 * 1024 * 1024  # its bound
    transfer_ms: int = 10_000  # a copy between tiers that takes longer has failed; 0: never
    kv_events: str = ""  # endpoint at which it tells what the prefix cache holds; empty: nowhere
    kv_replay: str = ""  # ... at which it tells that again
    kv_topic: str = ""
    kv_curve_secret: str = ""  # Z85; empty: no encryption
    frontend_tcp: str = ""  # one more endpoint for frontends, tcp://...; empty: none
    frontend_curve_secret: str = ""  # its secret key, Z85
    frontend_tcp_token: bytes = b""  # what a hello there may show instead of `token`


Peer = Welcome | Refused | Heartbeat | HelloRequired
ToFrontend = Peer | TokenDeltas | Rejected | Stats
ToWorker = Peer | Shutdown | StepPlan | Profile
FromFrontend = Hello | Heartbeat | Submit | Abort | SessionHint | Profile
FromWorker = Hello | Heartbeat | StepResult | StepAck | WorkerFailed | Transfers
