# SPDX-License-Identifier: MIT
"""Status page, `tokenspeed top` and profiles of a whole engine."""

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from tests.frontend.browser import find_browser, rendered
from tests.frontend.conftest import thin_engine
from tokenspeed_core.__main__ import main
from tokenspeed_core.cli.top import picture
from tokenspeed_core.launch import Engine

MODEL = "smollm2"
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path) -> Iterator[Engine]:
    with thin_engine(thin_smollm2, served_model_name=MODEL, profiling=True) as engine:
        yield engine


def post(engine: Engine, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    return httpx.post(engine.url + path, json=body, timeout=PATIENCE_S)


def complete(engine: Engine, prompt: str, max_tokens: int = 6) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    answer = post(engine, "/v1/completions", body)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_a_profile_is_one_trace_of_all_processes(engine: Engine) -> None:
    assert post(engine, "/stop_profile").status_code == 409
    assert post(engine, "/start_profile").status_code == 200
    assert post(engine, "/start_profile").status_code == 409
    complete(engine, "Tell me of the sea and of the ships that sail on it.")
    answer = post(engine, "/stop_profile")
    assert answer.status_code == 200
    trace = answer.json()
    assert trace["otherData"]["missing"] == []
    check_schema(trace["traceEvents"])
    names = {
        event["args"]["name"]: event["pid"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and event["name"] == "process_name"
    }
    assert {"api", "scheduler"} <= set(names)
    assert any(name.startswith("worker-0") for name in names)
    check_one_clock(trace["traceEvents"], names)
    # nothing is left behind, and the next profile stands for itself
    assert not list(engine.run.path.glob("profile-*"))
    assert post(engine, "/start_profile").status_code == 200
    again = post(engine, "/stop_profile").json()
    assert not [event for event in again["traceEvents"] if event.get("cat") == "request"]


def check_schema(events: list[dict[str, Any]]) -> None:
    """The rules of the Trace Event Format for the phases that are used."""
    open_spans: dict[tuple[str, str], int] = defaultdict(int)
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        phase = event["ph"]
        if phase == "M":
            continue
        assert event["ts"] >= 0
        assert event["ts"] < PATIENCE_S * 1e6
        if phase == "X":
            assert event["dur"] >= 0
        elif phase in "be":
            open_spans[event["cat"], event["id"]] += 1 if phase == "b" else -1
        elif phase in "sft":
            assert "id" in event
        else:
            assert phase in "iBEC", event
    assert not any(open_spans.values())


def check_one_clock(events: list[dict[str, Any]], names: dict[str, int]) -> None:
    """Each step of the worker lies within what the scheduler says that it was in flight."""
    flights: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if event["pid"] == names["scheduler"] and event.get("cat") == "step":
            flights[event["args"]["step"]].append(event["ts"])
    steps = [
        (int(match[1]), event)
        for event in events
        if event["ph"] == "X" and (match := re.fullmatch(r"step (\d+)", event["name"]))
    ]
    assert len(steps) >= 6
    margin_us = 2000.0  # torch's clock is calibrated to Unix time
    for number, event in steps:
        sent, done = flights[number]
        assert sent - margin_us <= event["ts"]
        assert event["ts"] + event["dur"] <= done + margin_us
    plans = [event for event in events if event["name"] == "plan"]
    assert {event["args"]["step"] for event in plans} >= {number for number, _ in steps}
    decodes = [event for event in events if event["name"] == "decode"]
    assert decodes[0]["args"]["first_step"] in flights
    stages = {event["name"] for event in events if event.get("cat") == "stage"}
    assert {"parse", "tokenise", "detokenise"} <= stages


def test_profiles_have_a_command(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    arguments = ["profile", "--url", engine.url, "--seconds", "0.1", "--output", str(file)]
    assert main(arguments) == 0
    check_schema(json.loads(file.read_text())["traceEvents"])


def state(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{engine.url}/dashboard/data").json()
    return found


def test_the_data_tell_requests_and_counters(engine: Engine) -> None:
    before = state(engine)
    answer = complete(engine, "A story of a king: ", 20)
    after = state(engine)
    assert after["health"]["ok"]
    row = after["ended"][-1]
    assert row["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert row["completion_tokens"] == 20
    assert row["outcome"] == "length"
    assert row["parts"]["decode"] > 0
    assert all(seconds >= 0 for seconds in row["parts"].values())
    assert len(after["ended"]) == len(before["ended"]) + 1
    with httpx.stream(
        "POST",
        f"{engine.url}/v1/completions",
        json={"model": MODEL, "prompt": "x", "max_tokens": 900, "stream": True, "ignore_eos": True},
        timeout=PATIENCE_S,
    ) as stream:
        lines = stream.iter_lines()  # closes the stream when it is forgotten
        next(lines)
        assert state(engine)["num_live"] == 1


def test_top_draws_what_the_data_tell(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(engine)
    complete(engine, "One two three", 10)
    now = state(engine)
    console = Console(file=io.StringIO(), width=80)
    console.print(picture(now, before, 5))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert MODEL in text
    assert "tokens flow" in text
    row = now["ended"][-1]
    (line,) = (line for line in text.splitlines() if line.startswith(row["id"][-10:]))
    assert line.split()[1:5] == ["length", str(row["prompt_tokens"]), "0", "10"]
    assert "█" in line
    assert main(["top", "--url", engine.url, "--count", "2", "--period", "0.05"]) == 0
    assert "generated" in capsys.readouterr().out
    assert main(["top", "--url", "http://127.0.0.1:9", "--count", "1"]) == 1
    assert "no server answers" in capsys.readouterr().err


class Links(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_fetches_nothing_from_elsewhere(engine: Engine) -> None:
    page = httpx.get(f"{engine.url}/dashboard")
    links = Links()
    links.feed(page.text)
    assert links.found == []
    assert "://" not in page.text
    assert "connect-src 'self'" in page.headers["content-security-policy"]


def test_a_browser_shows_it(engine: Engine, tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    for number in range(3):
        complete(engine, f"Number {number} of the stories", 12)
    shown = rendered(browser, f"{engine.url}/dashboard", tmp_path / "profile")
    assert "tokens flow" in shown
    assert shown.count('class="row"') >= 3
    assert "polyline" in shown
    assert re.search(r"blocks in use, \d+ kept", shown)
    assert re.search(r'id="ttft">\d', shown)
