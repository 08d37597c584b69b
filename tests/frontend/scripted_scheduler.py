# SPDX-License-Identifier: MIT
"""A peer that speaks the frontend side of the wire and makes faults on demand.

It owns a real ROUTER socket on a thread.  Requests are answered from a script, a token a step, so
that tests can choose every byte that a frontend sees, and when the peer dies, forgets or stalls.
"""

import threading
import time
from collections.abc import Callable

import attrs
import zmq

from tokenspeed_core.ipc.codec import (
    Decoder,
    encode,
    float32_column,
    int32_column,
    read_column,
    uint64_column,
)
from tokenspeed_core.ipc.messages import (
    WIRE_VERSION,
    Abort,
    FinishReason,
    FromFrontend,
    Hello,
    HelloRequired,
    RefusalCode,
    Refused,
    Rejected,
    SessionHint,
    Stats,
    Submit,
    TokenDeltas,
    Welcome,
)
from tokenspeed_core.ipc.run_directory import RunDirectory

Script = Callable[[Submit], list[int]]


def spell_back(submit: Submit) -> list[int]:
    """Answer a prompt with itself, over and over."""
    return list(read_column("i", submit.prompt)) * (1 + submit.max_tokens)


@attrs.define
class Running:
    submit: Submit
    answer: list[int]
    sent: int = 0


@attrs.define
class ScriptedScheduler:
    run: RunDirectory
    script: Script = spell_back
    step_s: float = 0.0005
    vocab_size: int = 49152
    max_model_len: int = 8192
    num_blocks: int = 1000
    reject: RefusalCode | None = None
    is_rejected: Callable[[Submit], bool] = lambda _: True  # whom `reject` hits
    finish: FinishReason | None = None  # end every request so
    finish_after: int = 2  # tokens
    knows_peers: bool = True  # False: answer everything with HelloRequired, once
    is_frozen: bool = False
    is_ready: bool = True
    tokens_in_step: int = 1
    hellos: list[Hello] = attrs.field(factory=list)
    submits: list[Submit] = attrs.field(factory=list)
    aborts: list[Abort] = attrs.field(factory=list)
    hints: list[SessionHint] = attrs.field(factory=list)
    running: dict[tuple[bytes, int], Running] = attrs.field(factory=dict)
    steps: int = 0
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "ScriptedScheduler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._stop.clear()
        bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(bound,), daemon=True)
        self._thread.start()
        assert bound.wait(10)

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _serve(self, bound: threading.Event) -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(self.run.frontend_endpoint)
        bound.set()
        decoder = Decoder(FromFrontend)
        peers: set[bytes] = set()
        last_stats = last_step = 0.0
        while not self._stop.is_set():
            idle_ms = 1 if self.running else 5
            while not self.is_frozen and router.poll(idle_ms):
                peer, frame = router.recv_multipart()
                for answer in self._answer(peer, decoder.decode(frame), peers):
                    router.send_multipart([peer, encode(answer)])
                if self._stop.is_set():
                    break
            if self.is_frozen:
                time.sleep(0.005)
                continue
            if time.monotonic() - last_step >= self.step_s:
                last_step = time.monotonic()
                self._step(router)
            if time.monotonic() - last_stats > 0.05:
                last_stats = time.monotonic()
                for peer in peers:
                    router.send_multipart([peer, encode(self._stats())])
        self.running.clear()
        context.destroy(linger=0)

    def _answer(self, peer: bytes, message: object, peers: set[bytes]) -> list[object]:
        if isinstance(message, Hello):
            self.hellos.append(message)
            if message.token != self.run.token:
                return [Refused(int(RefusalCode.TOKEN), "wrong session token")]
            peers.add(peer)
            return [
                Welcome(
                    WIRE_VERSION,
                    1,
                    self.is_ready,
                    self.max_model_len,
                    self.vocab_size,
                    16,
                    self.num_blocks,
                )
            ]
        if not self.knows_peers:
            self.knows_peers = True
            self.running.clear()
            return [HelloRequired()]
        if isinstance(message, Submit):
            self.submits.append(message)
            if self.reject is not None and self.is_rejected(message):
                return [Rejected(message.request_id, int(self.reject), self.reject.name.lower())]
            self.running[peer, message.request_id] = Running(message, self.script(message))
        if isinstance(message, SessionHint):
            self.hints.append(message)
        if isinstance(message, Abort):
            self.aborts.append(message)
            self.running.pop((peer, message.request_id), None)
        return []

    def _step(self, router: "zmq.Socket[bytes]") -> None:
        self.steps += bool(self.running)
        for peer in {peer for peer, _ in self.running}:
            rows = {id: each for (owner, id), each in self.running.items() if owner == peer}
            ids, counts, tokens, logprobs, reasons, cached = [], [], [], [], [], []
            for id, row in rows.items():
                new, reason = self._advance(row)
                ids.append(id)
                counts.append(len(new))
                tokens += new
                logprobs += [-0.5] * len(new)
                reasons.append(int(reason))
                cached.append(len(row.submit.prompt) // 4 // 16 * 16)
                if reason is not FinishReason.NONE:
                    del self.running[peer, id]
            wants = any(row.submit.sampling.logprobs for row in rows.values())
            deltas = TokenDeltas(
                self.steps,
                uint64_column(ids),
                int32_column(counts),
                int32_column(tokens),
                float32_column(logprobs) if wants else b"",
                bytes(reasons),
                int32_column(cached),
            )
            router.send_multipart([peer, encode(deltas)])

    def _advance(self, row: Running) -> tuple[list[int], FinishReason]:
        stops = set(read_column("i", row.submit.stop_ids))
        new: list[int] = []
        while len(new) < self.tokens_in_step:
            if self.finish is not None and row.sent == self.finish_after:
                return new, self.finish
            if row.sent == len(row.answer):
                return new, FinishReason.STOP if not new else FinishReason.NONE
            new.append(row.answer[row.sent])
            row.sent += 1
            if new[-1] in stops:
                return new, FinishReason.STOP
            if row.sent == row.submit.max_tokens:
                return new, FinishReason.LENGTH
        return new, FinishReason.NONE

    def _stats(self) -> Stats:
        return Stats(
            time_ns=time.time_ns(),
            epoch=1,
            ready=self.is_ready,
            running=len(self.running),
            waiting=0,
            total_blocks=100,
            free_blocks=100 - len(self.running),
            cached_blocks=0,
            active_blocks=len(self.running),
            steps=self.steps,
            prompt_tokens=0,
            cached_tokens=0,
            generated_tokens=0,
            preemptions=0,
            finished=0,
            rejected=0,
            dropped_frames=0,
            in_flight_steps=int(bool(self.running)),
            oldest_step_age_ns=0,
            plan_time_ns=0,
        )
