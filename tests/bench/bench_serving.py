# SPDX-License-Identifier: MIT
"""Serving SmolLM2 in bf16 over HTTP, beside transformers in the same run.

    python tests/bench/bench_serving.py [--json] [--repeats N] [--case NAME]... [--threads N]

Ours answers streamed `/v1/completions`, with every process on this machine, this client included;
transformers generates in process with a static batch, so it pays for no HTTP and shares no prefix.
The two alternate; figures are medians, the spread is (max - min) / median of ours.

Cases: `decode` output tokens a second of one stream after its first token; `prefill_2k` prompt
tokens a second up to the first token; `concurrent_8` and `concurrent_32` output tokens a second of
all streams, each a shared prefix of 512 tokens, 16 tokens of its own and 64 generated, twice as
many requests as streams, the prefix warmed by one request.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import torch

from tokenspeed_core.checkpoint import open_checkpoint
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
from tokenspeed_core.model_source import resolve

MODEL = "smollm2"
DECODE_TOKENS = 128
PREFILL_TOKENS = 2048
PREFIX_TOKENS, OWN_TOKENS, OUT_TOKENS = 512, 16, 64
FIRST_TEXT_ID = 300  # ids below are special tokens and single bytes
VOCABULARY = 49152


class Prompts:
    """Random token ids, new ones each time, so that no cache helps where it should not."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def fresh(self, count: int) -> list[int]:
        return [self._random.randrange(FIRST_TEXT_ID, VOCABULARY) for _ in range(count)]

    def sharing_prefix(self, count: int) -> tuple[list[int], list[list[int]]]:
        prefix = self.fresh(PREFIX_TOKENS)
        return prefix, [prefix + self.fresh(OWN_TOKENS) for _ in range(count)]


class Served:
    """Our engine, reached over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=600)

    async def stream(self, prompt: list[int], max_tokens: int) -> tuple[float, float]:
        """Return seconds to the first event and to the last."""
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        first = 0.0
        usage: dict[str, Any] = {}
        async with self._client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                first = first or time.perf_counter() - start
                if '"choices":[]' in line:
                    usage = json.loads(line[6:])["usage"]
        assert usage["completion_tokens"] == max_tokens
        return first, time.perf_counter() - start

    async def decode(self, prompts: Prompts) -> float:
        first, last = await self.stream(prompts.fresh(16), DECODE_TOKENS)
        return (DECODE_TOKENS - 1) / (last - first)

    async def prefill(self, prompts: Prompts) -> float:
        first, _ = await self.stream(prompts.fresh(PREFILL_TOKENS), 1)
        return PREFILL_TOKENS / first

    async def concurrent(self, prompts: Prompts, streams: int) -> float:
        prefix, requests = prompts.sharing_prefix(2 * streams)
        await self.stream(prefix, 1)
        slots = asyncio.Semaphore(streams)

        async def one(prompt: list[int]) -> None:
            async with slots:
                await self.stream(prompt, OUT_TOKENS)

        start = time.perf_counter()
        await asyncio.gather(*map(one, requests))
        return len(requests) * OUT_TOKENS / (time.perf_counter() - start)


class Transformers:
    """The peer in process: the same weights, dense in bf16."""

    def __init__(self, threads: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(threads)
        with open_checkpoint(resolve(MODEL).path) as checkpoint:
            config = LlamaConfig(**checkpoint.config)
            weights = {name: checkpoint.read(name) for name in checkpoint.names}
        model = LlamaForCausalLM(config)
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        self._model: Any = model.to(torch.bfloat16).eval()

    def _generate(self, rows: list[list[int]], tokens: int) -> float:
        ids = torch.tensor(rows)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=2,
            )
        return time.perf_counter() - start

    def decode(self, prompts: Prompts) -> float:
        row = prompts.fresh(16)
        first = self._generate([row], 1)
        return (DECODE_TOKENS - 1) / (self._generate([row], DECODE_TOKENS) - first)

    def prefill(self, prompts: Prompts) -> float:
        return PREFILL_TOKENS / self._generate([prompts.fresh(PREFILL_TOKENS)], 1)

    def concurrent(self, prompts: Prompts, streams: int) -> float:
        _, requests = prompts.sharing_prefix(2 * streams)
        halves = requests[:streams], requests[streams:]
        seconds = sum(self._generate(half, OUT_TOKENS) for half in halves)
        return len(requests) * OUT_TOKENS / seconds


CASES: dict[str, tuple[str, Callable[[Any, Prompts], Any]]] = {
    "decode": ("output tokens", lambda engine, prompts: engine.decode(prompts)),
    "prefill_2k": ("prompt tokens", lambda engine, prompts: engine.prefill(prompts)),
    "concurrent_8": ("output tokens", lambda engine, prompts: engine.concurrent(prompts, 8)),
    "concurrent_32": ("output tokens", lambda engine, prompts: engine.concurrent(prompts, 32)),
}


async def measure(
    url: str, cases: list[str], repeats: int, threads: int
) -> AsyncIterator[dict[str, Any]]:
    served, peer = Served(url), Transformers(threads)
    for name in cases:
        metric, run = CASES[name]
        # the first run of each warms code and caches and is not counted
        await run(served, Prompts(0))
        run(peer, Prompts(0))
        ours, theirs = [], []
        for repeat in range(repeats):
            ours.append(await run(served, Prompts(2 * repeat + 1)))
            theirs.append(run(peer, Prompts(2 * repeat + 2)))
        median = statistics.median(ours)
        yield {
            "bench": "serving",
            "case": name,
            "metric": metric,
            "unit": "tok/s",
            "ours": round(median, 1),
            "peer": round(statistics.median(theirs), 1),
            "peer_name": "transformers",
            "spread": round((max(ours) - min(ours)) / median, 3),
        }


async def report(rows: AsyncIterator[dict[str, Any]], as_json: bool) -> None:
    async for row in rows:
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        ratio = row["ours"] / row["peer"]
        print(
            f"{row['case']:<14} {row['ours']:>8.1f} {row['unit']} of {row['metric']}, "
            f"{row['peer_name']} {row['peer']:.1f} ({ratio:.2f}x), spread {row['spread']:.0%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON row a line")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    arguments = parser.parse_args()
    config = EngineConfig(
        model=MODEL,
        served_model_name=MODEL,
        dtype="bf16",
        port=0,
        max_model_len=4096,
        num_blocks=2048,
        threads=arguments.threads,
    )
    with Engine.start(config, serve_http=True) as engine:
        engine.wait_ready(300)
        cases = arguments.case or list(CASES)
        rows = measure(engine.url, cases, arguments.repeats, arguments.threads)
        asyncio.run(report(rows, arguments.json))


if __name__ == "__main__":
    main()
