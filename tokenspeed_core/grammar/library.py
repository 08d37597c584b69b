# SPDX-License-Identifier: MIT
"""A worker's compiled grammars, opened on threads of its own."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from .backend import Backend, Matcher, backend
from .vocabulary import Vocabulary

MAX_OPEN = 128
_NAME = re.compile(r"([\w-]+)/((xgrammar|llguidance)-(v[0-9a-f]+)-[0-9a-f]+)")

Result = TypeVar("Result")


class LibraryError(RuntimeError):
    """A grammar that a frontend named is not there."""


class Library:
    """Opens what frontends compiled below a folder.

    `submit` runs functions beside the worker's steps: the libraries release the interpreter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._backends: dict[tuple[str, str], tuple[Backend, int]] = {}
        self._compiled: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 2)), "grammar")

    def submit(self, function: Callable[[], Result]) -> "Future[Result]":
        """Run a function on a thread."""
        return self._pool.submit(function)

    def matcher(self, name: str) -> tuple[Matcher, int]:
        """Return what follows a new answer in a grammar, and the tokens of a mask.

        Raises:
            LibraryError: there is no such grammar.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise LibraryError(f"{name[:80]!r} is no name of a compiled grammar")
        owner, file, kind, words = match.groups()
        with self._lock:
            try:
                library, size = self._backend(kind, owner, words)
                compiled = self._compiled.get(name)
                if compiled is None:
                    compiled = (self._folder / owner / file).read_bytes()
            except (OSError, msgspec.DecodeError, ImportError) as error:
                raise LibraryError(f"the grammar {name} cannot be read: {error}") from error
            self._compiled[name] = compiled
            self._compiled.move_to_end(name)
            if len(self._compiled) > MAX_OPEN:
                self._compiled.popitem(last=False)
        return library.matcher(compiled), size

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _backend(self, kind: str, owner: str, words: str) -> tuple[Backend, int]:
        # Frontends of one model have one vocabulary: its name tells what is in it.
        key = (kind, words)
        if key not in self._backends:
            data = (self._folder / owner / words).read_bytes()
            vocabulary = msgspec.msgpack.decode(data, type=Vocabulary)
            self._backends[key] = backend(kind, vocabulary), vocabulary.size
        return self._backends[key]
