# SPDX-License-Identifier: MIT
import argparse
from pathlib import Path

import attrs
import pytest

from tokenspeed_core.config import (
    FIELDS,
    ConfigError,
    EngineConfig,
    from_arguments,
    read_config,
    write_config,
)
from tokenspeed_core.config_flags import add_flags


def parse(*given: str) -> EngineConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_arguments(parser.parse_args(given))


def other_value(name: str) -> tuple[str, object]:
    """A legal value that differs from the default, as flag text and as a value."""
    field = FIELDS[name]
    if field.metadata["choices"]:
        choice = next(c for c in field.metadata["choices"] if c != field.default)
        return choice, choice
    return {
        bool: ("", not field.default),
        int: {"max_step_tokens": ("700", 700), "record_bytes": ("70000", 70000)}.get(
            name, ("3", 3)
        ),
        float: ("2.5", 2.5),
        str: {"kernels": ("linear=torch",) * 2}.get(name, ("ipc://other",) * 2),
    }[type(field.default)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_set_by_flag_by_file_and_by_python(name: str, tmp_path: Path) -> None:
    text, value = other_value(name)
    expected = EngineConfig(**{name: value})
    assert getattr(expected, name) == value != FIELDS[name].default
    flag = "--" + name.replace("_", "-")
    is_switch = isinstance(FIELDS[name].default, bool)
    switched = flag if value else flag.replace("--", "--no-")
    assert parse(switched if is_switch else f"{flag}={text}") == expected
    file = tmp_path / "server.yaml"
    file.write_text(f"{name}: {str(value).lower() if is_switch else value}\n")
    assert parse("--config", str(file)) == read_config(file) == expected


def test_a_flag_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("model: from-file\nport: 9000\ntp: 3\n")
    config = parse("--config", str(file), "--port", "9001")
    assert (config.model, config.port, config.tp, config.max_running) == ("from-file", 9001, 3, 64)


def test_the_model_is_positional_or_a_flag() -> None:
    assert parse("a").model == parse("--model", "a").model == "a"
    with pytest.raises(ConfigError, match="twice"):
        parse("a", "--model", "b")


@pytest.mark.parametrize(
    ("text", "value"),
    [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5KiB", 1536), ("7", 7), ("7B", 7)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse("--kv-cache-bytes", text).kv_cache_bytes == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_runing: 5", ["max_runing", "'max_running'"]),
        ("port: abc", ["port", "an integer", "'abc'"]),
        ("port: 70000", ["port", "65535"]),
        ("port: true", ["port", "an integer"]),
        ("tp: 0", ["tp", "at least 1"]),
        ("dtype: fp8", ["dtype", "bf16", "'fp8'"]),
        ("prefix_caching: maybe", ["prefix_caching", "true or false"]),
        ("kv_cache_bytes: 2GB of it", ["kv_cache_bytes", "2GB of it"]),
        ("drain_s: .nan", ["drain_s"]),
        ("model: 5", ["model", "a string"]),
        ("- a", ["list"]),
        ("a: [", ["YAML"]),
        ("? [a]\n: b", ["YAML"]),
    ],
)
def test_a_bad_file_is_one_line_naming_file_and_key(
    line: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(line)
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(file), "--port", "1")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [*words, "server.yaml"])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse("--config", "nowhere.yaml")


def test_a_bad_flag_is_named() -> None:
    with pytest.raises(ConfigError, match="--tp"):
        parse("--tp", "three")


def test_a_written_file_reads_back_equal_and_is_private(tmp_path: Path) -> None:
    config = EngineConfig(model="m", api_key="secret", kv_cache_bytes="1GiB", drain_s=1.5)
    write_config(config, tmp_path / "engine.json")
    assert read_config(tmp_path / "engine.json") == config
    assert (tmp_path / "engine.json").stat().st_mode & 0o077 == 0


def test_a_config_cannot_change() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        EngineConfig().port = 1


def test_what_the_scheduler_would_refuse_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match="max_waiting must be at least 1"):
        EngineConfig(model="m", max_waiting=0)
    with pytest.raises(ConfigError, match="max_model_len = 1 has no room"):
        EngineConfig(model="m", max_model_len=1)
    with pytest.raises(ConfigError, match=r"decode_stretch = 0\.5 would make .* give 0, or"):
        EngineConfig(model="m", decode_stretch=0.5)


def test_a_step_must_have_room_for_every_running_request() -> None:
    with pytest.raises(ConfigError, match="max_step_tokens = 8 is less than max_running = 9"):
        EngineConfig(model="m", max_running=9, max_step_tokens=8)
