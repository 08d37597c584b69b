# SPDX-License-Identifier: MIT
"""Layouts on one line: `dp=2 tp=(kv=2,rep=4); k:kv g:rep; requests:dp; Hidden=n@tp d`."""

import re

from .error import MeshError
from .layout import Layout

_PLACES = re.compile(r"\w+:[\w+]*(?:\s+\w+:[\w+]*)*")
_OVER = ("requests", "stages")
_TYPE = re.compile(r"([A-Za-z_]\w*)\s*=\s*(\w*\D.*)")


def parse_layout(text: str) -> Layout:
    """Parse a mesh, then parts after `;`: `dim:axes ...` places dims, `Alias=dims` types.

    `dim:` with no axis keeps a dim whole.  Two words are no dims: `requests:dp`, `stages:pp`.

    Raises:
        MeshError: a part has neither form, or the mesh is malformed.
    """
    mesh, *rest = (part.strip() for part in text.split(";"))
    place: dict[str, str] = {}
    types: dict[str, str] = {}
    for part in filter(None, rest):
        if _PLACES.fullmatch(part):
            for dim, _, axes in (word.partition(":") for word in part.split()):
                place[dim] = axes
        elif found := _TYPE.fullmatch(part):
            types[found[1]] = found[2]
        else:
            raise MeshError(
                f"part {part!r} of layout {text!r} is neither dim:axes nor Alias=dims; "
                f"write for instance 'tp=(kv=2,rep=4); k:kv g:rep; Hidden=n@tp d'"
            )
    over = {word: place.pop(word, "") for word in _OVER}
    return Layout(mesh, place, types, **over)


def text_of(layout: Layout) -> str:
    """Return a layout as `parse_layout` reads it."""
    over = {word: axes for word in _OVER if (axes := getattr(layout, word))}
    places = " ".join(f"{dim}:{axes}" for dim, axes in {**layout.place, **over}.items())
    types = (f"{name}={dims}" for name, dims in layout.types.items())
    return "; ".join(part for part in (layout.mesh.text, places, *types) if part)
