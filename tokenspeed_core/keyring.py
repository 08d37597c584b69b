# SPDX-License-Identifier: MIT
"""The API keys that a server takes, by the names of those who hold them."""

import hashlib
import hmac
import logging
import os
import re
import time
from pathlib import Path

import attrs

from .config import ConfigError

log = logging.getLogger(__name__)

DEFAULT_HOLDER = "default"  # who holds the one key of --api-key
MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MIN_KEY_CHARS = 8
_CHECK_S = 1.0


class KeyFileError(ConfigError):
    """A file of keys cannot be used; the message names the file and the line."""


@attrs.frozen
class Keyring:
    """Digests of keys with their holders' names; a holder may have several, to change them."""

    _holders: tuple[tuple[bytes, str], ...] = ()

    @classmethod
    def of(cls, *keys: tuple[str, str]) -> "Keyring":
        """Return the ring of (name, key) pairs."""
        return cls(tuple((_digest(key.encode()), name) for name, key in keys))

    @classmethod
    def read(cls, path: Path | str) -> "Keyring":
        """Read a file of lines `NAME:KEY`; empty lines and those that begin with # are skipped.

        Raises:
            KeyFileError: it cannot be read, holds no key, or has a line that is no such pair.
        """
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from error
        if len(raw) > MAX_FILE_BYTES:
            raise KeyFileError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        holders: dict[bytes, str] = {}
        for number, line in enumerate(raw.decode(errors="replace").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, _, key = text.partition(":")
            # the line is not shown: it may hold a key
            if not _NAME.fullmatch(name) or len(key) < _MIN_KEY_CHARS or not key.isascii():
                raise KeyFileError(
                    f"{path}:{number}: must be NAME:KEY, a name of letters, digits and . _ -, and "
                    f"an ASCII key of at least {_MIN_KEY_CHARS} characters"
                )
            digest = _digest(key.encode())
            if holders.setdefault(digest, name) != name:
                raise KeyFileError(f"{path}:{number}: {holders[digest]} has the same key")
        if not holders:
            raise KeyFileError(f"{path}: holds no key; write one NAME:KEY a line")
        return cls(tuple(holders.items()))

    def __bool__(self) -> bool:
        return bool(self._holders)

    def __add__(self, other: "Keyring") -> "Keyring":
        return Keyring(self._holders + other._holders)

    def holder(self, key: bytes) -> str | None:
        """Return whose key it is; how long that takes does not tell how near a guess came."""
        digest = _digest(key)
        found = None
        for each, name in self._holders:
            if hmac.compare_digest(each, digest):
                found = name
        return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class KeyFile:
    """A file of keys that is read again when it changes."""

    def __init__(self, path: Path | str) -> None:
        """Read the file.  Raises KeyFileError as `Keyring.read` does."""
        self._path = Path(path)
        self._seen = self._mark()
        self._checked = time.monotonic()
        self._ring = Keyring.read(self._path)

    def ring(self) -> Keyring:
        """Return the keys that hold now; a file that went bad leaves the former ones standing."""
        now = time.monotonic()
        if now - self._checked >= _CHECK_S:
            self._checked = now
            mark = self._mark()
            if mark != self._seen:
                self._seen = mark
                try:
                    self._ring = Keyring.read(self._path)
                    log.info("read the API keys of %s again", self._path)
                except KeyFileError as error:
                    log.error("%s; the former keys stand", error)
        return self._ring

    def _mark(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_size, status.st_ino)
