# SPDX-License-Identifier: MIT
"""Recorded agent conversations played against any server that speaks OpenAI's completions."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import attrs

from .conversation import Conversation, Turn
from .row import Row


class ServeError(RuntimeError):
    """The server did not answer as OpenAI's completions do."""


@attrs.frozen
class Load:
    """Where requests go and how: so many sessions at once, at most `requests` in all if not 0.

    A session plays one conversation after another; pauses take `pause` of their recorded time.
    """

    url: str
    model: str
    vocabulary: int
    sessions: int = 8
    requests: int = 0
    pause: float = 0.0
    api_key: str = ""
    max_answer: int = 0


@attrs.frozen
class Answered:
    """What one request took: milliseconds to its first token and between the later ones."""

    prompt: int
    cached: int
    tokens: int
    first_ms: float
    step_ms: float
    ended: float


async def play(load: Load, found: Sequence[Conversation]) -> tuple[list[Answered], float]:
    """Play conversations; return what came of each request, and the seconds of all.

    Raises:
        ServeError: an answer is an error, or is no stream of completions.
    """
    import httpx

    waiting = iter(found)
    left = [load.requests or 1 << 60]
    answered: list[Answered] = []
    headers = {"authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as client:

        async def session() -> None:
            for conversation in waiting:
                for turn in conversation.turns(load.vocabulary):
                    if left[0] == 0:
                        return
                    left[0] -= 1
                    await asyncio.sleep(turn.pause_s * load.pause)
                    answered.append(await _asked(client, load, turn))

        started = time.perf_counter()
        await asyncio.gather(*(session() for _ in range(load.sessions)))
        return answered, time.perf_counter() - started


async def _asked(client: Any, load: Load, turn: Turn) -> Answered:
    count = min(turn.answer, load.max_answer) if load.max_answer else turn.answer
    body = {
        "model": load.model,
        "prompt": turn.prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,  # of vLLM, SGLang and us; a server without it may answer in less
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.perf_counter()
    first = last = 0.0
    usage: dict[str, Any] = {}
    async for event in _events(client, load.url, body):
        if event.get("choices"):
            last = time.perf_counter()
            first = first or last
        usage = event.get("usage") or usage
    tokens = int(usage.get("completion_tokens") or 0)
    if not tokens or not first:
        raise ServeError(f"{load.url} streamed no completion, or no usage at its end: {usage}")
    details = usage.get("prompt_tokens_details") or {}
    return Answered(
        prompt=int(usage["prompt_tokens"]),
        cached=int(details.get("cached_tokens") or 0),
        tokens=tokens,
        first_ms=(first - begun) * 1e3,
        step_ms=(last - first) * 1e3 / max(tokens - 1, 1),
        ended=last,
    )


async def _events(client: Any, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    import httpx

    try:
        async with client.stream("POST", f"{url.rstrip('/')}/completions", json=body) as answer:
            if answer.status_code != 200:
                text = (await answer.aread()).decode(errors="replace")[:500]
                raise ServeError(f"{url} answered {answer.status_code}: {text}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ServeError(f"{url} broke off: {event['error']}")
                    yield event
    except httpx.HTTPError as error:
        raise ServeError(f"{url}: {type(error).__name__}: {error}") from error


def rows(load: Load, answered: Sequence[Answered], seconds: float) -> Iterator[Row]:
    """Yield the rows of a run: latencies, throughput, and what of the prompts was cached."""
    case = f"{load.sessions} sessions, {len(answered)} requests"

    def row(metric: str, unit: str, values: Sequence[float]) -> Row:
        made = Row.of(load.model, load.url, "serve", case, metric, values, compared=False)
        return attrs.evolve(made, unit=unit)

    for metric, values in (
        ("time to first token", [each.first_ms for each in answered]),
        ("step", [each.step_ms for each in answered if each.tokens > 1]),
    ):
        for percent in (50, 95, 99) if values else ():
            yield row(f"{metric} p{percent}", "ms", [_percentile(values, percent)])
    yield row("output tokens", "1/s", [sum(each.tokens for each in answered) / seconds])
    yield row("prompt tokens", "1/s", [sum(each.prompt for each in answered) / seconds])
    prompts = sum(each.prompt for each in answered)
    yield row("cached", "%", [100 * sum(each.cached for each in answered) / max(prompts, 1)])
    yield row("time", "ms", [seconds * 1e3])


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
