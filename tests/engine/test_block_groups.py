# SPDX-License-Identifier: MIT
"""Models whose layers keep different things: prefixes are shared, and no token changes."""

import asyncio
import random
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from tests.engine.local_engine import LocalEngine, Outcome, Request
from tests.engine.test_families import saved
from tests.engine.test_ranks import config
from tokenspeed_core.host_pool import HostPool
from tokenspeed_core.ipc.messages import GroupKind, Sampling
from tokenspeed_core.launch import Engine
from tokenspeed_core.rank import CacheSizeError, load_rank
from tokenspeed_core.runner import Runner
from tokenspeed_core.sdk import Client

KINDS = {
    "qwen3-next": [GroupKind.FULL, GroupKind.STATE],
    "gpt-oss": [GroupKind.FULL, GroupKind.WINDOW],
    "qwen3": [GroupKind.FULL, GroupKind.WINDOW],
}


@pytest.fixture(scope="module", params=KINDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    path: Path = tmp_path_factory.mktemp("model")
    saved(path, request.param)
    made = load_rank(attrs.evolve(config(path), threads=1), 0, "")
    assert [group.kind for group in made.groups] == KINDS[request.param]
    return made


def test_a_host_tier_without_room_for_a_parent_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "gpt-oss")
    with pytest.raises(CacheSizeError, match="holds no parent of its blocks"):
        load_rank(attrs.evolve(config(tmp_path), host_kv=8), 0, "")


def tokens(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(96) for _ in range(count)]


def alone(runner: Runner, request: Request) -> Outcome:
    """Run a request without a cache; it overwrites what other engines of the runner cached."""
    engine = LocalEngine(runner, depth=1, prefix_caching=False)
    found = engine.submit(request)
    engine.run()
    return found


def test_a_long_prefix_is_computed_once(runner: Runner) -> None:
    prefix = tokens(1, 150)
    wanted = [Request(prefix + tokens(seed, 9), max_tokens=20) for seed in (2, 3, 4)]
    engine = LocalEngine(runner, max_step_tokens=64)
    found = []
    for request in wanted:  # the second finds how far the prefix goes, the third begins there
        found.append(engine.submit(request))
        engine.run()
    assert found[0].cached_tokens == 0
    assert found[1].cached_tokens > 0
    assert found[2].cached_tokens == 150 // runner.block_size * runner.block_size
    for request, outcome in zip(wanted, found, strict=True):
        assert outcome.tokens == alone(runner, request).tokens


def test_a_conversation_goes_on_near_its_end(runner: Runner) -> None:
    history = tokens(5, 60)
    span = max(group.span for group in runner.groups)
    engine = LocalEngine(runner, max_step_tokens=64)
    turns = []
    for turn in range(4):
        request = Request(list(history), max_tokens=15)
        outcome = engine.submit(request)
        engine.run()
        if turn:
            assert len(history) - outcome.cached_tokens <= span + 25 + runner.block_size
        turns.append((request, outcome.tokens))
        history += outcome.tokens + tokens(turn, 10)
    for request, found in turns:
        assert found == alone(runner, request).tokens


def test_company_and_a_small_pool_change_no_token(runner: Runner) -> None:
    shared = tokens(6, 40)
    wanted = [
        Request(shared[: 8 * (seed % 6)] + tokens(seed, 30), max_tokens=30) for seed in range(6)
    ]
    needed = runner.groups.parents(110)
    engine = LocalEngine(runner, num_blocks=1 + 3 * needed, max_step_tokens=96)
    found = [engine.submit(request) for request in wanted]
    engine.run()
    for request, outcome in zip(wanted, found, strict=True):
        assert outcome.tokens == alone(runner, request).tokens


def test_blocks_behind_a_window_are_free_again(runner: Runner) -> None:
    if runner.groups.groups[-1].kind != GroupKind.WINDOW:
        pytest.skip("no windows")
    request = Request(tokens(7, 180), max_tokens=40)
    # The full group's blocks and a few of the window's: all of both would not fit.
    needed = 1 + runner.groups.parents(220) + runner.groups.first.blocks(64)
    assert needed < 2 * runner.groups.first.blocks(220)
    engine = LocalEngine(runner, num_blocks=needed, max_step_tokens=48)
    found = engine.submit(request)
    engine.run()
    assert found.tokens == alone(runner, request).tokens


def turns(engine: LocalEngine) -> list[Outcome]:
    """A conversation, others that push it off the device, and its next turn."""
    outcomes = []

    def ask(prompt: list[int]) -> list[int]:
        outcomes.append(engine.submit(Request(prompt, max_tokens=8)))
        engine.run()
        return prompt + outcomes[-1].tokens

    history = ask(tokens(1, 100))
    for seed in (2, 3, 4, 5):
        ask(tokens(seed, 150))
    ask(history + tokens(6, 10))
    return outcomes


def test_a_conversation_returns_from_the_host(runner: Runner) -> None:
    with_host = attrs.evolve(runner, host_blocks=200)
    few = 1 + runner.groups.parents(250) * 5 // 3
    engine = LocalEngine(with_host, num_blocks=few, max_step_tokens=64)
    found = turns(engine)
    plain = turns(LocalEngine(runner, num_blocks=few, max_step_tokens=64))
    assert [each.tokens for each in found] == [each.tokens for each in plain]
    assert plain[-1].cached_tokens == 0
    assert found[-1].cached_tokens >= 80
    stats = engine.scheduler.stats()
    assert stats["loaded_blocks"] > 0
    assert stats["failed_transfers"] == 0


class Corrupting(HostPool):
    """Loses a bit of every block that it stores."""

    def store(self, layer: int, sources: Tensor, targets: Tensor) -> None:
        super().store(layer, sources, targets)
        self._host[layer][0].view(torch.int32)[targets] ^= 1


def test_a_changed_block_of_any_group_is_never_served(runner: Runner) -> None:
    few = 1 + runner.groups.parents(250) * 5 // 3
    with_host = attrs.evolve(runner, host_blocks=200)
    engine = LocalEngine(with_host, num_blocks=few, max_step_tokens=64, host_pool=Corrupting)
    found = turns(engine)
    plain = turns(LocalEngine(runner, num_blocks=few, max_step_tokens=64))
    assert [each.tokens for each in found] == [each.tokens for each in plain]
    stats = engine.scheduler.stats()
    assert stats["failed_transfers"] > 0
    assert stats["loaded_blocks"] == 0


@pytest.mark.parametrize("family", ["gpt-oss", "qwen3-next"])
def test_real_processes_restore_all_groups(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    small = attrs.evolve(config(tmp_path), threads=1)
    made = load_rank(small, 0, "")
    few = 1 + made.groups.parents(250) * 5 // 3
    with_host = attrs.evolve(small, num_blocks=few, host_kv=200 * made.groups.parent_bytes)

    async def talk(engine: Engine) -> list[list[int]]:
        async with Client(engine.run.path) as client:

            async def ask(prompt: list[int]) -> list[int]:
                stream = client.generate(prompt, max_tokens=8, sampling=Sampling())
                return [token async for delta in stream for token in delta.tokens]

            first = await ask(tokens(1, 100))
            others = [await ask(tokens(seed, 150)) for seed in (2, 3, 4, 5)]
            again = await ask(tokens(1, 100) + first + tokens(6, 10))
            while client.stats is None or client.stats.loaded_blocks == 0:
                await asyncio.sleep(0.05)
            assert client.stats.failed_transfers == 0
            assert client.stats.host_blocks == 200
            return [first, *others, again]

    plain = turns(LocalEngine(made, num_blocks=few, max_step_tokens=32))
    with Engine.start(with_host) as engine:
        engine.wait_ready(120)
        found = asyncio.run(asyncio.wait_for(talk(engine), 60))
    assert found == [each.tokens for each in plain]
