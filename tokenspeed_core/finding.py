# SPDX-License-Identifier: MIT
"""Findings: what `tokenspeed check` tells of a model."""

import attrs


@attrs.frozen
class Finding:
    """One thing that was checked: whether it holds, and the figure that says so."""

    what: str
    holds: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what:<44} {self.detail}"
