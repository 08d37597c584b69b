# SPDX-License-Identifier: MIT
"""`tokenspeed bench agentic|serve` and `--compare`: real processes, a real server, a real trace."""

import json
from pathlib import Path

import pytest

from tokenspeed_core.__main__ import main
from tokenspeed_core.bench.comparison import StoredRowsError, stored, table
from tokenspeed_core.bench.conversation import conversations
from tokenspeed_core.bench.row import Row
from tokenspeed_core.config import EngineConfig
from tokenspeed_core.launch import Engine
from tokenspeed_core.trace import TraceError

SAMPLE = Path(__file__).parents[1] / "data" / "agent_traces_sample.jsonl.gz"


def written(path: Path) -> Path:
    """Two conversations of equal tool prefixes; the first has a second turn."""
    rows = [[0, 100, 6, 0, [[0, 6]], 1, 0, "tool_use"], [9, 140, 4, 6, [[6, 2]], 1, 2, "end_turn"]]
    other = [[0, 90, 5, 0, [[0, 5]], 1, 0, "end_turn"]]
    about = {"tool_tokens": 32, "system_tokens": 16, "block": 16}
    lines = [{"id": "a", **about, "rows": rows}, {"id": "b", **about, "rows": other}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_prompts_repeat_where_recorded_blocks_did(tmp_path: Path) -> None:
    first, other = conversations(written(tmp_path / "traces.jsonl"), 200)
    before, after = (turn.prompt for turn in first.turns(5000))
    (apart,) = (turn.prompt for turn in other.turns(5000))
    assert [len(before), len(after), len(apart)] == [100, 140, 90]
    assert before[:96] == after[:96]
    # Both prefixes have equal sizes: those are one.
    assert before[:48] == apart[:48]
    assert before[48:80] != apart[48:80]
    assert all(300 <= token < 5000 for token in after)
    assert before == next(iter(first.turns(5000))).prompt


def test_recorded_conversations_have_their_recorded_sizes() -> None:
    found = conversations(SAMPLE, 40_000)
    assert len(found) > 3
    for conversation in found[:3]:
        for turn, row in zip(conversation.turns(32000), conversation.rows, strict=True):
            assert len(turn.prompt) == row[1]
    with pytest.raises(TraceError, match="raise --max-context"):
        conversations(SAMPLE, 10)


def test_a_real_server_under_recorded_conversations(
    thin_smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = written(tmp_path / "traces.jsonl")
    config = EngineConfig(
        model=str(thin_smollm2),
        served_model_name="smollm2",
        port=0,
        num_blocks=128,
        max_model_len=512,
        max_running=8,
        threads=1,
    )
    with Engine.start(config, serve_http=True) as engine:
        engine.wait_ready(120)
        options = ["--url", f"{engine.url}/v1", "--model", "smollm2", "--traces", str(traces)]
        assert main(["bench", "serve", *options, "--sessions", "1", "--vocabulary", "49152"]) == 0
        rows = {row["metric"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        assert main(["bench", "serve", *options, "--model", "nobody"]) == 1
        assert "answered 404" in capsys.readouterr().err
    assert rows["time"]["case"] == "1 sessions, 3 requests"
    # Of 330 prompt tokens 96 are a turn's blocks of before, 48 those of the shared prefixes.
    assert rows["cached"]["ours"] == pytest.approx(100 * (96 + 48) / 330, abs=0.1)
    assert rows["output tokens"]["ours"] == pytest.approx(15e3 / rows["time"]["ours"], rel=0.01)
    assert 0 < rows["time to first token p50"]["ours"] <= rows["time to first token p99"]["ours"]


def test_agents_through_real_processes_beside_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shape", "tiny", "--device", "cpu", "--blocks", "300"]
    assert main(["bench", "agentic", *options]) == 0
    text = capsys.readouterr().out
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["metric"] for row in rows] == ["time", "time to first token", "step"]
    assert {row["case"] for row in rows} == {"3 sessions, 2 turns"}
    (tmp_path / "before.jsonl").write_text(text)
    assert main(["bench", "agentic", *options, "--compare", str(tmp_path / "before.jsonl")]) == 0
    assert "agentic 3 sessions, 2 turns, step" in capsys.readouterr().err
    assert main(["bench", "throughput", *options, "--decode-stretch", "0"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (row["bench"], row["case"]) == ("throughput", "3 requests, 20 in, 4 out")
    assert row["model"] == "tiny stretch=0"


def test_rows_stand_beside_the_anchors_of_another_engine(tmp_path: Path) -> None:
    file = tmp_path / "vllm.jsonl"
    lines = [
        {"engine": "vllm", "model": "qwen3_8b", "bench": "startup", "seconds": 233.7},
        {"model": "qwen3_8b", "bench": "decode", "batch": 1, "ctx": 1024, "tpot_ms": 6.0},
        {"model": "qwen3_8b", "bench": "throughput", "reqs": 2, "inp": 3, "outp": 4, "seconds": 5},
        {"model": "qwen3_8b", "bench": "warm_turn", "cached": 5, "new": 7, "ttft_ms": 9.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    about = ("qwen3-8b", "NVIDIA H200", "decode", "batch 1, ctx 1024", "step")
    (line,) = table([Row.of(*about, [3.0]), Row.of(*about[:4], "gap", [1.0])], stored(file))
    assert "6.000 ->      3.000 ms   x  0.50  ##########" in line
    at_once = Row.of(*about[:2], "throughput", "2 requests, 3 in, 4 out", "time", [2500.0])
    assert "x  0.50" in next(table([at_once], stored(file)))
    assert next(table([], stored(file))).startswith("no row")
    file.write_text('{"bench": "decode"}')
    with pytest.raises(StoredRowsError, match=r"vllm.jsonl:1 is no row"):
        stored(file)
