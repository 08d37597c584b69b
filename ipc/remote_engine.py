# SPDX-License-Identifier: MIT
"""An engine on another machine: where it listens, and the keys that open the way to it."""

import json
import os
import re
import secrets
from pathlib import Path

import attrs
import zmq

_ENDPOINT = re.compile(r"tcp://([\w.*-]+|\[[\w:.]+\]):\d{1,5}")
_Z85 = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
_FORMS = {
    "public_key": _Z85,
    "secret_key": _Z85,
    "token": re.compile("[0-9a-f]{32}"),
    "endpoint": _ENDPOINT,
}


class CurveKeysError(ValueError):
    """A file of keys cannot be used; the message names it."""


def check_endpoint(endpoint: str) -> str:
    """Return `endpoint`.  Raises CurveKeysError if it is not tcp://HOST:PORT."""
    if not _ENDPOINT.fullmatch(endpoint):
        raise CurveKeysError(f"{endpoint!r} is not tcp://HOST:PORT")
    return endpoint


@attrs.frozen
class CurveKeys:
    """What an engine that listens on tcp:// keeps for itself."""

    public_key: str
    secret_key: str = attrs.field(repr=False)
    token: bytes = attrs.field(repr=False)  # 16 bytes, in every client's hello

    @classmethod
    def create(cls, path: Path | str, endpoint: str) -> "CurveKeys":
        """Write new keys to `path`, and to `path`.client what the clients at `endpoint` need.

        Raises:
            CurveKeysError: the endpoint is no tcp one, or a file is there already.
        """
        check_endpoint(endpoint)
        public, secret = (key.decode() for key in zmq.curve_keypair())
        keys = cls(public, secret, secrets.token_bytes(16))
        shared = {"public_key": public, "token": keys.token.hex()}
        _write(Path(path), {**shared, "secret_key": secret})
        _write(Path(f"{path}.client"), {**shared, "endpoint": endpoint})
        return keys

    @classmethod
    def of(cls, bind: str, path: str) -> "CurveKeys | None":
        """Return the keys of an engine that listens at `bind`, None if that is empty.

        Raises:
            CurveKeysError: there is no file of keys, or nothing that they are for.
        """
        if bool(bind) != bool(path):
            raise CurveKeysError(
                "bind and curve_keys need each other: tcp:// is encrypted or not served"
            )
        return cls.read(path) if bind and check_endpoint(bind) else None

    @classmethod
    def read(cls, path: Path | str) -> "CurveKeys":
        """Read an engine's file.  Raises CurveKeysError."""
        found = _read(path, "public_key", "secret_key", "token")
        return cls(found["public_key"], found["secret_key"], bytes.fromhex(found["token"]))


@attrs.frozen
class RemoteEngine:
    """Where a client connects to, in the place of a run directory."""

    frontend_endpoint: str
    server_key: str
    token: bytes = attrs.field(repr=False)
    is_there: bool = True  # as far as can be known from here

    @classmethod
    def read(cls, path: Path | str) -> "RemoteEngine":
        """Read a client's file, which `tokenspeed keys` wrote.  Raises CurveKeysError."""
        found = _read(path, "public_key", "token", "endpoint")
        return cls(found["endpoint"], found["public_key"], bytes.fromhex(found["token"]))


def _write(path: Path, content: dict[str, str]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CurveKeysError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def _read(path: Path | str, *names: str) -> dict[str, str]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CurveKeysError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CurveKeysError(f"{path} is not JSON") from error
    for name in names:
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, str) or not _FORMS[name].fullmatch(value):
            raise CurveKeysError(f"{path} has no fit {name}; make it with tokenspeed keys")
    return {name: content[name] for name in names}
