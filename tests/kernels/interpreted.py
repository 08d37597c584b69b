# SPDX-License-Identifier: MIT
"""Triton's interpreter, which runs kernels on tensors of the host; import before Triton."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read wherever a kernel is defined

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patched(tensor, scope) -> None:
    """Let loops end at computed bounds: arrays of one element, which NumPy 2.4 takes for none."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched
