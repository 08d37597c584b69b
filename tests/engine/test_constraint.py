# SPDX-License-Identifier: MIT
"""Grammars on both executors: plans ahead, preemption and overrun change no constrained answer."""

import re
from pathlib import Path

import msgspec
import pytest

from tests.engine.local_engine import LocalEngine, Outcome, Request
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.device_executor import DeviceExecutor
from tokenspeed_core.executor import Executor, HostExecutor
from tokenspeed_core.grammar import grammar as form
from tokenspeed_core.grammar.backend import BACKENDS, backend
from tokenspeed_core.grammar.library import Library
from tokenspeed_core.grammar.vocabulary import Vocabulary
from tokenspeed_core.graphs import Graphs
from tokenspeed_core.ipc.codec import int32_column
from tokenspeed_core.ipc.messages import FinishReason
from tokenspeed_core.ipc.shaping import Shaping
from tokenspeed_core.rank import load_rank
from tokenspeed_core.runner import Runner

# The tiny model's tokens: the printable characters, and the end.
TOKENS = [bytes([byte]) for byte in range(0x20, 0x7F)] + [b""]
END = 95
VOCABULARY = Vocabulary(TOKENS, 96, [END])
PATTERN = "([a-d]{2}[0-9],){4}[x-z]{0,9}!"


@pytest.fixture(scope="module")
def runner(tiny_llama: Path) -> Runner:
    config = EngineConfig(
        model=str(tiny_llama), dtype="fp32", block_size=4, num_blocks=400, max_running=8, threads=1
    )
    return load_rank(config, 0, "")


@pytest.fixture(scope="module", params=BACKENDS)
def names(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A folder as frontends leave it, and the name of a grammar in it."""
    folder = tmp_path_factory.mktemp("grammars")
    (folder / "me").mkdir()
    (folder / "me" / "v0").write_bytes(msgspec.msgpack.encode(VOCABULARY))
    library = backend(request.param, VOCABULARY)
    (folder / "me" / f"{request.param}-v0-1").write_bytes(
        library.compile(dict(form.regex(PATTERN)))
    )
    return folder, f"me/{request.param}-v0-1"


def requests(name: str, **more: object) -> list[Request]:
    """Some that are constrained, greedy and drawn, beside some that are not."""
    shaping = Shaping(grammar=name, **more)
    return [
        Request(
            [5 + seed, 9, 17, 40],
            max_tokens=40,
            temperature=0.0 if seed % 3 == 0 else 1.0,
            seed=seed,
            stop_ids=[END],
            shaping=shaping if seed % 2 == 0 else None,
        )
        for seed in range(8)
    ]


def run(executor: Executor, runner: Runner, wanted: list[Request], **how: int) -> list[Outcome]:
    engine = LocalEngine(runner, executor=executor, **how)
    found = [engine.submit(request) for request in wanted]
    engine.run()
    if how.get("num_blocks"):
        assert engine.scheduler.stats()["preemptions"] > 0
    return found


def text(outcome: Outcome) -> str:
    assert outcome.finish is FinishReason.STOP
    return b"".join(TOKENS[token] for token in outcome.tokens).decode()


def test_answers_obey_and_nothing_else_changes_them(
    runner: Runner, names: tuple[Path, str]
) -> None:
    folder, name = names
    library = Library(folder)
    wanted = requests(name)
    alone = [
        run(HostExecutor(runner, None, library), runner, [each], depth=1)[0] for each in wanted
    ]
    for outcome in alone[::2]:
        assert re.fullmatch(PATTERN, text(outcome))
    tables = runner.new_tables()
    graphs = Graphs.capture(runner, tables, 40)
    for how in ({}, {"depth": 4}, {"num_blocks": 26}):
        for executor in (
            HostExecutor(runner, None, library),
            DeviceExecutor(runner, runner.new_tables(), None, None, library),
            DeviceExecutor(runner, tables, graphs, None, library),
        ):
            found = run(executor, runner, wanted, **how)
            assert [each.tokens for each in found] == [each.tokens for each in alone]
    library.close()


def test_a_request_goes_on_where_it_was_lost(runner: Runner, names: tuple[Path, str]) -> None:
    folder, name = names
    library = Library(folder)
    whole = requests(name)[0]
    (quiet,) = run(HostExecutor(runner, None, library), runner, [whole])
    for kept in (1, 5, 12):
        outputs = quiet.tokens[:kept]
        rest = Request(
            [*whole.prompt, *outputs],
            max_tokens=40 - kept,
            stop_ids=[END],
            shaping=Shaping(grammar=name, outputs=int32_column(outputs)),
        )
        (found,) = run(HostExecutor(runner, None, library), runner, [rest])
        assert outputs + found.tokens == quiet.tokens
    library.close()


def test_who_is_left_without_a_token_ends_alone(runner: Runner, names: tuple[Path, str]) -> None:
    folder, name = names
    library = Library(folder)
    banned = [int32_column([0x21 - 0x20]), int32_column([END])]  # neither ! nor the end
    for executor in (
        HostExecutor(runner, None, library),
        DeviceExecutor(runner, runner.new_tables(), None, None, library),
    ):
        found = run(executor, runner, requests(name, bad_words=banned))
        assert {each.finish for each in found[::2]} == {FinishReason.NO_TOKEN}
        assert FinishReason.NO_TOKEN not in {each.finish for each in found[1::2]}
    lost = [Request([1, 2], shaping=Shaping(grammar="me/xgrammar-v0-2"))]
    (gone,) = run(HostExecutor(runner, None, library), runner, lost)
    assert gone.finish is FinishReason.NO_TOKEN
    library.close()
