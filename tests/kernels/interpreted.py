# SPDX-License-Identifier: MIT
"""Triton's interpreter, which runs kernels on tensors of the host; `tests/conftest.py` asks for it.

Importing this lets loops end at computed bounds: the interpreter has them as arrays of one element,
which NumPy 2.4 takes for no numbers.
"""

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patched(tensor, scope) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched
