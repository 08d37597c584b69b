# SPDX-License-Identifier: MIT
"""The `tokenspeed` command as people run it: in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tokenspeed_core import __version__
from tokenspeed_core.cli.serve import ready_message
from tokenspeed_core.config import EngineConfig


def tokenspeed(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tokenspeed_core", *arguments],
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_one_line(done: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_help_lists_what_is_built_and_nothing_else() -> None:
    text = tokenspeed("--help").stdout
    for command in ("serve", "generate", "bench", "explain", "check", "env", "pull"):
        assert f"\n    {command} " in text
    for absent in ("chat", "scheduler"):
        assert f"\n    {absent} " not in text
    assert tokenspeed("--version").stdout == f"tokenspeed {__version__}\n"
    flags = tokenspeed("serve", "--help").stdout
    for group in ("model:", "server:", "parallelism:", "scheduling:", "cache:"):
        assert f"\n{group}\n" in flags


@pytest.mark.parametrize("module", ["tokenspeed_core", "tokenspeed_core.__main__"])
def test_the_command_starts_without_heavy_imports(module: str) -> None:
    code = (
        f"import sys, {module} as m\n"
        "parser = m._parser(['serve']) if hasattr(m, '_parser') else None\n"
        "heavy = {'torch', 'numpy', 'zmq', 'tokenizers', 'starlette', 'jinja2', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wrong_settings_are_one_line_and_exit_2(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model: smollm2\nmax_runing: 8\n")
    assert_one_line(
        tokenspeed("serve", "--config", str(file)),
        2,
        "server.yaml",
        "'max_runing'",
        "did you mean 'max_running'",
    )
    assert_one_line(tokenspeed("serve", "smollm2", "--tp", "two"), 2, "--tp", "'two'")
    assert_one_line(tokenspeed("serve", "smollm2", "--dtype", "fp8"), 2, "dtype", "bf16")
    assert_one_line(tokenspeed("serve"), 2, "no model")
    assert tokenspeed("serve", "smollm2", "--no-such-flag").returncode == 2
    assert tokenspeed().returncode == 2


def test_missing_weights_and_a_taken_port_are_one_line_and_exit_1(tmp_path: Path) -> None:
    assert_one_line(tokenspeed("serve", "./no.gguf", "--port", "0"), 1, "./no.gguf", "give")
    (tmp_path / "config.json").write_text("{}")
    assert_one_line(tokenspeed("serve", str(tmp_path), "--port", "0"), 1, "safetensors")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_one_line(tokenspeed("serve", "smollm2", "--port", port), 1, port, "--port")


def test_explain_refuses_a_mesh_with_a_fix(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tokenspeed_core.models import family_of\n"
        "FAMILY = family_of('LlamaForCausalLM')\n"
        "CONFIG = dict(hidden_size=64, intermediate_size=128, num_attention_heads=8,\n"
        "              num_hidden_layers=2, vocab_size=256)\n"
    )
    done = tokenspeed("explain", str(file), "--tp", "3")
    assert (done.returncode, "choose tp from" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_env_finds_the_native_parts() -> None:
    done = tokenspeed("env")
    assert done.returncode == 0, done.stdout
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert "libzmq" in rows["libzmq"]
    assert "tokenspeed-scheduler" in rows["scheduler"]
    assert rows["tokenspeed"] == __version__


def test_pull_prints_the_path() -> None:
    path = Path(tokenspeed("pull", "smollm2").stdout.strip())
    assert path.stat().st_size == 98362432
    assert_one_line(tokenspeed("pull", "gpt-9"), 1, "gpt-9", "smollm2")


def test_generate_prints_the_text_and_only_it() -> None:
    flags = ("smollm2", "--num-blocks", "64", "--max-model-len", "512", "--threads", "1")
    question = "What is the capital of France?"
    done = tokenspeed("generate", *flags, "--prompt", question)
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr
    raw = tokenspeed("generate", *flags, "--raw", "--max-tokens", "3", stdin="One, two, three,")
    assert raw.stdout == " four, five\n"
    assert_one_line(
        tokenspeed("generate", *flags, "--prompt", "x", "--temperature", "-1"), 1, "temperature"
    )


def test_the_ready_message_can_be_pasted() -> None:
    config = EngineConfig(model="m", host="::1", port=81, api_key="secret")
    message = ready_message(config, 1.25)
    assert message.startswith("ready in 1.2 s: m at http://[::1]:81\ncurl http://[::1]:81/v1/chat/")
    assert "secret" not in message
    assert json.loads(message.split("'")[-2])["model"] == "m"
