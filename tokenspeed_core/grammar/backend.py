# SPDX-License-Identifier: MIT
"""What compiles grammars and follows them: one of the libraries that do."""

import importlib.util
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .grammar import GrammarError
from .vocabulary import Vocabulary

BACKENDS = ("xgrammar", "llguidance")


class Matcher(Protocol):
    """Follows one answer.  Bit i % 32 of word i // 32 of a mask says that token i may come."""

    def accept(self, token: int) -> bool:
        """Take the next token; False, and nothing changed, if the grammar does not allow it."""
        ...

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the mask of the next token; all ones where the answer is over."""
        ...


class Backend(Protocol):
    """Compiles and opens grammars for one vocabulary."""

    name: str

    def compile(self, form: dict[str, Any]) -> bytes:
        """Return a tree of formats compiled.

        Raises:
            GrammarError: it is malformed, or has a part that is not built.
        """
        ...

    def matcher(self, compiled: bytes) -> Matcher:
        """Return what follows a new answer."""
        ...


def installed(name: str) -> bool:
    """Whether a backend's library is there; it is not loaded."""
    return importlib.util.find_spec(name) is not None


def wanted(name: str, field: str) -> str:
    """Return the backend that `name` asks for, which may be "auto".

    Raises:
        GrammarError: it is not installed.
    """
    if name == "auto":
        name = next((each for each in BACKENDS if installed(each)), BACKENDS[0])
    if not installed(name):
        raise GrammarError(
            field,
            f"needs {name}, which is not installed on the server: "
            f"pip install 'tokenspeed-core[grammar]'",
        )
    return name


def backend(name: str, vocabulary: Vocabulary) -> Backend:
    """Load a backend; the first time that takes seconds."""
    if name == "xgrammar":
        from .xgrammar_backend import XgrammarBackend

        return XgrammarBackend(vocabulary)
    from .llguidance_backend import LlguidanceBackend

    return LlguidanceBackend(vocabulary)
