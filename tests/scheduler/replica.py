# SPDX-License-Identifier: MIT
"""The scheduler core and a simulated worker in one process, step by step."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulated_groups import Group
from simulated_worker import Report, SimulatedWorker, expected_tokens

from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import FinishReason
from tokenspeed_core.scheduler._scheduler import Scheduler

CLIENT = 1


@dataclass
class Asked:
    prompt: list[int]
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]


class Replica:
    """Requests in, tokens out; `plan` and `retire` let a test choose the overlap."""

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        vocab_size: int = 50,
        host_blocks: int = 0,
        max_drafts: int = 0,
        groups: Sequence[Group] = (),
        **limits: Any,
    ) -> None:
        values: dict[str, Any] = {
            "max_slots": 8,
            "max_step_tokens": 32,
            "max_model_len": 400,
            "vocab_size": vocab_size,
        }
        values.update(limits)
        self.core = Scheduler(**values)
        self.depth = values.get("depth", 2)
        self.vocab_size = vocab_size
        self.max_model_len = values["max_model_len"]
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.host_blocks = host_blocks
        self.max_drafts = max_drafts
        self.groups = groups
        self.time_ns = 0
        self.epoch = 0
        self.asked: dict[int, Asked] = {}
        self.outputs: dict[int, list[int]] = {}
        self.reasons: dict[int, int] = {}
        self.cached: dict[int, int] = {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.epoch += 1
        self.in_flight: deque[Report] = deque()
        self.worker = SimulatedWorker(
            self.epoch,
            self.num_blocks,
            self.block_size,
            self.vocab_size,
            self.host_blocks,
            self.groups,
        )
        self.core.begin_epoch(
            self.epoch,
            self.num_blocks,
            self.block_size,
            self.host_blocks,
            self.max_drafts,
            groups=self.groups,
        )
        self.collect()

    def end_epoch(self) -> None:
        self.core.end_epoch()
        self.in_flight.clear()
        self.collect()

    def submit(
        self,
        prompt: list[int],
        max_tokens: int = 4,
        seed: int = 0,
        stop_ids: tuple[int, ...] = (),
        **fields: Any,
    ) -> int:
        """Submit and return the id; REQUIRES that it is taken."""
        request = len(self.asked) + 1
        refused = self.core.submit(
            CLIENT,
            request,
            int32_column(prompt),
            max_tokens,
            seed=seed,
            stop_ids=int32_column(stop_ids),
            **fields,
        )
        assert refused is None, refused
        self.asked[request] = Asked(prompt, max_tokens, seed, stop_ids)
        self.outputs[request] = []
        return request

    def abort(self, request: int, kept: int = -1) -> None:
        self.core.abort(CLIENT, request, kept)
        self.collect()

    def plan(self) -> bool:
        """Plan a step and let the worker run it; whether there was one."""
        frame = self.core.plan(self.time_ns)
        if frame is None:
            return False
        self.in_flight.append(self.worker.apply(frame, self.core.digest))
        assert len(self.in_flight) <= self.depth
        return True

    def retire(self) -> bool:
        """Hand in the oldest result; whether there was one."""
        if not self.in_flight:
            return False
        result = self.in_flight.popleft().result
        self.core.advance(result.step, result.tokens, result.logprobs, counts=result.counts)
        self.collect()
        return True

    def transfer(self, ok: bool = True) -> bool:
        """End the oldest transfer; whether there was one."""
        if not self.worker.copies:
            return False
        ticket = next(iter(self.worker.copies))
        self.worker.end(ticket, ok)
        self.core.transferred(ticket, ok)
        self.collect()
        return True

    def run(self, check: bool = True, transfers_ok: bool = True) -> None:
        """Run at full depth until nothing is left."""
        while True:
            while self.plan():
                if check:
                    self.core.check()
            retired = self.retire()
            if not self.transfer(transfers_ok) and not retired:
                break
            if check:
                self.core.check()
        assert not self.live(), f"requests {self.live()} are stuck; {self.core.stats()}"

    def live(self) -> list[int]:
        return [request for request in self.asked if request not in self.reasons]

    def collect(self) -> None:
        for client, request, token, _, reason, cached in self.core.take_events():
            assert client == CLIENT
            assert request not in self.reasons, f"request {request} goes on after its end"
            if token >= 0:
                self.outputs[request].append(token)
            self.cached[request] = cached
            if reason:
                self.reasons[request] = reason
                self.check_end(request)

    def expected(self, request: int) -> list[int]:
        asked = self.asked[request]
        count = min(asked.max_tokens, self.max_model_len - len(asked.prompt))
        return expected_tokens(asked.prompt, count, self.vocab_size, asked.seed, asked.stop_ids)

    def check_end(self, request: int) -> None:
        """Whatever else ran, the tokens are those of the request alone."""
        output, expected = self.outputs[request], self.expected(request)
        reason = self.reasons[request]
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert output == expected
            stopped = bool(output) and output[-1] in self.asked[request].stop_ids
            assert (reason == FinishReason.STOP) == stopped
        else:
            assert output == expected[: len(output)]

    def check_idle(self) -> None:
        """Nothing runs: every block is free or cached."""
        stats = self.core.stats()
        assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
        assert stats["running"] == stats["waiting"] == stats["in_flight"] == 0
        self.core.check()
