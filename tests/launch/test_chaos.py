# SPDX-License-Identifier: MIT
"""Seeded streams of SmolLM2 while parts of the engine are killed, stopped and resumed at random."""

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator

import attrs
import httpx
import openai
import pytest

from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.engine_watch import WatchLimits
from tokenspeed_core.launch import Engine
from tokenspeed_core.sampling_params import SamplingParams

MODEL = "smollm2"
PATIENCE_S = 240.0
LIMITS = WatchLimits(silence_s=3.0, step_s=8.0)
# A part that dies a fourth time within a minute ends the engine; what is frozen dies a bit later.
DEATHS, WINDOW_S = 3, 60.0 + 2 * LIMITS.step_s

Ask = Callable[[int], Awaitable[str]]


@attrs.frozen
class Story:
    """One request: its prompt and seed differ from all others, even ones are greedy."""

    number: int
    tokens: int

    @property
    def prompt(self) -> str:
        return f"Story {self.number}. Once upon a time there was a"

    @property
    def sampling(self) -> dict[str, float]:
        return {"temperature": 0.0 if self.number % 2 == 0 else 0.9, "seed": self.number}


class Mishaps:
    """Kills or freezes a random part every few seconds, as often as a supervisor may forgive.

    A slow machine is struck less often while it comes back: else nothing would ever be answered.
    """

    def __init__(self, engine: Engine, is_ready: Callable[[], bool], seed: int) -> None:
        self._is_ready = is_ready
        self.done: Counter[str] = Counter()
        self._engine = engine
        self._random = random.Random(seed)
        self._deaths = {part: deque[float]() for part in ("scheduler", "worker 0", "api")}

    async def run(self, until: Callable[[], bool], pause_s: tuple[float, float]) -> None:
        while not until():
            await asyncio.sleep(self._random.uniform(*pause_s))
            now = time.monotonic()
            for deaths in self._deaths.values():
                while deaths and deaths[0] < now - WINDOW_S:
                    deaths.popleft()
            may_die = [part for part, deaths in self._deaths.items() if len(deaths) < DEATHS]
            is_due = self._is_ready() or self._random.random() < 0.25
            if not until() and may_die and is_due:
                await self._strike(self._random.choice(may_die))

    async def _strike(self, part: str) -> None:
        pid = self._engine.pids().get(part)
        if pid is None:
            return  # it is down already
        kind = self._random.choice(("kill", "freeze", "pause"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            if kind == "pause":  # shorter than a watch waits
                await asyncio.sleep(self._random.uniform(0.05, 0.8))
                os.kill(pid, signal.SIGCONT)
            else:
                self._deaths[part].append(time.monotonic())
            self.done[f"{kind} {part}"] += 1


async def over_sdk(llm: AsyncLLM, story: Story) -> str:
    params = SamplingParams(max_tokens=story.tokens, ignore_eos=True, **story.sampling)
    return (await llm.generate(story.prompt, params)).text


async def over_http(engine: Engine, story: Story) -> str:
    """Stream an answer; ask again when the API process, the one end of the stream, has died."""
    async with openai.AsyncOpenAI(
        base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        while engine.failure is None:
            try:
                stream = await client.completions.create(
                    model=MODEL,
                    prompt=story.prompt,
                    max_tokens=story.tokens,
                    stream=True,
                    extra_body={"ignore_eos": True},
                    **story.sampling,
                )
                return "".join([chunk.choices[0].text async for chunk in stream])
            except (openai.APIConnectionError, httpx.TransportError):
                await asyncio.sleep(0.2)  # the connection broke
            except openai.InternalServerError as error:
                if error.status_code != 503:  # not accepted: nothing is there to answer it yet
                    raise
                await asyncio.sleep(0.2)
    raise engine.failure


async def all_of(
    engine: Engine, llm: AsyncLLM, stories: list[Story], patience_s: float
) -> list[str]:
    async with asyncio.timeout(patience_s):
        return await asyncio.gather(
            *(
                over_http(engine, story) if story.number % 4 < 2 else over_sdk(llm, story)
                for story in stories
            )
        )


@pytest.fixture
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="t") as parent:
        config = EngineConfig(
            model=MODEL, port=0, dtype="fp32", num_blocks=2048, max_model_len=512, run_dir=parent
        )
        with Engine.start(config, serve_http=True, limits=LIMITS) as engine:
            engine.wait_ready(PATIENCE_S)
            yield engine
        assert not os.listdir(parent)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("streams", "tokens", "seconds"),
    [
        pytest.param(6, 24, 8.0, id="short"),
        pytest.param(32, 64, 300.0, id="long", marks=pytest.mark.soak),
    ],
)
async def test_no_stream_tells_what_happens_to_the_engine(
    engine: Engine, streams: int, tokens: int, seconds: float
) -> None:
    codec = await asyncio.to_thread(TextCodec.load, MODEL)
    patience_s = seconds + PATIENCE_S
    async with AsyncLLM(MODEL, run_dir=engine.run.path, codec=codec, resume_s=patience_s) as llm:
        stories = [Story(number, tokens) for number in range(streams)]
        quiet = await all_of(engine, llm, stories, patience_s)
        assert len(set(quiet)) > streams // 2  # greedy stories may begin alike
        mishaps = Mishaps(engine, lambda: llm.client.is_ready, seed=7)
        end = time.monotonic() + seconds
        over = asyncio.Event()
        striking = asyncio.create_task(
            mishaps.run(lambda: over.is_set() or time.monotonic() > end, (0.3, 3.0))
        )
        rounds = 0
        while time.monotonic() < end:
            assert await all_of(engine, llm, stories, patience_s) == quiet
            rounds += 1
        over.set()
        await striking
        assert mishaps.done
        assert await all_of(engine, llm, stories, patience_s) == quiet
        print(f"{(rounds + 2) * streams} streams of {tokens} tokens, {dict(mishaps.done)}")
    assert engine.failure is None
