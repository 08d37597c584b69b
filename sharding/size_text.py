# SPDX-License-Identifier: MIT
"""Bytes for people."""


def size_text(count: float) -> str:
    """Return a number of bytes in decimal units, four digits: `1.049 MB`."""
    for unit in ("B", "KB", "MB"):
        if abs(count) < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
