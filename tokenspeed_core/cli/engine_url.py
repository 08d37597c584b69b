# SPDX-License-Identifier: MIT
"""How commands that look at a running server are told which one, and ask it."""

import argparse
import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

_PATIENCE_S = 120.0


class UnreachableError(RuntimeError):
    """There is no server at the address, or it refuses to answer."""


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the address and the key."""
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY", ""),
        metavar="KEY",
        help="its key (default: OPENAI_API_KEY of the environment)",
    )


def ask(arguments: argparse.Namespace, method: str, path: str) -> bytes:
    """Return the body of the server's answer.

    Raises:
        UnreachableError: there is none, or it is an error.
    """
    url = urlsplit(arguments.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UnreachableError(f"--url {arguments.url} is no address such as http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=_PATIENCE_S)
    headers = {"authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    try:
        connection.request(method, url.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
    except OSError as error:
        raise UnreachableError(f"no server answers at {arguments.url}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise UnreachableError(f"{arguments.url}{path}: {answer.status} {_reason(body)}")
    return body


def _reason(body: bytes) -> str:
    try:
        told: Any = json.loads(body)
        return str(told["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
