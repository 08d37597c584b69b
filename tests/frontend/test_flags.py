# SPDX-License-Identifier: MIT
"""Every option of the engine changes something: `SHOWN` names the tests that show what."""

import ast
import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import zmq.auth

from tests.engine.embedders import save_tiny_embedder
from tests.frontend.conftest import served
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_api_process import free_port
from tests.frontend.test_tools import TEMPLATE, TOOLS
from tokenspeed_core.api_processes import ApiProcesses
from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.chat_template import Rendering
from tokenspeed_core.config import FIELDS, EngineConfig, write_config
from tokenspeed_core.engine_watch import WatchLimits
from tokenspeed_core.ipc.remote_engine import CurveKeys
from tokenspeed_core.ipc.run_directory import RunDirectory
from tokenspeed_core.launch import Engine
from tokenspeed_core.pooling import EmbeddingError
from tokenspeed_core.served_model import ServedModel
from tokenspeed_core.server.access import Access

TESTS = Path(__file__).parents[1]

ACCESS, API = "frontend/test_access.py", "frontend/test_api_process.py"
FLAGS, LOG = "frontend/test_flags.py", "frontend/test_request_log.py"
OBSERVED, RANK = "frontend/test_observability.py", "engine/test_rank.py"
CORE, FLOAT8 = "scheduler/test_scheduler.py", "engine/test_float8.py"

# Each test compares what is done with and without the option, or with two values of it.
SHOWN: dict[str, tuple[str, ...]] = {
    "model": (f"{FLAGS}::test_a_model_is_served_by_its_name",),
    "served_model_name": (f"{FLAGS}::test_a_model_is_served_by_its_name",),
    "dtype": (f"{RANK}::test_weights_have_the_type_that_is_asked_for",),
    "weights": (f"{FLOAT8}::test_smollm2_answers_nearly_as_in_full_precision",),
    "load_format": (f"{RANK}::test_dummy_weights_need_no_checkpoint",),
    "max_model_len": (
        f"{CORE}::test_each_setting_has_its_effect",
        f"{RANK}::test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory",
    ),
    "family": ("models/test_check.py::test_the_model_of_the_guide_is_served",),
    "matryoshka": (f"{FLAGS}::test_an_embedder_gives_parts_if_it_is_told_to",),
    "plan_cache": (f"{RANK}::test_plans_are_kept_where_they_are_asked_for",),
    "host": (f"{FLAGS}::test_processes_listen_where_they_are_told_to",),
    "port": (f"{FLAGS}::test_processes_listen_where_they_are_told_to",),
    "api_key": (f"{FLAGS}::test_keys_close_what_is_not_opened",),
    "api_keys": (f"{FLAGS}::test_keys_close_what_is_not_opened",),
    "cache_per_key": (f"{ACCESS}::test_sessions_and_salts_belong_to_a_key",),
    "open_metrics": (f"{FLAGS}::test_keys_close_what_is_not_opened",),
    "api_processes": (
        f"{FLAGS}::test_processes_listen_where_they_are_told_to",
        "launch/test_api_processes.py::test_one_dies_and_the_other_serves_on",
    ),
    "max_connections": (f"{API}::test_what_is_logged_and_how_many_connect_are_settings",),
    "stored_responses": (f"{FLAGS}::test_responses_are_kept_as_many_and_as_long_as_is_asked",),
    "response_ttl_s": (f"{FLAGS}::test_responses_are_kept_as_many_and_as_long_as_is_asked",),
    "ssl_certfile": (f"{ACCESS}::test_bad_certificates_are_one_line",),
    "ssl_keyfile": (f"{ACCESS}::test_bad_certificates_are_one_line",),
    "ssl_ca_certs": (f"{ACCESS}::test_https_and_mutual_tls_in_the_real_process",),
    "drain_s": (
        f"{API}::test_a_signal_drains_running_streams_and_exits_cleanly",
        f"{API}::test_what_does_not_drain_is_aborted",
    ),
    "grammar_backend": (
        f"{FLAGS}::test_grammars_are_compiled_as_is_asked",
        "grammar/test_compiler.py::test_a_schema_goes_to_who_enforces_it",
    ),
    "grammar_deadline_s": (
        f"{FLAGS}::test_grammars_are_compiled_as_is_asked",
        "grammar/test_compiler.py::test_what_is_costly_is_refused_and_others_go_on",
        "grammar/test_compiler.py::test_memory_is_capped",
    ),
    "grammar_memory": (
        f"{FLAGS}::test_grammars_are_compiled_as_is_asked",
        "grammar/test_compiler.py::test_what_is_costly_is_refused_and_others_go_on",
        "grammar/test_compiler.py::test_memory_is_capped",
    ),
    "log_level": (f"{API}::test_what_is_logged_and_how_many_connect_are_settings",),
    "sort_tools": (f"{FLAGS}::test_tools_are_shown_in_their_order_if_it_is_asked_for",),
    "grpc_port": (f"{FLAGS}::test_the_gateway_is_heard_where_it_is_told_to",),
    "grpc_host": (f"{FLAGS}::test_the_gateway_is_heard_where_it_is_told_to",),
    "profiling": (
        "frontend/test_operator_routes.py::test_a_profile_is_one_trace_of_all_processes",
        f"{OBSERVED}::test_profiles_are_refused_unless_they_are_allowed",
    ),
    "request_log": (
        f"{LOG}::test_nothing_is_told_that_is_not_asked_for",
        f"{OBSERVED}::test_the_log_has_a_line_for_each_choice_and_no_text",
    ),
    "log_texts": (f"{LOG}::test_texts_are_there_if_they_are_asked_for",),
    "otlp_endpoint": (
        f"{LOG}::test_nothing_is_told_that_is_not_asked_for",
        f"{OBSERVED}::test_a_trace_goes_from_the_clients_span_to_the_steps",
    ),
    "tp": (
        "launch/test_engine.py::test_streams_outlive_killed_and_stopped_workers_and_schedulers",
    ),
    "layout": (
        "engine/test_layouts.py::test_an_axis_that_spreads_nothing_is_refused",
        "engine/test_layouts.py::test_an_axis_that_a_dim_stands_on_is_served",
    ),
    "link": (
        "engine/test_plan_sizes.py::test_a_prefill_runs_another_plan_than_decode_steps",
        "engine/test_plan_sizes.py::test_ranks_that_copy_with_their_own_cores_start_nothing_early",
    ),
    "device": (f"{RANK}::test_a_rank_runs_where_it_is_told_to",),
    "cuda_graphs": (f"{RANK}::test_graphs_are_captured_if_they_are_asked_for",),
    "kernels": (f"{RANK}::test_kernels_are_those_asked_for",),
    "time_gaps": (f"{RANK}::test_gaps_are_timed_if_they_are_asked_for",),
    "threads": (f"{RANK}::test_threads_are_those_asked_for_or_a_share_of_the_cores",),
    "max_running": (
        f"{CORE}::test_each_setting_has_its_effect",
        f"{RANK}::test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory",
    ),
    "max_waiting": (f"{CORE}::test_each_setting_has_its_effect",),
    "max_step_tokens": (f"{CORE}::test_each_setting_has_its_effect",),
    "decode_stretch": (
        "scheduler/test_policy.py::test_a_long_prefill_leaves_the_cadence_of_others_alone",
    ),
    "kv_cache": (f"{FLOAT8}::test_a_cache_in_float8_takes_half_the_memory_of_bfloat16",),
    "block_size": (f"{RANK}::test_blocks_hold_the_tokens_that_are_asked_for",),
    "kv_cache_bytes": (
        f"{RANK}::test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory",
    ),
    "cache_percent": (
        f"{RANK}::test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory",
    ),
    "num_blocks": (
        f"{RANK}::test_a_rank_has_the_blocks_that_are_asked_for_or_a_part_of_free_memory",
    ),
    "state_interval": (f"{RANK}::test_states_are_kept_as_often_as_is_asked",),
    "prefix_caching": (f"{CORE}::test_each_setting_has_its_effect",),
    "host_kv": (
        "engine/test_host_tier.py::test_a_conversation_returns_from_the_host",
        "engine/test_host_tier.py::test_too_little_or_too_much_host_memory_is_refused",
    ),
    "transfer_ms": ("scheduler/test_host_tier.py::test_a_load_has_the_time_that_it_is_given",),
    "record": (
        "launch/test_engine.py::test_a_killed_scheduler_leaves_its_black_box",
        "scheduler/test_replay.py::test_no_room_for_a_box_is_one_line_and_no_reason_not_to_serve",
    ),
    "record_bytes": (
        "scheduler/test_replay.py::test_a_box_without_room_shows_its_latest_events",
        "scheduler/test_replay.py::test_no_room_for_a_box_is_one_line_and_no_reason_not_to_serve",
    ),
    "kv_events": (
        "scheduler/test_kv_events.py::test_subscribers_early_and_late_have_the_cores_index",
        "scheduler/test_kv_events.py::test_an_endpoint_that_cannot_be_bound_is_named",
    ),
    "kv_events_key": (
        "scheduler/test_kv_events.py::test_with_a_curve_key_only_who_knows_it_hears",
    ),
    "bind": ("frontend/test_remote.py::test_a_client_with_the_keys_is_served_and_others_are_not",),
    "curve_keys": (
        "frontend/test_remote.py::test_a_client_with_the_keys_is_served_and_others_are_not",
    ),
    "run_dir": ("launch/test_engine.py::test_a_killed_launcher_takes_everything_along",),
}

SETTINGS = (f"{FLAGS}::test_the_scheduler_has_the_settings",)
# What options are called where the named tests meet them; `SETTINGS` and
# `test_grammars_are_compiled_as_is_asked` show that they become that.
BECOMES = {
    "max_running": "max_slots",
    "record": "record_path",
    "kv_events_key": "kv_curve_secret",
    "bind": "frontend_tcp",
    "curve_keys": "frontend_curve_secret",
    "grammar_backend": "backend",
    "grammar_deadline_s": "deadline_s",
    "grammar_memory": "memory",
}


@cache
def definitions(file: Path) -> dict[str, ast.stmt]:
    """What stands at the top of a file of tests, by name."""
    found: dict[str, ast.stmt] = {}
    for each in ast.parse(file.read_text(encoding="utf-8")).body:
        match each:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[each.name] = each
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = each
    return found


def source(file: Path, name: str) -> str:
    """A test with all of its file that it uses: fixtures, helpers, constants."""
    there = definitions(file)
    used, wanted = {name}, [name]
    while wanted:
        for node in ast.walk(there[wanted.pop()]):
            found = node.id if isinstance(node, ast.Name) else getattr(node, "arg", None)
            if found in there and found not in used:
                used.add(found)
                wanted.append(found)
    return "\n".join(ast.unparse(there[each]) for each in used)


def test_every_option_is_shown() -> None:
    assert list(SHOWN) == list(FIELDS)


@pytest.mark.parametrize("option", SHOWN)
def test_what_shows_an_option_gives_it(option: str) -> None:
    for test in SHOWN[option]:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        text = source(TESTS / path, name)
        for word in {option, BECOMES.get(option, option)}:
            # as a setting by keyword or in a dict, or as a flag
            if re.search(rf"\b{word}=|'{word}'|--{word.replace('_', '-')}\b", text):
                break
        else:
            pytest.fail(f"{test} does not set {option}")


@pytest.mark.soak
@pytest.mark.parametrize("option", SHOWN)
def test_what_shows_an_option_fails_where_it_is_ignored(option: str) -> None:
    tests = [TESTS / test for test in (*SHOWN[option], *SETTINGS)]
    words = ["-x", "-m", "not soak", "-p", "tests.frontend.ignored_option", "--ignored", option]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *map(str, tests)],
        cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout


@contextlib.contextmanager
def unstarted(config: EngineConfig) -> Iterator[Engine]:
    """An engine of which only the run directory is there."""
    engine = Engine(ServedModel.of(config, serve_http=False), False, WatchLimits())
    try:
        yield engine
    finally:
        engine._release()


def test_the_scheduler_has_the_settings(tiny_llama: Path, tmp_path: Path) -> None:
    """Each option changes the settings of its name, and no others but those of the run."""
    _, certificate = zmq.auth.create_certificates(tmp_path, "kv")
    endpoint = "tcp://127.0.0.1:5999"
    keys, runs = tmp_path / "keys", tmp_path / "runs"
    CurveKeys.create(keys, endpoint)
    runs.mkdir()
    own = {"version", "token", "hash_key", "frontend_endpoint", "worker_endpoint"}

    def settings(**options: Any) -> dict[str, Any]:
        config = EngineConfig(model=str(tiny_llama), run_dir=str(runs), device="cpu", **options)
        with unstarted(config) as engine:
            found = msgspec.structs.asdict(engine._scheduler_config())
        assert str(runs) in found["frontend_endpoint"]
        return {name: value for name, value in found.items() if name not in own}

    plain = settings()
    for options, changed in (
        ({"max_running": 7}, {"max_slots": 7}),
        ({"max_step_tokens": 99}, {"max_step_tokens": 99}),
        ({"max_model_len": 99}, {"max_model_len": 99}),
        ({"max_waiting": 7}, {"max_waiting": 7}),
        ({"decode_stretch": 3.0}, {"decode_stretch": 3.0}),
        ({"prefix_caching": False}, {"prefix_caching": False}),
        ({"transfer_ms": 7}, {"transfer_ms": 7}),
        ({"tp": 2}, {"num_ranks": 2}),
        ({"layout": "tp=2 dp=2"}, {"num_ranks": 4}),
        ({"record": "/box"}, {"record_path": "/box"}),
        ({"record_bytes": 1 << 20}, {"record_bytes": 1 << 20}),
        ({"kv_events": "ipc:///kv"}, {"kv_events": "ipc:///kv", "kv_replay": "ipc:///kv-replay"}),
        (
            {"kv_events_key": certificate},
            {"kv_curve_secret": zmq.auth.load_certificate(certificate)[1].decode()},
        ),
        (
            {"bind": endpoint, "curve_keys": str(keys)},
            {
                "frontend_tcp": endpoint,
                "frontend_curve_secret": CurveKeys.read(keys).secret_key,
                "frontend_tcp_token": CurveKeys.read(keys).token,
            },
        ),
    ):
        assert settings(**options) == {**plain, **changed}


def answers_at(host: str, port: int) -> bool:
    with contextlib.closing(socket.socket()) as client:
        return client.connect_ex((host, port)) == 0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory.create(tmp_path)
    yield run
    run.remove()


def test_processes_listen_where_they_are_told_to(directory: RunDirectory) -> None:
    hosts = ("127.0.0.1", "127.0.0.2")
    for host in hosts:
        for count in (1, 3):
            port = free_port()
            config = EngineConfig(host=host, port=port, api_processes=count)
            processes = ApiProcesses(config, directory, WatchLimits())
            assert [answers_at(each, port) for each in hosts] == [each == host for each in hosts]
            assert len(processes.parts(lambda *words: words)) == count
            processes.close()
            assert not answers_at(host, port)


async def test_the_gateway_is_heard_where_it_is_told_to(
    scheduler: ScriptedScheduler, tmp_path: Path, tiny_llama: Path
) -> None:
    pytest.importorskip("grpc", reason="no grpcio: pip install 'tokenspeed-core[smg]'")
    pytest.importorskip("smg_grpc_proto", reason="pip install 'tokenspeed-core[smg]'")
    port = free_port()
    config = EngineConfig(model="smollm2", grpc_host="127.0.0.2", grpc_port=port)
    write_config(config, tmp_path / "engine.json")
    command = [sys.executable, "-m", "tokenspeed_core.gateway", "--run-dir"]
    command += [str(scheduler.run.path), "--config", str(tmp_path / "engine.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            async with asyncio.timeout(60):
                while process.poll() is None and not answers_at("127.0.0.2", port):
                    await asyncio.sleep(0.05)
            assert process.poll() is None
            assert not answers_at("127.0.0.1", port)  # the default
        finally:
            process.kill()
    for given, names in ((0, []), (port, ["grpc"])):
        asked = EngineConfig(model=str(tiny_llama), run_dir=str(tmp_path), grpc_port=given)
        with unstarted(asked) as engine:
            children = [child.name for part in engine._parts() for child in part.children]
        assert children == [*names, "scheduler", "worker 0"]


async def test_keys_close_what_is_not_opened(
    scheduler: ScriptedScheduler, codec: TextCodec, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:key-of-alice\n")
    paths = ["/v1/models", "/metrics"]
    for options, opened, key in (
        ({}, paths, ""),
        ({"api_key": "key-of-all"}, [], "key-of-all"),
        ({"api_keys": str(file)}, [], "key-of-alice"),
        ({"api_key": "key-of-all", "open_metrics": True}, ["/metrics"], "key-of-all"),
    ):
        access = Access.of(EngineConfig(**options))
        async with (
            served(scheduler.run.path, codec, access) as (url, _),
            httpx.AsyncClient(base_url=url) as client,
        ):
            stranger = [path for path in paths if (await client.get(path)).status_code == 200]
            client.headers["x-api-key"] = key
            known = [path for path in paths if (await client.get(path)).status_code == 200]
        assert (stranger, known) == (opened, paths), options


async def test_a_model_is_served_by_its_name(
    scheduler: ScriptedScheduler, codec: TextCodec, tiny_llama: Path, thin_smollm2: Path
) -> None:
    sizes = []
    for path, given, told in (
        (tiny_llama, "", tiny_llama.name),
        (thin_smollm2, "", thin_smollm2.name),
        (thin_smollm2, "mine", "mine"),
    ):
        config = EngineConfig(model=str(path), served_model_name=given)
        model = ServedModel.of(config, serve_http=False)
        sizes.append(model.vocab_size)
        async with (
            served(scheduler.run.path, codec, config=model.config) as (url, _),
            httpx.AsyncClient(base_url=url) as client,
        ):
            (listed,) = (await client.get("/v1/models")).json()["data"]
            assert listed["id"] == told
            for name in {tiny_llama.name, thin_smollm2.name, "mine"}:
                status = (await client.get(f"/v1/models/{name}")).status_code
                assert status == (200 if name == told else 404)
    assert sizes == [96, 49152, 49152]


async def test_responses_are_kept_as_many_and_as_long_as_is_asked(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    async def kept(seconds_later: float, **options: Any) -> int:
        """How many of three responses are still there, so long after they were last used."""
        config = EngineConfig(model="smollm2", **options)
        async with (
            served(scheduler.run.path, codec, config=config) as (url, service),
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            asked = {"model": "smollm2", "input": "x", "max_output_tokens": 2}
            ids = [(await client.responses.create(**asked)).id for _ in range(3)]
            service.responses._clock = lambda: time.monotonic() + seconds_later
            found = 0
            for id in ids:
                with contextlib.suppress(openai.NotFoundError):
                    found += (await client.responses.retrieve(id)).id == id
            return found

    assert await kept(0.0) == 3
    assert await kept(0.0, stored_responses=2) == 2
    assert await kept(0.0, stored_responses=2, api_processes=2) == 1  # and the other keeps one
    assert await kept(0.0, stored_responses=0) == 0
    assert await kept(500.0, response_ttl_s=1000.0) == 3
    assert await kept(500.0, response_ttl_s=100.0) == 0


async def test_tools_are_shown_in_their_order_if_it_is_asked_for(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    messages = [{"role": "user", "content": "Read it."}]
    for sort_tools in (True, False):
        config = EngineConfig(model="smollm2", sort_tools=sort_tools)
        spoken = codec.with_template(TEMPLATE)
        async with AsyncLLM(config, run_dir=scheduler.run.path, codec=spoken) as llm:
            prompts = [
                (await llm.codec.chat(messages, Rendering(tools=tools))).ids
                for tools in (TOOLS, TOOLS[::-1])
            ]
        assert (prompts[0] == prompts[1]) == sort_tools


async def test_an_embedder_gives_parts_if_it_is_told_to(
    scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    save_tiny_embedder(tmp_path)
    for matryoshka in (True, False):
        config = EngineConfig(model=str(tmp_path), matryoshka=matryoshka)
        async with AsyncLLM(config, run_dir=scheduler.run.path) as llm:
            pooling = llm.codec.pooling
        assert pooling is not None
        with contextlib.nullcontext() if matryoshka else pytest.raises(EmbeddingError):
            pooling.check(8)


async def test_grammars_are_compiled_as_is_asked(
    scheduler: ScriptedScheduler, codec: TextCodec
) -> None:
    """What the compiler's process is told; `../grammar/test_compiler.py` shows what comes of it."""
    for backend, deadline_s, memory in (("xgrammar", 1.5, 1 << 26), ("auto", 7.0, 1 << 30)):
        config = EngineConfig(
            model="smollm2",
            grammar_backend=backend,
            grammar_deadline_s=deadline_s,
            grammar_memory=memory,
        )
        async with AsyncLLM(config, run_dir=scheduler.run.path, codec=codec) as llm:
            made = llm.grammars
        assert made._backend == backend
        assert made._limits == ("--deadline-s", str(deadline_s), "--memory", str(memory))
