# SPDX-License-Identifier: MIT
"""Sessions that share a system prompt and grow turn by turn, through the real processes."""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from ..ipc.messages import Sampling
from ..launch import Engine
from ..sdk import Client
from .options import Options
from .row import Row
from .shape import SHAPES

_START_S = 600.0
_REPEATS = 3


@attrs.frozen
class Sessions:
    """How many sessions and turns; tokens that all share, that a turn brings, and that it gets."""

    count: int = 32
    turns: int = 8
    shared: int = 4096
    new: int = 512
    answer: int = 128

    @property
    def name(self) -> str:
        """The case in words, as peers' tables have it."""
        if self.turns == 1:
            return f"{self.count} requests, {self.new} in, {self.answer} out"
        return f"{self.count} sessions, {self.turns} turns"


# By bench, and as small for tests.
SESSIONS = {"agentic": Sessions(), "throughput": Sessions(128, 1, 0, 1024, 128)}
SMALL = {"agentic": Sessions(3, 2, 32, 20, 4), "throughput": Sessions(3, 1, 0, 20, 4)}


def time_agentic(options: Options, sessions: Sessions) -> Iterator[Row]:
    """Yield the rows of the whole, of first tokens, and of the answers' tokens after them."""
    with tempfile.TemporaryDirectory() as directory:
        shape = SHAPES[options.shape]
        (Path(directory) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        with Engine.start(options.engine(directory)) as engine:
            engine.wait_ready(_START_S)
            runs = asyncio.run(_runs(engine, sessions, int(shape["vocab_size"])))
    card = _card(options)
    samples = {
        "time": [run.ms for run in runs],
        "time to first token": [ms for run in runs for ms in run.first_ms],
        "step": [ms for run in runs for ms in run.step_ms],
    }
    for metric, values in samples.items():
        yield Row.of(
            options.name, card, options.bench, sessions.name, metric, values,
            compared=metric == "time",
        )  # fmt: skip


@attrs.define
class _Run:
    ms: float = 0.0
    first_ms: list[float] = attrs.field(factory=list)
    step_ms: list[float] = attrs.field(factory=list)


async def _runs(engine: Engine, sessions: Sessions, vocabulary: int) -> list[_Run]:
    async with Client(engine.run.path) as client:
        draw = random.Random(0)

        def fresh(count: int) -> list[int]:
            return [draw.randrange(vocabulary) for _ in range(count)]

        runs = []
        await _answer(client, fresh(sessions.new), 2, _Run())
        for _ in range(_REPEATS):
            run = _Run()
            shared = fresh(sessions.shared)
            contexts = [shared + fresh(sessions.new) for _ in range(sessions.count)]
            started = time.perf_counter()
            for _turn in range(sessions.turns):
                answers = await asyncio.gather(
                    *(_answer(client, each, sessions.answer, run) for each in contexts)
                )
                contexts = [
                    context + tokens + fresh(sessions.new)
                    for context, tokens in zip(contexts, answers, strict=True)
                ]
            run.ms = (time.perf_counter() - started) * 1e3
            runs.append(run)
            print(f"round {len(runs)} of {_REPEATS}: {run.ms:.0f} ms", file=sys.stderr, flush=True)
        return runs


async def _answer(client: Client, prompt: list[int], count: int, run: _Run) -> list[int]:
    started = time.perf_counter()
    first = 0.0
    tokens: list[int] = []
    async for delta in client.generate(prompt, max_tokens=count, sampling=Sampling()):
        first = first or time.perf_counter()
        tokens += delta.tokens
    run.first_ms.append((first - started) * 1e3)
    run.step_ms.append((time.perf_counter() - first) * 1e3 / max(count - 1, 1))
    return tokens


def _card(options: Options) -> str:
    import torch

    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else "cpu"
