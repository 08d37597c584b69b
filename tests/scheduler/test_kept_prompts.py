# SPDX-License-Identifier: MIT
"""Prompts that the scheduler keeps, so that a turn sends what is new: nothing else is different."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from scripted_peers import VOCAB, Frontend, Run, start_worker
from simulated_worker import expected_tokens

from tokenspeed_core.ipc.codec import int32_column, read_column
from tokenspeed_core.ipc.messages import RefusalCode, Sampling, Submit, Welcome
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.sdk import Client, RejectedError
from tokenspeed_core.sent_prompts import MIN_BYTES, SentPrompts

MAX_LEN = 16_000


def test_a_prompt_goes_on_from_the_one_that_is_kept(tmp_path: Path, workers: list[Any]) -> None:
    with Run(tmp_path) as run:
        frontend = Frontend(run)
        workers.append(start_worker(run))
        assert frontend.welcome is not None
        most = frontend.welcome.kept_prompts
        assert most > 1
        whole = list(range(1, 40))
        frontend.submit(1, whole, 4, keep=most)
        frontend.submit(2, [7, 8], 4, keep=most, kept_tokens=30)
        frontend.submit(3, [9], 4, keep=most, kept_tokens=32)
        frontend.submit(4, [5, 6], 4, keep=1)  # another number
        frontend.submit(5, [], 4, keep=1, kept_tokens=2)  # the same again
        frontend.until(lambda: len(frontend.reasons) == 5)
        asked = {1: whole, 2: [*whole[:30], 7, 8], 3: [*whole[:30], 7, 8, 9], 4: [5, 6], 5: [5, 6]}
        for id, prompt in asked.items():
            assert frontend.tokens[id] == expected_tokens(prompt, 4, VOCAB)
        frontend.submit(6, [VOCAB], 1, keep=2)  # refused for what it is, and kept all the same
        frontend.submit(7, [3], 1, keep=2, kept_tokens=1)
        frontend.until(lambda: len(frontend.rejections) == 2)
        assert set(frontend.rejections.values()) == {RefusalCode.TOKEN_ID}


@pytest.mark.parametrize(
    "fields",
    [
        {"kept_tokens": 1},
        {"keep": -1},
        {"keep": 65},
        {"keep": 2**62, "kept_tokens": 1},
        {"keep": 2, "kept_tokens": 1},
        {"keep": 1, "kept_tokens": 4},
        {"keep": 1, "kept_tokens": -1},
        {"keep": 1, "kept_tokens": 2**62},
    ],
)
def test_who_names_what_is_not_there_says_hello(tmp_path: Path, fields: dict[str, int]) -> None:
    with Run(tmp_path) as run:
        frontend, other = Frontend(run), Frontend(run)
        frontend.submit(1, [1, 2, 3], 1, keep=1)
        frontend.submit(2, [4], 1, **fields)
        frontend.until(lambda: frontend.hellos_required == 1)
        other.submit(1, [4], 1, keep=1, kept_tokens=1)  # what another keeps is not there
        other.until(lambda: other.hellos_required == 1)
        frontend.send(run.hello())
        frontend.submit(3, [4], 1, keep=1, kept_tokens=1)  # nor what it kept before a Hello
        frontend.until(lambda: frontend.hellos_required == 2)
        frontend.submit(4, [1] * 401, 1, keep=1)  # longer than any prompt
        frontend.until(lambda: frontend.hellos_required == 3)
        assert run.process.poll() is None


async def test_a_client_keeps_prompts_through_all_that_happens(workers: list[Any]) -> None:
    at = RunDirectory.create(Path("/tmp"))
    settings = {
        "token": at.token,
        "frontend_endpoint": at.frontend_endpoint,
        "max_model_len": MAX_LEN,
        "max_step_tokens": 4096,
    }

    async def answer(prompt: list[int]) -> list[int]:
        return [t async for delta in client.generate(prompt, max_tokens=5) for t in delta.tokens]

    async def turn(prompt: list[int]) -> list[int]:
        tokens = await answer(prompt)
        assert tokens == expected_tokens(prompt, 5, VOCAB)
        return [*prompt, *tokens, 1, 2, 3]

    draw = random.Random(1)
    first, second = ([draw.randrange(VOCAB) for _ in range(3000)] for _ in range(2))
    try:
        with Run(at.path, **settings) as run:
            workers.append(start_worker(run, num_blocks=8000))
            async with Client(at) as client:
                for _ in range(2):
                    first, second = await turn(first), await turn(second)
                await turn([*first[:-3], 9, 9])  # another branch
                first = await turn(first)
                with pytest.raises(RejectedError):
                    await answer([*first, *[1] * MAX_LEN])
                run.process.kill()
                run.process.wait(10)
                while client.is_ready:
                    await asyncio.sleep(0.01)
                with Run(at.path, **settings) as again:
                    workers.append(start_worker(again, num_blocks=8000))
                    await client.ready(30)
                    for _ in range(2):
                        first, second = await turn(first), await turn(second)
    finally:
        at.remove()


def test_what_is_sent_is_what_is_meant() -> None:
    draw = random.Random(7)
    kept: dict[int, list[int]] = {}
    sent = 0

    def receive(message: Submit) -> bool:
        nonlocal sent
        if draw.random() < 0.1:
            return False  # no room in the queue
        prompt = read_column("i", message.prompt).tolist()
        sent += len(prompt)
        if message.keep:
            assert 1 <= message.keep <= 8
            prompt = [*kept.get(message.keep, [])[: message.kept_tokens], *prompt]
            assert len(prompt) <= MAX_LEN
            kept[message.keep] = prompt
        assert prompt == whole
        return True

    prompts = SentPrompts()
    total = 0
    conversations: list[list[int]] = [[] for _ in range(6)]
    for step in range(600):
        if step % 150 == 0:  # a new connection
            kept.clear()
            prompts.forget()
        prompts.greet(Welcome(2, 1, True, MAX_LEN, VOCAB, 16, 100, 8))
        number = draw.randrange(len(conversations))
        before = conversations[number]
        kind = draw.random()
        if len(before) > MAX_LEN or kind < 0.05:
            before = []
        elif kind < 0.2:
            before = before[: draw.randrange(len(before) + 1)]  # edited
        elif kind < 0.3 and before:
            before[-1] ^= 1  # its end is told otherwise
        more = 3000 if not before else draw.choice([1, 30, 700, 3000])
        whole = before + [draw.randrange(VOCAB) for _ in range(more)]
        conversations[number] = list(whole)
        message = Submit(step, int32_column(whole), 1, Sampling())
        if prompts.send(message, receive):
            total += len(whole)
    assert sent < total / 2
    short = Submit(0, bytes(MIN_BYTES - 4), 1, Sampling())
    seen: list[Submit] = []
    assert prompts.send(short, lambda message: seen.append(message) is None)
    assert seen == [short]
