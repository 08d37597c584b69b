# SPDX-License-Identifier: MIT
"""The scheduler's core and one rank's runner in one thread, without processes or sockets."""

import threading
from collections import deque
from collections.abc import Sequence

import attrs
import msgspec
import numpy as np
from torch import Tensor

from tokenspeed_core.executor import Executor
from tokenspeed_core.host_pool import HostPool
from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import FinishReason, StepPlan
from tokenspeed_core.ipc.shaping import Shaping
from tokenspeed_core.models.sampling import sample
from tokenspeed_core.runner import Runner
from tokenspeed_core.sampled import Sampled
from tokenspeed_core.scheduler._scheduler import Scheduler
from tokenspeed_core.slots import Step

_plan_decoder = msgspec.msgpack.Decoder(StepPlan)


@attrs.define
class Outcome:
    """What came of one request."""

    tokens: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    finish: FinishReason = FinishReason.NONE
    cached_tokens: int = 0


@attrs.frozen
class Request:
    prompt: Sequence[int]
    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: Sequence[int] = ()
    logprobs: bool = False
    shaping: Shaping | None = None


class LocalEngine:
    """Runs requests to their end; `depth` plans are made before the first result is given.

    An `executor` runs the plans instead of the engine's own slots and the runner.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        depth: int = 2,
        max_step_tokens: int = 512,
        num_blocks: int = 0,
        max_slots: int = 0,
        prefix_caching: bool = True,
        vocab_size: int = 2**31 - 1,
        host_pool: type[HostPool] = HostPool,
        executor: Executor | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(
            max_slots=max_slots or runner.num_slots,
            max_step_tokens=max_step_tokens,
            max_model_len=runner.max_model_len,
            vocab_size=vocab_size,
            depth=depth,
            prefix_caching=prefix_caching,
        )
        groups = [(int(g.kind), g.tokens, g.span, g.share) for g in runner.groups]
        self.scheduler.begin_epoch(
            1,
            num_blocks or runner.num_blocks,
            runner.block_size,
            runner.host_blocks,
            groups=groups,
        )
        self._slots = runner.new_slots()
        self._executor = executor
        self._copied = threading.Event()
        self._transfers = runner.new_transfers(self._copied.set, host_pool)
        self._copying: set[int] = set()  # tickets under way
        self._in_flight: deque[tuple[int, bytes, bytes]] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._next_id = 0
        self.computed_tokens = 0

    def submit(self, request: Request) -> Outcome:
        """Queue a request; its outcome fills as steps run."""
        self._next_id += 1
        refusal = self.scheduler.submit(
            0,
            self._next_id,
            int32_column(request.prompt),
            request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
            logprobs=request.logprobs,
            stop_ids=int32_column(request.stop_ids),
            shaping=msgspec.msgpack.encode(request.shaping) if request.shaping else b"",
        )
        assert refusal is None, refusal
        outcome = self._outcomes[self._next_id] = Outcome()
        return outcome

    def run(self) -> None:
        """Plan, execute and report until nothing is left to do."""
        while True:
            while (frame := self.scheduler.plan()) is not None:
                plan = _plan_decoder.decode(frame)
                if self._executor is not None:
                    self._in_flight.append((plan.step, *_columns(self._executor.launch(plan))))
                    continue
                step = self._slots.prepare(plan)
                self._start_copies(plan)
                self.computed_tokens += step.num_tokens
                # Executed at once and in order, as a worker would; reported when the pipe is full.
                self._in_flight.append((plan.step, *self._execute(step)))
            if self._in_flight:
                self.scheduler.advance(*self._in_flight.popleft())
                self._collect()
            elif not self._copying:
                break
            else:
                self._copied.wait()
            self._report_copies()
        self.scheduler.check()

    def _start_copies(self, plan: StepPlan) -> None:
        if self._transfers is not None:
            self._transfers.start(plan)
            for column in (plan.store_tickets, plan.load_tickets):
                self._copying.update(np.frombuffer(column, np.int32).tolist())

    def _report_copies(self) -> None:
        self._copied.clear()
        for ended in self._transfers.ended() if self._transfers is not None else []:
            self._copying.remove(ended.ticket)
            self.scheduler.transferred(ended.ticket, ended.ok)

    def _execute(self, step: Step) -> tuple[bytes, bytes]:
        if step.num_tokens == 0:
            return b"", b""
        logits = self._logits(step)[: len(step.sampling_slots)]
        shaped = step.shapers.shaped(logits, step.sampling.temperature)
        sampled, values = sample(shaped, step.sampling)
        tokens = step.shapers.take(sampled, logits).numpy()
        logprobs = step.shapers.own_logprobs(logits, sampled, values).numpy()
        self._slots.record(step, tokens)
        asked = bool(step.sampling.logprobs.any())
        return tokens.tobytes(), logprobs.tobytes() if asked else b""

    def _logits(self, step: Step) -> Tensor:
        return self.runner.logits(step, self._transfers)

    def _collect(self) -> None:
        for _, request_id, token, logprob, finish, cached in self.scheduler.take_events():
            outcome = self._outcomes[request_id]
            if token >= 0:
                outcome.tokens.append(token)
                if logprob is not None:
                    outcome.logprobs.append(logprob)
            outcome.finish = FinishReason(finish)
            outcome.cached_tokens = cached


def _columns(sampled: Sampled) -> tuple[bytes, bytes]:
    sampled.wait()
    return sampled.tokens.tobytes(), sampled.logprobs.tobytes() if sampled.has_logprobs else b""
