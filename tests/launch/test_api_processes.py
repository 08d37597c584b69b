# SPDX-License-Identifier: MIT
"""Several API processes behind one port: each dies, freezes and comes back alone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.launch.test_serve import PATIENCE_S, Served, Stream, parent, start, until

__all__ = ["parent"]

NUM = 2


def api_pids(served: Served) -> dict[str, int]:
    """Process ids of the API processes, by index."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "tokenspeed_core.server" in words and f"{served.parent}/" in "".join(words):
            found[words[words.index("--index") + 1]] = int(entry.parent.name)
    return found


@pytest.fixture(scope="module")
def serving(thin_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("s")
    run = Path(f"/tmp/ts-test-{os.getpid()}")
    run.mkdir()
    served = start(run, folder / "log", model=str(thin_smollm2), api_processes=NUM)
    try:
        served.until_ready()
        yield served
    finally:
        served.process.terminate()
        served.process.wait(PATIENCE_S)
        until(lambda: not served.children())
        assert not list(run.iterdir())
        run.rmdir()


def owner(pids: dict[str, int], client: httpx.Client) -> str:
    """The index of the process that a client is connected to."""
    stream = client._transport._pool.connections[0]._connection._network_stream  # type: ignore
    port = stream.get_extra_info("socket").getsockname()[1]
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[2].endswith(f":{port:04X}")
    }
    for index, pid in pids.items():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            link = os.readlink(entry) if entry.exists() else ""
            if link.removeprefix("socket:[").rstrip("]") in inodes:
                return index
    raise AssertionError("nobody has the connection")


def connected(served: Served) -> tuple[dict[str, httpx.Client], list[httpx.Client]]:
    """A client connected to each of the processes, and all clients made."""
    by_owner: dict[str, httpx.Client] = {}
    made: list[httpx.Client] = []
    pids = api_pids(served)

    def another() -> bool:
        client = httpx.Client(base_url=served.url, timeout=PATIENCE_S)
        made.append(client)
        client.get("/health")
        by_owner.setdefault(owner(pids, client), client)
        return len(by_owner) == NUM

    until(another)
    return by_owner, made


def test_one_dies_and_the_other_serves_on(serving: Served) -> None:
    before = api_pids(serving)
    assert set(before) == {"0", "1"}
    expected = serving.complete()
    by_owner, made = connected(serving)
    quiet = Stream(serving.url, 200)
    quiet.join()
    streams = [Stream(serving.url, 200) for _ in range(4)]
    os.kill(before["0"], signal.SIGKILL)
    for _ in range(20):  # whoever is left takes new connections at once
        assert serving.complete() == expected
    body = {"model": "tiny", "prompt": "One, two,", "max_tokens": 6, "temperature": 0}
    answer = by_owner["1"].post("/v1/completions", json=body)
    assert answer.json()["choices"][0]["text"] == expected
    for stream in streams:
        stream.join()
        # it ended whole, or with the process that had it
        if stream.error is None:
            assert stream.finish_reasons() == ["length"]
            assert stream.text() == quiet.text()
        else:
            assert quiet.text().startswith(stream.text())
    until(lambda: set(api_pids(serving)) == {"0", "1"})
    after = api_pids(serving)
    assert after["1"] == before["1"]
    assert after["0"] != before["0"]
    for client in made:
        client.close()
    until(serving.is_ready)
    again, made = connected(serving)
    assert set(again) == {"0", "1"}
    for client in made:
        client.close()
    log = serving.log.read_text()
    assert "api 0" in log
    assert "restarting API process 0" in log


def test_one_page_tells_the_series_of_all(serving: Served) -> None:
    by_owner, made = connected(serving)
    body = {"model": "tiny", "prompt": "One, two,", "max_tokens": 3, "ignore_eos": True}
    for index, client in by_owner.items():
        for _ in range(1 + int(index)):
            assert client.post("/v1/completions", json=body).status_code == 200
    # a replaced process counts from zero again, so what it counted before is in no page
    wanted = {"0": 3.0, "1": 6.0}

    def told(client: httpx.Client) -> dict[str, float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        found = {family.name: family for family in families}
        assert len(found["tokenspeed_kv_blocks_total"].samples) == 1
        assert "api_process" not in found["vllm:num_requests_running"].samples[0].labels
        assert set(found["tokenspeed_time_to_first_token_seconds"].samples[0].labels) >= {
            "model_name",
            "api_process",
        }
        return {
            sample.labels["api_process"]: sample.value
            for sample in found["tokenspeed_generation_tokens"].samples
            if sample.name.endswith("_total")
        }

    pages = [told(client) for client in by_owner.values()]
    assert pages[0] == pages[1]
    assert {index: pages[0][index] >= wanted[index] for index in wanted} == {"0": True, "1": True}
    for client in made:
        client.close()


def test_what_one_keeps_the_other_finds(serving: Served) -> None:
    by_owner, made = connected(serving)
    asked = {"model": "tiny", "input": "One, two,", "max_output_tokens": 4, "temperature": 0}
    first = by_owner["0"].post("/v1/responses", json=asked).json()
    assert first["id"].startswith("resp-0-")
    path = f"/v1/responses/{first['id']}"
    for client in by_owner.values():
        assert client.get(path).json() == first
        assert client.get(path + "/input_items").json()["data"][0]["content"] == "One, two,"
    follow = {**asked, "input": "Three.", "previous_response_id": first["id"]}
    usages = []
    for index, client in by_owner.items():
        answer = client.post("/v1/responses", json=follow).json()
        assert answer["id"].startswith(f"resp-{index}-")
        usages.append(answer["usage"]["input_tokens"])
    assert usages[0] == usages[1] > first["usage"]["input_tokens"] + 4
    begun = by_owner["0"].post("/v1/responses", json={**asked, "background": True}).json()
    until(lambda: by_owner["1"].get(f"/v1/responses/{begun['id']}").json()["usage"])
    assert by_owner["1"].delete(path).json()["deleted"] is True
    for client in by_owner.values():
        assert client.get(path).status_code == 404
        assert client.get("/v1/responses/resp-7-none").status_code == 404
    for client in made:
        client.close()


def test_a_taken_port_is_one_line(thin_smollm2: Path, serving: Served, tmp_path: Path) -> None:
    port = int(serving.url.rpartition(":")[2])
    other = start(tmp_path, tmp_path / "log", model=str(thin_smollm2), port=port)
    assert other.process.wait(PATIENCE_S) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 1
    assert f":{port}: Address already in use" in lines[0]
