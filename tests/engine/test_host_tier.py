# SPDX-License-Identifier: MIT
"""The host tier with real caches: what comes back is what was there, or it is computed again."""

import asyncio
import random
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from tests.engine.local_engine import LocalEngine, Outcome, Request
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.host_pool import ChecksumError, HostPool, host_layers
from tokenspeed_core.ipc.messages import Sampling
from tokenspeed_core.launch import Engine
from tokenspeed_core.rank import CacheSizeError, load_rank
from tokenspeed_core.runner import Runner
from tokenspeed_core.sdk import Client

VOCABULARY = 96
BLOCK_BYTES = 3 * 2 * 4 * 4 * 16 * 4  # layers, k and v, heads, tokens, head, float32


def config(model: Path, tp: int = 1) -> EngineConfig:
    return EngineConfig(
        model=str(model), dtype="fp32", block_size=4, num_blocks=60, max_running=8,
        max_step_tokens=32, threads=1, tp=tp, host_kv=400 * BLOCK_BYTES // tp,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runner(tiny_llama: Path) -> Runner:
    return load_rank(config(tiny_llama), 0, "")


def prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCABULARY) for _ in range(length)]


def one(engine: LocalEngine, tokens: list[int], **options: int) -> Outcome:
    found = engine.submit(Request(tokens, max_tokens=8, **options))  # type: ignore[arg-type]
    engine.run()
    return found


def turns(engine: LocalEngine) -> list[Outcome]:
    """Conversation A, others that push it off the device, and A's next turn."""
    first = one(engine, prompt(120, seed=1))
    others = [one(engine, prompt(200, seed=seed)) for seed in (2, 3)]
    again = one(engine, prompt(120, seed=1) + first.tokens + prompt(30, seed=4))
    return [first, *others, again]


def expected(runner: Runner) -> list[list[int]]:
    """The tokens of an engine without a host tier."""
    return [each.tokens for each in turns(LocalEngine(attrs.evolve(runner, host_blocks=0)))]


def test_a_conversation_returns_from_the_host(runner: Runner) -> None:
    assert runner.host_blocks == 400
    engine = LocalEngine(runner)
    found = turns(engine)
    assert [each.tokens for each in found] == expected(runner)
    assert found[-1].cached_tokens == 124
    stats = engine.scheduler.stats()
    assert stats["loaded_blocks"] > 20
    assert stats["failed_transfers"] == 0


class Corrupting(HostPool):
    """Loses a bit of every block that it stores."""

    def store(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        super().store(layer, sources, targets)
        self._host[layer][0].view(torch.int32)[targets, 0, 0, 0] ^= 1


class Broken(HostPool):
    """Fails in the last layer of each load, when the others have been read already."""

    def load(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        super().load(layer, sources, targets)
        if layer == self.num_layers - 1:
            raise RuntimeError("the copy engine is gone")


class Full(HostPool):
    """Cannot store."""

    def store(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        raise MemoryError("no host memory")


@pytest.mark.parametrize("pool", [Corrupting, Broken, Full])
def test_a_failure_is_computed_again_and_never_served(runner: Runner, pool: type[HostPool]) -> None:
    """Row 41 of the fault table: copy fails, no memory, checksum mismatch on load."""
    engine = LocalEngine(runner, host_pool=pool)
    found = turns(engine)
    assert [each.tokens for each in found] == expected(runner)
    stats = engine.scheduler.stats()
    assert stats["failed_transfers"] > 0
    assert stats["loaded_blocks"] == 0
    assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checksum_sees_every_changed_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    cache = torch.randn(8, 3, 5, 7).to(dtype)
    before = cache.clone()
    pool = HostPool([(cache,)], host_layers([(cache,)], 4))
    at = torch.tensor
    pool.store(0, at([2, 5]), at([3, 0]))
    cache[6] = 0
    pool.load(0, at([0]), at([6]))
    assert torch.equal(cache[6], before[5])
    bytes_ = pool._host[0][0].view(torch.uint8).view(4, -1)
    for _ in range(50):
        byte, bit = random.randrange(bytes_.shape[1]), 1 << random.randrange(8)
        bytes_[3, byte] ^= bit
        with pytest.raises(ChecksumError, match=r"host blocks \[3\] of layer 0"):
            pool.load(0, at([0, 3]), at([6, 7]))
        bytes_[3, byte] ^= bit
    pool.load(0, at([0, 3]), at([6, 7]))


@pytest.mark.parametrize("tp", [1, 2])
def test_real_processes_restore_from_the_host(tiny_llama: Path, runner: Runner, tp: int) -> None:
    async def talk(engine: Engine) -> list[list[int]]:
        async with Client(engine.run.path) as client:

            async def ask(tokens: list[int]) -> list[int]:
                stream = client.generate(tokens, max_tokens=8, sampling=Sampling())
                return [token async for delta in stream for token in delta.tokens]

            first = await ask(prompt(120, seed=1))
            others = [await ask(prompt(200, seed=seed)) for seed in (2, 3)]
            again = await ask(prompt(120, seed=1) + first + prompt(30, seed=4))
            while client.stats is None or client.stats.loaded_blocks == 0:
                await asyncio.sleep(0.05)
            assert client.stats.failed_transfers == 0
            assert client.stats.host_blocks == 400
            return [first, *others, again]

    with Engine.start(config(tiny_llama, tp)) as engine:
        engine.wait_ready(120)
        assert asyncio.run(asyncio.wait_for(talk(engine), 60)) == expected(runner)


def test_too_little_or_too_much_host_memory_is_refused(tiny_llama: Path) -> None:
    small = attrs.evolve(config(tiny_llama), host_kv=BLOCK_BYTES - 1)
    with pytest.raises(CacheSizeError, match=f"holds no block of 4 tokens .{BLOCK_BYTES} bytes"):
        load_rank(small, 0, "")
    with pytest.raises(CacheSizeError, match=r"more than the .* bytes that are free"):
        load_rank(attrs.evolve(small, host_kv="500TB"), 0, "")
