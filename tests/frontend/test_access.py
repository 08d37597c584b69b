# SPDX-License-Identifier: MIT
"""Keys from a file, what they open, whose sessions are whose, and certificates."""

import asyncio
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trustme

from tests.frontend.browser import find_browser, rendered
from tests.frontend.conftest import HttpServer, listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.test_api_process import api_process
from tokenspeed_core import keyring
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.config import ConfigError, EngineConfig
from tokenspeed_core.ipc.messages import SessionAction
from tokenspeed_core.keyring import KeyFile, KeyFileError, Keyring
from tokenspeed_core.server.access import Access
from tokenspeed_core.tls import server_context

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ALICE = {"authorization": "Bearer alice-key-1"}
BOB = {"x-api-key": "bob-key-00"}
KEYS = "# who may call\nalice:alice-key-1\nalice:alice-key-2\n\nbob:bob-key-00\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_holds_several_keys_by_name(tmp_path: Path) -> None:
    ring = Keyring.read(write(tmp_path / "keys", KEYS))
    assert [ring.holder(key) for key in (b"alice-key-1", b"alice-key-2", b"bob-key-00")] == [
        "alice",
        "alice",
        "bob",
    ]
    for wrong in (b"", b"alice", b"alice-key-1 ", b"alice-key-", b"alice:alice-key-1", b"\xff" * 9):
        assert ring.holder(wrong) is None
    assert not Keyring()
    assert Keyring().holder(b"") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("alice alice-key-1", ":1:"),
        ("a/b:alice-key-1", ":1:"),
        ("\nalice:short", ":2:"),
        ("alice:schlüssel-1", ":1:"),
        ("alice:alice-key-1\nbob:alice-key-1", "alice has the same key"),
        ("x" * (keyring.MAX_FILE_BYTES + 1), "larger"),
    ],
)
def test_a_bad_file_is_refused_without_showing_a_key(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "keys", text)
    with pytest.raises(KeyFileError, match=words) as caught:
        Keyring.read(path)
    assert str(path) in str(caught.value)
    assert "key-1" not in str(caught.value)
    with pytest.raises(KeyFileError, match="cannot be read"):
        Keyring.read(tmp_path / "missing")


def test_a_changed_file_is_read_again_and_a_bad_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keyring, "_CHECK_S", 0.0)
    path = write(tmp_path / "keys", KEYS)
    file = KeyFile(path)
    assert file.ring().holder(b"bob-key-00") == "bob"
    write(path, "alice:alice-key-3\n")
    assert file.ring().holder(b"bob-key-00") is None
    assert file.ring().holder(b"alice-key-3") == "alice"
    write(path, "garbage\n")
    os.utime(path, ns=(1, 1))
    assert file.ring().holder(b"alice-key-3") == "alice"
    path.unlink()
    assert file.ring().holder(b"alice-key-3") == "alice"
    assert "the former keys stand" in caplog.text


async def test_keys_open_everything_and_metrics_may_be_opened(
    scheduler: ScriptedScheduler, codec: TextCodec, tmp_path: Path
) -> None:
    path = write(tmp_path / "keys", KEYS)
    config = EngineConfig(api_keys=str(path), api_key="single-key", open_metrics=True)
    async with (
        listening(scheduler, codec, Access.of(config)) as http,
        httpx.AsyncClient(base_url=http.url) as client,
    ):
        single = {"authorization": "Bearer single-key"}
        for headers in (ALICE, BOB, single):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        for path in ("/metrics/", "//metrics", "/metrics/../v1/models", "/server_info"):
            raw = httpx.URL(http.url, raw_path=path.encode())
            answer = await client.get(raw)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        page = (await client.get("/server_info", headers=ALICE)).text
        assert "single-key" not in page
        assert "keys" not in page.replace("max_", "")


async def test_a_browser_asks_for_the_key_of_the_status_page(
    scheduler: ScriptedScheduler, codec: TextCodec, tmp_path: Path
) -> None:
    access = Access(lambda: Keyring.of(("alice", "alice-key-1")))
    async with (
        listening(scheduler, codec, access) as http,
        httpx.AsyncClient(base_url=http.url) as client,
    ):
        for path in ("/dashboard", "/dashboard/data"):
            asked = await client.get(path)
            assert asked.status_code == 401
            assert asked.headers["www-authenticate"].startswith("Basic realm=")
            assert (await client.get(path, auth=("any", "alice-key-1"))).status_code == 200
            for auth in (("alice-key-1", ""), ("alice", "wrong"), ("", "")):
                assert (await client.get(path, auth=auth)).status_code == 401
            for word in (
                "Basic",
                "Basic ?",
                "Basic YQ",
                "Digest YTph",
                "Bearer YTphbGljZS1rZXktMQ==",
            ):
                answer = await client.get(path, headers={"authorization": word})
                assert answer.status_code == 401, word
        # what a browser sends unasked opens nothing else
        for path in ("/metrics", "/v1/models", "/dashboard/"):
            assert (await client.get(path, auth=("any", "alice-key-1"))).status_code == 401
        if browser := find_browser():
            url = http.url.replace("://", "://any:alice-key-1@") + "/dashboard"
            shown = await asyncio.to_thread(rendered, browser, url, tmp_path / "profile")
            assert re.search(r"blocks in use, \d+ kept", shown)


async def test_sessions_and_salts_belong_to_a_key(
    scheduler: ScriptedScheduler, codec: TextCodec, tmp_path: Path
) -> None:
    keys = str(write(tmp_path / "keys", KEYS))
    body = {**CHAT, "session_id": "talk", "cache_salt": "s"}
    for cache_per_key in (False, True):
        access = Access.of(EngineConfig(api_keys=keys, cache_per_key=cache_per_key))
        async with (
            listening(scheduler, codec, access) as http,
            httpx.AsyncClient(base_url=http.url) as client,
        ):
            for headers in (ALICE, BOB):
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200
            long = {**body, "session_id": "x" * 512, "cache_salt": "y" * 512}
            for headers in (ALICE, BOB):
                answer = await client.post("/v1/chat/completions", json=long, headers=headers)
                assert answer.status_code == 200
            # with another's name for a prefix of the own, one is still in one's own
            stolen = {**body, "session_id": "alice/talk"}
            await client.post("/v1/chat/completions", json=stolen, headers=BOB)
            sent = [(each.session, each.salt) for each in scheduler.submits]
            names, salts = [name for name, _ in sent], [salt for _, salt in sent]
            assert names[:2] == ["alice/talk", "bob/talk"]
            assert names[4] == "bob/alice/talk"
            assert len(set(names)) == 5
            if cache_per_key:
                assert salts[:2] == [b"alice/s", b"bob/s"]
                assert len(set(salts)) == 4
            else:
                assert len(set(salts)) == 2
            await client.delete("/v1/sessions/talk", headers=BOB)
            async with asyncio.timeout(10):
                while not scheduler.hints:
                    await asyncio.sleep(0.01)
            assert [(hint.session, hint.action) for hint in scheduler.hints] == [
                ("bob/talk", SessionAction.END)
            ]
        scheduler.submits.clear()
        scheduler.hints.clear()


async def test_without_named_keys_names_stay_as_they_are(http: HttpServer) -> None:
    async with httpx.AsyncClient(base_url=http.url) as client:
        await client.post("/v1/chat/completions", json={**CHAT, "session_id": "talk"})
    assert http.scheduler.submits[-1].session == "talk"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certificates(authority: trustme.CA, folder: Path) -> dict[str, str]:
    server = authority.issue_cert("127.0.0.1", "localhost")
    server.private_key_pem.write_to_path(str(folder / "key.pem"))
    for index, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(str(folder / "cert.pem"), append=index > 0)
    return {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}


def context(authority: trustme.CA, *, has_certificate: bool) -> ssl.SSLContext:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    if has_certificate:
        authority.issue_cert("client@example.org").configure_cert(made)
    return made


async def test_https_and_mutual_tls_in_the_real_process(
    scheduler: ScriptedScheduler, tmp_path: Path, authority: trustme.CA
) -> None:
    settings = certificates(authority, tmp_path)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusting = context(authority, has_certificate=False)
    async with api_process(scheduler, tmp_path, settings=settings, verify=trusting) as api:
        assert api.url.startswith("https://")
        async with httpx.AsyncClient(base_url=api.url, verify=trusting) as client:
            body = {**CHAT, "model": "m"}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient() as stranger:
                await stranger.get(api.url + "/health")
        with pytest.raises(httpx.RemoteProtocolError):
            async with httpx.AsyncClient() as plain:
                await plain.get(api.url.replace("https", "http") + "/health")
    settings["ssl_ca_certs"] = str(tmp_path / "ca.pem")
    known = context(authority, has_certificate=True)
    async with api_process(scheduler, tmp_path, settings=settings, verify=known) as api:
        async with httpx.AsyncClient(base_url=api.url, verify=known) as client:
            assert (await client.get("/v1/models")).status_code == 200
        foreign = context(authority, has_certificate=False)
        trustme.CA().issue_cert("client@example.org").configure_cert(foreign)
        for refused in (trusting, foreign):
            # TLS 1.3 tells a client without a certificate so only when it reads
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
                async with httpx.AsyncClient(verify=refused) as client:
                    await client.get(api.url + "/health")


def test_bad_certificates_are_one_line(tmp_path: Path, authority: trustme.CA) -> None:
    good = certificates(authority, tmp_path)
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("x").private_key_pem.write_to_path(str(other))
    assert server_context(EngineConfig()) is None
    assert server_context(EngineConfig(**good)) is not None
    for change, word in (
        ({"ssl_certfile": "/no/such"}, "No such file"),
        ({"ssl_keyfile": str(other)}, "mismatch"),
        ({"ssl_keyfile": str(write(tmp_path / "bad", "x"))}, "PEM"),
        ({"ssl_ca_certs": str(tmp_path / "bad")}, "ssl_ca_certs"),
        ({"ssl_certfile": ""}, "ssl_certfile is not"),
    ):
        with pytest.raises(ConfigError, match=f"(?is){word}") as caught:
            server_context(EngineConfig(**{**good, **change}))
        assert "\n" not in str(caught.value)


def test_a_start_with_bad_keys_ends_before_anything_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokenspeed_core", "serve", "smollm2", "--api-keys"]
    command += [str(write(tmp_path / "keys", "alice=alice-key-1"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert (done.stderr.count("\n"), "keys:1: must be NAME:KEY" in done.stderr) == (1, True)
