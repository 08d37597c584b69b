# SPDX-License-Identifier: MIT
import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontend.scripted_scheduler import ScriptedScheduler
from tokenspeed_core.ipc import channels
from tokenspeed_core.ipc.codec import read_column
from tokenspeed_core.ipc.messages import (
    MAX_FRAME_BYTES,
    WIRE_VERSION,
    Abort,
    FinishReason,
    Heartbeat,
    Hello,
    RefusalCode,
    Refused,
    Rejected,
    SessionHint,
    Submit,
    TokenDeltas,
    Welcome,
)
from tokenspeed_core.ipc.run_directory import RunDirectory, RunDirectoryError
from tokenspeed_core.sdk import (
    Client,
    EngineLostError,
    NoTokenError,
    RefusedError,
    RejectedError,
    RequestFailedError,
    StalledReaderError,
)
from tokenspeed_core.urgency import Urgency


async def tokens_of(client: Client, prompt: list[int], **options: int) -> list[int]:
    deltas = [delta async for delta in client.generate(prompt, **options)]
    return [token for delta in deltas for token in delta.tokens]


async def eventually(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_importing_the_sdk_does_not_import_torch() -> None:
    code = "import sys, tokenspeed_core.sdk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_tokens_arrive_in_order_and_end_with_a_reason(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        deltas = [d async for d in client.generate([5, 6, 7], max_tokens=7)]
    assert [t for d in deltas for t in d.tokens] == [5, 6, 7, 5, 6, 7, 5]
    assert [d.finish_reason for d in deltas[:-1]] == [FinishReason.NONE] * (len(deltas) - 1)
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert scheduler.hellos[0].token == scheduler.run.token


async def test_many_requests_share_one_connection(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        answers = await asyncio.gather(
            *(tokens_of(client, [n], max_tokens=n) for n in range(1, 65))
        )
    assert answers == [[n] * n for n in range(1, 65)]
    ids = [submit.request_id for submit in scheduler.submits]
    assert ids == list(range(1, 65))


async def test_leaving_a_stream_early_aborts_the_request(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        async for _ in client.generate([1], max_tokens=8000):
            break
        await eventually(lambda: scheduler.aborts and not scheduler.running)
        assert client.in_flight == 0


async def test_abort_is_idempotent_and_ends_the_stream(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=8000)
        await anext(stream)
        stream.abort(kept=1)
        stream.abort()
        assert [delta async for delta in stream] == []
        await eventually(lambda: scheduler.aborts)
        assert [(a.request_id, a.kept) for a in scheduler.aborts] == [(stream.request_id, 1)]


async def test_closing_aborts_what_is_in_flight(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=8000)
        await anext(stream)
    await eventually(lambda: not scheduler.running)
    with pytest.raises(EngineLostError, match="closed"):
        await anext(stream)


async def test_a_dead_scheduler_fails_requests_and_a_new_one_serves_again(
    scheduler: ScriptedScheduler,
) -> None:
    async with Client(scheduler.run, resume_s=0) as client:
        stream = client.submit([1], max_tokens=8000)
        await anext(stream)
        scheduler.stop()
        with pytest.raises(EngineLostError, match="may be sent again"):
            async for _ in stream:
                pass
        await eventually(lambda: not client.is_ready)
        with pytest.raises(EngineLostError):
            client.submit([1], max_tokens=1)
        scheduler.start()
        await client.ready(10)
        assert await tokens_of(client, [9], max_tokens=2) == [9, 9]
        assert len(scheduler.hellos) == 2


async def test_a_scheduler_that_forgot_us_fails_requests_and_gets_a_new_hello(
    scheduler: ScriptedScheduler,
) -> None:
    async with Client(scheduler.run, resume_s=0) as client:
        stream = client.submit([1], max_tokens=8000)
        await anext(stream)
        scheduler.knows_peers = False  # found out at our next heartbeat
        with pytest.raises(EngineLostError, match="restarted"):
            async for _ in stream:
                pass
        await eventually(lambda: client.is_ready)
        assert await tokens_of(client, [9], max_tokens=2) == [9, 9]


async def test_a_wrong_session_token_is_refused(scheduler: ScriptedScheduler) -> None:
    forged = type("Forged", (RunDirectory,), {"token": property(lambda _: bytes(16))})
    client = Client(forged(scheduler.run.path))
    with pytest.raises(RefusedError) as caught:
        await client.connect()
    assert caught.value.code is RefusalCode.TOKEN


async def test_nobody_there_is_one_clear_error(run: RunDirectory) -> None:
    with pytest.raises(EngineLostError, match="no scheduler was ready"):
        await Client(run, connect_timeout_s=0.2).connect()


def test_a_directory_without_an_engine_is_refused(tmp_path: object) -> None:
    with pytest.raises(RunDirectoryError, match="token"):
        Client(str(tmp_path))


@pytest.mark.parametrize("code", [RefusalCode.QUEUE_FULL, RefusalCode.TOO_LONG])
async def test_a_rejection_carries_its_code(
    scheduler: ScriptedScheduler, code: RefusalCode
) -> None:
    scheduler.reject = code
    async with Client(scheduler.run) as client:
        with pytest.raises(RejectedError) as caught:
            await tokens_of(client, [1], max_tokens=1)
    assert caught.value.code is code
    assert caught.value.retryable == (code is RefusalCode.QUEUE_FULL)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (FinishReason.WORKER_LOST, EngineLostError),
        (FinishReason.NUMERIC, RequestFailedError),
        (FinishReason.NO_TOKEN, NoTokenError),
    ],
)
async def test_failures_inside_the_engine_are_errors(
    scheduler: ScriptedScheduler, reason: FinishReason, error: type[Exception]
) -> None:
    scheduler.finish = reason
    async with Client(scheduler.run, resume_s=0) as client:
        with pytest.raises(error):
            await tokens_of(client, [1], max_tokens=10)


async def test_a_lost_request_goes_on_behind_its_tokens(scheduler: ScriptedScheduler) -> None:
    def by_position(submit: Submit) -> list[int]:
        before = len(submit.prompt) // 4
        return [1 + at % 2 for at in range(before, before + submit.max_tokens)]

    scheduler.script = by_position
    async with Client(scheduler.run) as client:
        stream = client.submit([1, 2], max_tokens=400, urgency=Urgency(deadline_ms=60_000))
        tokens = (await anext(stream)).tokens
        scheduler.stop()
        await eventually(lambda: not client.is_ready)
        assert client.in_flight == 1
        scheduler.start()
        deltas = [delta async for delta in stream]
        tokens += [token for delta in deltas for token in delta.tokens]
        assert tokens == [1, 2] * 200
        assert {delta.cached_tokens for delta in deltas} == {0}
        first, second = scheduler.submits
        before = read_column("i", second.prompt).tolist()
        assert before == [1, 2, *tokens[: len(before) - 2]]
        assert second.max_tokens == 400 - (len(before) - 2)
        assert second.request_id != first.request_id
        assert 0 < second.deadline_ms < first.deadline_ms


async def test_a_request_that_ends_every_engine_is_given_up(scheduler: ScriptedScheduler) -> None:
    scheduler.finish, scheduler.finish_after = FinishReason.WORKER_LOST, 0
    async with Client(scheduler.run) as client:
        with pytest.raises(EngineLostError, match="the workers died"):
            await tokens_of(client, [1], max_tokens=10)
    assert len(scheduler.submits) == 3


async def test_one_of_many_is_found_to_end_every_engine(scheduler: ScriptedScheduler) -> None:
    deaths = 0

    def dies_of_four(submit: Submit) -> list[int]:
        nonlocal deaths
        if read_column("i", submit.prompt)[0] == 4:
            deaths += 1
            scheduler.step_s = 1e9
            scheduler._stop.set()
        return [7] * submit.max_tokens

    scheduler.script = dies_of_four
    async with Client(scheduler.run) as client:
        streams = [client.submit([prompt], max_tokens=2) for prompt in range(1, 9)]
        for number in range(1, 4):
            await eventually(lambda number=number: deaths == number)
            scheduler.stop()
            scheduler.step_s = 0.0005
            scheduler.start()
        with pytest.raises(EngineLostError):
            await anext(streams.pop(3))
        for stream in streams:
            assert [token for delta in [d async for d in stream] for token in delta.tokens] == [
                7,
                7,
            ]
    assert deaths == 3


async def test_a_request_that_no_worker_was_there_for_is_not_blamed(
    scheduler: ScriptedScheduler,
) -> None:
    scheduler.is_ready, scheduler.step_s = False, 1e9
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=3)
        for deaths in range(5):
            await eventually(lambda deaths=deaths: len(scheduler.submits) == deaths + 1)
            scheduler.stop()
            scheduler.start()
        scheduler.is_ready, scheduler.step_s = True, 0.0005
        assert [token for delta in [d async for d in stream] for token in delta.tokens] == [1] * 3


async def test_a_resumed_request_waits_for_a_place(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=300)
        await anext(stream)
        scheduler.reject = RefusalCode.QUEUE_FULL
        scheduler.stop()
        scheduler.start()
        await eventually(lambda: len(scheduler.submits) > 2)
        scheduler.reject = None
        async for delta in stream:
            last = delta
        assert last.finish_reason is FinishReason.LENGTH


async def test_nothing_is_resumed_after_the_last_engine(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=8000)
        await anext(stream)
        scheduler.stop()
        scheduler.run.remove()
        with pytest.raises(EngineLostError, match="stopped"):
            async for _ in stream:
                pass


async def test_a_reader_that_stalls_is_aborted(scheduler: ScriptedScheduler) -> None:
    scheduler.tokens_in_step = 16
    async with Client(scheduler.run, max_unread_tokens=64) as client:
        stream = client.submit([1], max_tokens=8000)
        other = client.submit([2], max_tokens=3)
        await eventually(lambda: scheduler.aborts)
        with pytest.raises(StalledReaderError):
            await anext(stream)
        assert [t for d in [d async for d in other] for t in d.tokens] == [2, 2, 2]


@pytest.mark.parametrize("id", [2**31, -(2**31) - 1])
async def test_an_id_beyond_32_bits_never_reaches_the_wire(
    scheduler: ScriptedScheduler, id: int
) -> None:
    async with Client(scheduler.run) as client:
        with pytest.raises(RejectedError, match="32 bits"):
            client.submit([id], max_tokens=1)
        assert client.in_flight == 0


async def test_a_frozen_scheduler_shows_as_silence(scheduler: ScriptedScheduler) -> None:
    async with Client(scheduler.run) as client:
        await eventually(lambda: client.stats is not None)
        scheduler.is_frozen = True
        await eventually(lambda: client.unheard_s > 0.3)
        scheduler.is_frozen = False
        await eventually(lambda: client.unheard_s < 0.3)
        assert await tokens_of(client, [3], max_tokens=1) == [3]


async def test_work_without_steps_shows_as_a_stall(scheduler: ScriptedScheduler) -> None:
    scheduler.step_s = 0.4
    async with Client(scheduler.run) as client:
        stream = client.submit([1], max_tokens=8000)
        await eventually(lambda: client.stalled_s > 0.1)
        stream.abort()
        await eventually(lambda: client.stats.running == 0 and client.stalled_s < 0.1)


def test_the_protocol_pages_example_runs(scheduler: ScriptedScheduler) -> None:
    page = Path(channels.__file__).with_name("README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(scheduler.run.path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    tokens = [token for line in done.stdout.splitlines() for token in json.loads(line)]
    assert tokens == [504, 2112] * 4
    scheduler.reject = RefusalCode.QUEUE_FULL
    done = subprocess.run(
        [sys.executable, "-c", code, str(scheduler.run.path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "queue_full\n")


def test_the_protocol_page_names_every_message_field_and_code() -> None:
    page = Path(channels.__file__).with_name("README.md").read_text()
    for message in (
        Hello,
        Heartbeat,
        Submit,
        Abort,
        SessionHint,
        Welcome,
        Refused,
        Rejected,
        TokenDeltas,
    ):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{message.__name__}`"))
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[2] == str(message.__struct_config__.tag)
        expected = list(message.__struct_fields__)
        if message is Hello:  # the fields behind the name are a worker's
            expected = expected[: expected.index("name") + 1]
        places = [cells[3].index(name) for name in expected]
        assert places == sorted(places), message
    assert f"ZMQ_MAXMSGSIZE={MAX_FRAME_BYTES}" in page
    for code in RefusalCode:
        assert re.search(rf"\b{code.value} \w", page.partition("Codes of")[2])
    assert f"version = {WIRE_VERSION}" in page
