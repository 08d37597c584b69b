# SPDX-License-Identifier: MIT
"""`tokenspeed simulate` as a user runs it."""

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest
from traces import BLOCK, Turn, conversation, write

from tokenspeed_core.__main__ import main

CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2048,
    "vocab_size": 5000,
}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    lines = [
        conversation([Turn(0, 300, 20, 1), Turn(9, 40, 20, 2), Turn(12, 40, 20, 3)], tools=64)
        for _ in range(12)
    ]
    return write(lines, tmp_path / "trace.jsonl")


def simulate(*arguments: object) -> int:
    return main(["simulate", "--block-size", str(BLOCK), *map(str, arguments)])


def test_the_table_has_a_line_for_each_point_of_the_grid(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--pool", "1k,4k", "--policy", "lru,reuse", "--sessions", "2,8", "--host", "0,4x")
    assert simulate("--traces", traces, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 conversations of 36 requests; qwen3-8b, bf16, on 1 x h100")
    table = lines[1:18]
    assert table[0].split()[:4] == ["sessions", "pool", "host", "policy"]
    grid = {tuple(line.split()[:4]) for line in table[1:]}
    assert len(grid) == 16
    assert ("8", "1k", "4k", "reuse") in grid
    assert len({len(line) for line in table}) == 1


def test_json_has_the_bench_rows_and_repeats(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for _ in range(2):
        assert simulate("--traces", traces, "--pool", "2k", "--json") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    rows = [json.loads(line) for line in outputs[0].splitlines()]
    for row in rows:
        assert set(row) == {
            "bench", "case", "metric", "unit", "ours", "peer", "peer_name", "spread",
        }  # fmt: skip
    values = {row["metric"]: row["ours"] for row in rows}
    shares = [value for name, value in values.items() if name.startswith("missed")]
    assert sum(shares) + values["hit rate"] == pytest.approx(100, abs=1e-3)
    assert values["requests"] == 36


def test_requests_and_plots_are_written(traces: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    assert simulate("--traces", traces, "--pool", "1k,4k", "--sessions", "2,8", "--out", out) == 0
    with (out / "requests.csv").open() as file:
        requests = list(csv.DictReader(file))
    assert len(requests) == 4 * 36
    for request in requests:
        assert float(request["arrived_s"]) <= float(request["first_s"]) <= float(request["last_s"])
    for name in ("pareto", "hit_rate", "first_token"):
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    assert simulate("--traces", traces, "--pool", "4k", "--out", out, "--format", "png") == 0
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "hit_rate.png").exists()


def test_plots_without_matplotlib_name_the_extra(
    traces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert simulate("--traces", traces, "--out", tmp_path / "out") == 1
    assert "pip install 'tokenspeed-core[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_read_from_its_config(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    assert simulate("--traces", traces, "--model", model, "--pool", "1GiB") == 0
    # 2 x 4 layers x 2 heads of 128 x 2 bytes a token
    assert f" {2**30 // 4096 / 1e3:.3g}k " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pool", "much"), "--pool much: give tokens such as 760k or 1.5M"),
        (("--pool", "4x"), "--pool 4x: give tokens"),
        (("--pool", "3"), "pool_tokens = 3; give 16"),
        (("--host", "-1"), "--host -1: give tokens"),
        (("--policy", "lru,best"), "--policy best: give reuse or lru"),
        (("--card", "h900"), "--card h900: give one of a100, l40s, h100"),
        (("--model", "gpt9"), "--model gpt9: give one of smollm2-135m"),
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--model", "llama-3.3-70b"), "raise --tp above 1 or take a larger card"),
        (("--tp", "0"), "--tp 0: give at least 1"),
        (("--tp", "5"), "tp = 5 does not divide the 32 heads"),
        (("--dtype", "int3"), "dtype = 'int3'; give bf16 or fp8"),
        (("--sessions", "0"), "--sessions 0: give a whole number, at least 1"),
        (("--sessions", "2.5"), "--sessions 2.5: give a whole number"),
        (("--rate", "fast"), "--rate fast: give a number"),
        (("--rate", "nan"), "--rate nan: give a number"),
        (("--gap-cap", "-3"), "--gap-cap -3: give a number, at least 0"),
        (("--decode-stretch", "0.2"), "decode_stretch is 0.2"),
        (("--max-running", "0"), "--max-running 0: give at least 1"),
        (("--block-size", "0"), "--block-size 0: give at least 1"),
        (("--max-context", "10"), "holds no conversation of at most 10 tokens"),
    ],
)
def test_bad_flags_are_one_line_that_names_value_and_fix(
    traces: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--traces", traces, *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokenspeed: error: ")
    assert message in error
    assert error.count("\n") == 1


GOOD = json.dumps(conversation([Turn(0, 300, 20, 1)]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", ":2: JSON is malformed"),
        ("{}", ":2: Object missing required field `tool_tokens`"),
        (GOOD.replace("300", '"many"'), ":2: Expected `int`, got `str` - at `$.rows[0][1]`"),
        (GOOD.replace("300", "-300"), "- at `$.rows[0][1]`"),
        (GOOD.replace("300", "200"), ":2: 18 blocks of 16 for 200 input tokens, which have 12"),
        (GOOD.replace('"block": 16', '"block": 32'), "32"),
        (GOOD.replace('"block": 16', '"block": 0'), "- at `$.block`"),
        (GOOD.replace("tool_use", "\udcff"), ":2: "),
    ],
)
def test_bad_traces_name_the_file_the_line_and_the_field(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(f"{GOOD}\n{line}\n".encode(errors="surrogateescape"))
    assert simulate("--traces", path) == 1
    error = capsys.readouterr().err
    assert f"{path}:2: " in error
    assert message in error
    assert error.count("\n") == 1


def test_files_that_hold_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress(GOOD.encode())
    for name, data in (("cut.gz", whole[:-9]), ("plain.gz", b"{}"), ("empty.jsonl", b"")):
        (tmp_path / name).write_bytes(data)
        assert simulate("--traces", tmp_path / name) == 1
        assert name in capsys.readouterr().err
    assert simulate("--traces", tmp_path / "none.jsonl") == 1
    assert "none.jsonl" in capsys.readouterr().err
