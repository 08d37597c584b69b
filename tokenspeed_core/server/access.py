# SPDX-License-Identifier: MIT
"""Which requests a server takes, by path and API key."""

import base64
import binascii
import contextlib
from collections.abc import Callable

import attrs

from ..config import EngineConfig
from ..keyring import DEFAULT_HOLDER, KeyFile, Keyring
from .caller import Caller
from .failure import ApiError

# Probes come from infrastructure that holds no key; every other path, known or not, needs it.
OPEN_PATHS = frozenset({"/health", "/ready"})
# Here a browser asks its user for the key.  It then sends it unasked, so that on a path where
# something can be done another site could have it done.
PAGE_PATHS = frozenset({"/dashboard", "/dashboard/data"})
PAGE_CHALLENGE = 'Basic realm="tokenspeed: any name, an API key as the password", charset="UTF-8"'


@attrs.frozen
class Access:
    """The keys that hold now, none: everybody may call; and the paths that need none."""

    keys: Callable[[], Keyring] = Keyring
    open_paths: frozenset[str] = OPEN_PATHS
    cache_per_key: bool = False

    @classmethod
    def of(cls, config: EngineConfig) -> "Access":
        """Return what a config allows.

        Raises:
            KeyFileError: its file of keys cannot be used.
        """
        single = Keyring.of((DEFAULT_HOLDER, config.api_key)) if config.api_key else Keyring()
        keys: Callable[[], Keyring] = lambda: single  # noqa: E731
        if config.api_keys:
            file = KeyFile(config.api_keys)
            keys = lambda: file.ring() + single  # noqa: E731
        opened = OPEN_PATHS | ({"/metrics"} if config.open_metrics else set())
        return cls(keys, opened, config.cache_per_key)

    def caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        """Return who calls.

        Raises:
            ApiError: the path needs a key, and there is none or a wrong one.
        """
        keys = self.keys()
        if not keys:
            return Caller()
        given = headers.get(b"x-api-key")  # what Anthropic's clients send
        if given is None:
            given = _credential(headers.get(b"authorization", b""), path in PAGE_PATHS)
        holder = keys.holder(given)
        if holder is None:
            if path in self.open_paths:
                return Caller()
            raise ApiError(
                401,
                "missing or wrong API key; send `Authorization: Bearer KEY` or `x-api-key`",
                code="invalid_api_key",
            )
        return Caller(holder, self.cache_per_key)


def _credential(authorization: bytes, is_page: bool) -> bytes:
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return given
    if scheme.lower() == b"basic" and is_page:
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(given, validate=True).partition(b":")[2]
    return b""
