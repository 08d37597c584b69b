# SPDX-License-Identifier: MIT
"""What a subscriber rebuilds from KV events is what the core has."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq
from kv_index import KvIndex
from replica import Replica
from scripted_peers import BLOCK_SIZE, Frontend, Run, start_worker
from simulated_groups import Group

from tokenspeed_core.ipc.codec import WireError
from tokenspeed_core.ipc.kv_events import KvEventBatch, KvSubscriber, replay_endpoint
from tokenspeed_core.ipc.messages import GroupKind

STORED, REMOVED, CLEARED = range(3)


FULL = Group(GroupKind.FULL, 4, 0, 2)
WINDOW = Group(GroupKind.WINDOW, 4, 8, 1)
STATE = Group(GroupKind.STATE, 4, 8, 1)


@pytest.mark.parametrize(
    ("host_blocks", "groups"), [(0, ()), (24, ()), (0, (FULL, WINDOW)), (24, (FULL, STATE))]
)
def test_a_log_of_the_core_adds_up_to_its_index(
    host_blocks: int, groups: tuple[Group, ...]
) -> None:
    replica = Replica(num_blocks=40, host_blocks=host_blocks, groups=groups)
    core = replica.core
    core.log_cache()
    replica.end_epoch()
    replica.begin_epoch()
    assert [row[0] for row in core.take_cache_log()] == [CLEARED]
    draw = random.Random(7)
    index: dict[bytes, tuple[bytes, list[int]]] = {}
    removed = 0

    def follow() -> None:
        nonlocal removed
        for kind, block, parent, tokens in core.take_cache_log():
            if kind == STORED:
                assert block not in index
                index[block] = (parent, tokens)
            else:
                assert kind == REMOVED
                del index[block]
                removed += 1
        found = core.cached_blocks()
        assert {block: (parent, tokens) for _, block, parent, tokens in found} == index
        seen: set[bytes] = set()
        for _, block, parent, _ in found:
            assert parent in seen or parent not in index, "a block stands before its parent"
            seen.add(block)

    for _ in range(60):
        head = [draw.randrange(3)] * draw.randrange(1, 40)
        prompt = head + [draw.randrange(50) for _ in range(draw.randrange(1, 60))]
        replica.submit(prompt, max_tokens=draw.randrange(1, 20), seed=draw.randrange(9))
        for _ in range(draw.randrange(6)):
            replica.plan() or replica.retire()
            follow()
    replica.run()
    follow()
    assert removed > 50
    assert len(index) > 10
    replica.end_epoch()
    assert [row[0] for row in core.take_cache_log()][-1] == CLEARED
    assert core.cached_blocks() == []


def test_a_log_that_is_off_holds_nothing() -> None:
    replica = Replica()
    replica.submit(list(range(30)))
    replica.run()
    assert replica.core.take_cache_log() == []


@pytest.fixture
async def fed(tmp_path: Path) -> AsyncIterator[Run]:
    endpoint = f"ipc://{tmp_path}/kv"
    run = Run(
        tmp_path, kv_events=endpoint, kv_replay=replay_endpoint(endpoint), kv_topic="kv@pod@model"
    )
    worker = start_worker(run, num_blocks=60)
    with run:
        yield run
        worker.kill()
        worker.wait()


async def serve(frontend: Frontend, first: int, prompts: list[list[int]]) -> None:
    """Answer the prompts one behind the other."""
    for number, prompt in enumerate(prompts, first):
        frontend.submit(number, prompt, 5)
        await asyncio.to_thread(frontend.until, lambda n=number: n in frontend.reasons)
        assert frontend.reasons[number] == 2


async def follow(
    index: KvIndex, stream: AsyncIterator[KvEventBatch], is_enough: Callable[[], bool]
) -> None:
    async with asyncio.timeout(20):
        while not is_enough() or index.clears == 0:
            index.apply(await anext(stream))


def idle_blocks(frontend: Frontend) -> int:
    """Return the cached blocks when nothing runs: then every findable one is among them."""
    frontend.stats = None
    frontend.until(
        lambda: (
            frontend.stats is not None
            and frontend.stats.running == 0
            and frontend.stats.active_blocks == 0
            and frontend.stats.in_flight_steps == 0
        )
    )
    assert frontend.stats is not None
    return frontend.stats.cached_blocks


async def test_subscribers_early_and_late_have_the_cores_index(fed: Run) -> None:
    frontend = Frontend(fed)
    draw = random.Random(3)
    shared = [draw.randrange(900) for _ in range(40)]
    prompts = [shared[: draw.randrange(40)] + [draw.randrange(900) for _ in range(50)]] * 2
    prompts += [shared + [draw.randrange(900) for _ in range(60)] for _ in range(12)]
    async with KvSubscriber(fed.config.kv_events) as early_source:
        early, early_stream = KvIndex(), aiter(early_source)
        await serve(frontend, 1, prompts[:4])
        cached = idle_blocks(frontend)
        await follow(early, early_stream, lambda: len(early.blocks) == cached)
        await serve(frontend, 100, prompts[4:])  # evicts: 59 blocks hold 236 tokens
        at_end = idle_blocks(frontend)
        async with KvSubscriber(fed.config.kv_events) as late_source:
            late = KvIndex()
            await follow(late, aiter(late_source), lambda: len(late.blocks) == at_end)
        await follow(early, early_stream, lambda: early.blocks == late.blocks)
    # what a router would say of a prompt is what the core then says of it
    for number, prompt in enumerate([[*shared, 1, 2, 3], prompts[-1], [7] * 30], 200):
        predicted = early.cached(prompt[: len(prompt) - 1], BLOCK_SIZE)
        await serve(frontend, number, [prompt])
        assert frontend.cached[number] == predicted


async def test_frames_are_topic_sequence_payload_and_gaps_are_told_again(fed: Run) -> None:
    frontend = Frontend(fed)
    await serve(frontend, 1, [[n] * 20 for n in range(5)])
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(fed.config.kv_replay)

    def told_from(start: int) -> list[tuple[int, bytes]]:
        socket.send_multipart([b"", start.to_bytes(8, "big")])
        found = []
        while True:
            assert socket.poll(5000)
            empty, sequence, payload = socket.recv_multipart()
            assert empty == b""
            if sequence == b"\xff" * 8:
                assert payload == b""
                return found
            found.append((int.from_bytes(sequence, "big"), payload))

    snapshot = told_from(0)  # older than the process: one batch that stands for all
    assert len(snapshot) == 1
    last = snapshot[0][0]
    recent = told_from(last - 2)
    assert [sequence for sequence, _ in recent] == [last - 2, last - 1, last]
    assert told_from(last + 1) == []
    for garbage in ([b"", b"short"], [b"x" * 60], [b"", b"8 bytes!", b"more"]):
        socket.send_multipart(garbage)
    assert [sequence for sequence, _ in told_from(last)] == [last]
    live = zmq.Context.instance().socket(zmq.SUB)
    live.linger = 0
    live.subscribe(b"kv@pod")
    live.connect(fed.config.kv_events)
    number = 10
    while not live.poll(200):  # until the subscription has arrived
        await serve(frontend, number, [[number] * 20])
        number += 1
    topic, sequence, _ = live.recv_multipart()
    assert topic == b"kv@pod@model"
    assert int.from_bytes(sequence, "big") > last
    socket.close()
    live.close()


async def test_with_a_curve_key_only_who_knows_it_hears(tmp_path: Path) -> None:
    import zmq.auth

    endpoint = f"ipc://{tmp_path}/kv"
    public, secret = zmq.auth.create_certificates(tmp_path, "engine")
    key = zmq.auth.load_certificate(secret)[1]
    assert key is not None
    run = Run(
        tmp_path,
        kv_events=endpoint,
        kv_replay=replay_endpoint(endpoint),
        kv_curve_secret=key.decode(),
    )
    worker = start_worker(run)
    with run:
        frontend = Frontend(run)
        await serve(frontend, 1, [list(range(30))])
        async with KvSubscriber(endpoint, public) as source:
            index = KvIndex()
            cached = idle_blocks(frontend)
            await follow(index, aiter(source), lambda: len(index.blocks) == cached)
        stranger = zmq.Context.instance().socket(zmq.DEALER)
        stranger.linger = 0
        stranger.connect(run.config.kv_replay)
        stranger.send_multipart([b"", bytes(8)])
        assert not stranger.poll(500)
        stranger.close()
        worker.kill()
        worker.wait()


def test_an_endpoint_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/nowhere/kv"
    run = Run(tmp_path, kv_events=endpoint, kv_replay=replay_endpoint(endpoint))
    assert run.process.wait(10) == 2
    assert f"cannot bind {endpoint}" in run.log.read_text()


def test_the_replay_endpoint_lies_beside() -> None:
    assert replay_endpoint("ipc:///run/kv") == "ipc:///run/kv-replay"
    assert replay_endpoint("tcp://10.0.0.1:5557") == "tcp://10.0.0.1:5558"


def test_what_is_no_batch_is_a_wire_error() -> None:
    from tokenspeed_core.ipc.kv_events import _decoded

    with pytest.raises(WireError, match="no batch of KV events"):
        _decoded(b"\x93\x01\x02")
