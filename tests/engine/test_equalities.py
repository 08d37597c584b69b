# SPDX-License-Identifier: MIT
"""What must not change a request's tokens: caching, chunking, preemption, company, plans ahead."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.local_engine import LocalEngine, Outcome, Request
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import FinishReason
from tokenspeed_core.ipc.shaping import Shaping
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner

VOCABULARY = 96
# The engine promises equal tokens up to float32 rounding; fixed examples keep ties out.
examples = settings(deadline=None, max_examples=4, derandomize=True)
seeds = st.integers(0, 2**32)
# each part depends on the tokens before: what is lost of them shows
SHAPING = Shaping(
    presence=0.4,
    frequency=0.3,
    repetition=1.2,
    min_tokens=7,
    ends=int32_column(range(0, VOCABULARY, 5)),
    bad_words=[int32_column([id, 5 * id]) for id in range(1, 9)],
)


@pytest.fixture(scope="module")
def runner(tiny_llama: Path) -> Runner:
    config = EngineConfig(
        model=str(tiny_llama), dtype="fp32", block_size=4, num_blocks=800, max_running=64, threads=1
    )
    return load_rank(config, 0, "")


def requests(seed: int, count: int, shared: int = 0) -> list[Request]:
    """Random requests, greedy and sampled, with `shared` leading tokens in common."""
    draw = random.Random(seed)
    prefix = [draw.randrange(VOCABULARY) for _ in range(shared)]
    return [
        Request(
            prompt=prefix + [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 60))],
            max_tokens=draw.randint(1, 40),
            temperature=draw.choice([0.0, 0.0, 0.8, 1.5]),
            top_k=draw.choice([0, 10]),
            top_p=draw.choice([1.0, 0.9]),
            seed=draw.randrange(2**64),
            stop_ids=[draw.randrange(VOCABULARY)],
            logprobs=draw.random() < 0.3,
            shaping=draw.choice([None, None, SHAPING]),
        )
        for _ in range(count)
    ]


def outcomes(runner: Runner, wanted: list[Request], **options: int | bool) -> list[Outcome]:
    engine = LocalEngine(runner, **options)  # type: ignore[arg-type]
    found = [engine.submit(request) for request in wanted]
    engine.run()
    stats = engine.scheduler.stats()
    assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
    return found


def alone(runner: Runner, wanted: list[Request]) -> list[Outcome]:
    """The reference: one request at a time, whole prompts, lock step, no cache."""
    return [
        outcomes(runner, [each], depth=1, max_step_tokens=4096, prefix_caching=False)[0]
        for each in wanted
    ]


def same(ours: list[Outcome], expected: list[Outcome]) -> None:
    assert [each.tokens for each in ours] == [each.tokens for each in expected]
    assert [each.finish for each in ours] == [each.finish for each in expected]
    for left, right in zip(ours, expected, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=2e-4)


@examples
@given(seeds)
def test_a_batch_of_16_equals_batches_of_one(runner: Runner, seed: int) -> None:
    wanted = requests(seed, 16)
    same(outcomes(runner, wanted, prefix_caching=False), alone(runner, wanted))


@examples
@given(seeds, st.sampled_from([3, 16, 64]))
def test_chunked_equals_whole(runner: Runner, seed: int, budget: int) -> None:
    wanted = requests(seed, 5)
    same(outcomes(runner, wanted, max_step_tokens=budget, max_slots=3), alone(runner, wanted))


@examples
@given(seeds)
def test_planning_ahead_equals_lock_step(runner: Runner, seed: int) -> None:
    wanted = requests(seed, 8)
    same(outcomes(runner, wanted, depth=2), outcomes(runner, wanted, depth=1))


@examples
@given(seeds)
def test_cached_equals_uncached(runner: Runner, seed: int) -> None:
    wanted = requests(seed, 6, shared=23)
    engine = LocalEngine(runner)
    first = [engine.submit(request) for request in wanted]
    engine.run()
    second = [engine.submit(request) for request in wanted]
    engine.run()
    expected = alone(runner, wanted)
    same(first, expected)
    same(second, expected)
    for request, outcome in zip(wanted, second, strict=True):
        assert outcome.cached_tokens == (len(request.prompt) - 1) // 4 * 4


@examples
@given(seeds)
def test_preempted_equals_not(runner: Runner, seed: int) -> None:
    draw = random.Random(seed)
    wanted = [
        Request(
            [draw.randrange(VOCABULARY) for _ in range(20)],
            max_tokens=30,
            shaping=SHAPING if index % 2 else None,
        )
        for index in range(8)
    ]
    engine = LocalEngine(runner, num_blocks=30)
    found = [engine.submit(request) for request in wanted]
    engine.run()
    assert engine.scheduler.stats()["preemptions"] > 0
    same(found, alone(runner, wanted))


def test_64_clients_with_one_new_prefix_compute_it_once(runner: Runner) -> None:
    draw = random.Random(1)
    prefix = [draw.randrange(VOCABULARY) for _ in range(200)]
    wanted = [Request([*prefix, i % VOCABULARY, 7], max_tokens=3) for i in range(64)]
    engine = LocalEngine(runner, max_step_tokens=128)
    found = [engine.submit(request) for request in wanted]
    engine.run()
    # 200 shared tokens once, two own tokens each, two decode steps each.
    assert engine.computed_tokens == 200 + 64 * 2 + 64 * 2
    assert [each.cached_tokens for each in found] == [0] + [200] * 63
    same(found, alone(runner, wanted))


def test_a_stop_id_ends_the_request_and_is_delivered(runner: Runner) -> None:
    prompt = list(range(20))
    free = outcomes(runner, [Request(prompt, max_tokens=30)])[0].tokens
    stop = free[5]
    ended = outcomes(runner, [Request(prompt, max_tokens=30, stop_ids=[stop])])[0]
    assert ended.tokens == free[: free.index(stop) + 1]
    assert ended.finish is FinishReason.STOP
