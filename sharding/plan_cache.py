# SPDX-License-Identifier: MIT
"""The plan cache: compiled plan tables in a directory, readable programs and their facts.

`<key>.py` is the emitted program of the smallest steps, `<key>-from-N.py` that of steps of N tokens
and more; `<key>.plan` holds, as msgpack, what else a rank needs, and the digest of them all.
Whatever does not match its digest, edited programs included, is compiled again and rewritten: to
run an edited program, re-verify it and load it by hand (`recheck`).
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import msgspec
import torch
from torch import Tensor

from .mesh import Mesh
from .plan import CacheShape, Part, RankPlan
from .plan_table import PlanTable
from .storage import Pack
from .way import Way

_log = logging.getLogger(__name__)


class PlanFacts(msgspec.Struct, frozen=True):
    """The part of a table that is neither its programs nor made again from the model's config."""

    name: str
    mesh: Mesh
    groups: dict[str, tuple[tuple[int, ...], ...]]
    storage: tuple[Pack, ...]
    cache: tuple[tuple[CacheShape, ...], ...]
    parts: tuple[Part, ...] = ()
    starts: tuple[int, ...] = (0,)
    ways: tuple[Way, ...] = (Way(),)


class PlanFile(msgspec.Struct, frozen=True):
    """A `.plan` file: encoded `PlanFacts` and the SHA-256 of the key, the programs and them."""

    digest: bytes
    facts: bytes


@attrs.frozen
class PlanCache:
    """Plan tables by key in `directory`, which is made when the first one is kept.

    Ranks that start together may write the same key at once: each file is replaced as a whole,
    and equal keys have equal contents.
    """

    directory: Path

    def get(self, key: str, caches: Any, constants: Mapping[str, Tensor]) -> PlanTable | None:
        """Return the plans of `key` with the declared `caches` and `constants`, if all is whole."""
        try:
            kept = _FILE.decode(self._file(key, "plan").read_bytes())
            facts = _FACTS.decode(kept.facts)
            files = [self._program(key, start) for start in facts.starts]
            sources = [file.read_text(encoding="utf-8") for file in files]
            if kept.digest != _digest(key, sources, kept.facts):
                raise ValueError("its digest is another")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # msgspec's and Unicode's errors are ValueErrors
            _log.warning("plan %s in %s is compiled again: %s", key[:12], self.directory, error)
            return None
        plans = [
            RankPlan(
                name=facts.name,
                mesh=facts.mesh,
                groups=facts.groups,
                source=source,
                storage=facts.storage,
                cache=facts.cache,
                caches=caches,
                constants=constants,
                parts=facts.parts,
            )
            for source in sources
        ]
        return PlanTable(starts=facts.starts, plans=tuple(plans), ways=facts.ways)

    def put(self, key: str, table: PlanTable) -> None:
        """Keep a table under `key`; a directory that cannot be written is logged, not fatal."""
        plan = table.first
        facts = _ENCODER.encode(
            PlanFacts(
                plan.name,
                plan.mesh,
                dict(plan.groups),
                plan.storage,
                plan.cache,
                plan.parts,
                table.starts,
                table.ways,
            )
        )
        sources = [each.source for each in table.plans]
        kept = PlanFile(_digest(key, sources, facts), facts)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for start, source in zip(table.starts, sources, strict=True):
                self._replace(self._program(key, start), source.encode())
            self._replace(self._file(key, "plan"), _ENCODER.encode(kept))
        except OSError as error:
            _log.warning("plan %s is not kept in %s: %s", key[:12], self.directory, error)

    def table(
        self,
        key: str,
        caches: Any,
        constants: Mapping[str, Tensor],
        compile: Callable[[], PlanTable],
    ) -> PlanTable:
        """Return the plans of `key`, compiled and kept if they are not here."""
        found = self.get(key, caches, constants)
        if found is None:
            found = compile()
            self.put(key, found)
        return found

    def _program(self, key: str, start: int) -> Path:
        return self._file(f"{key}-from-{start}" if start else key, "py")

    def _file(self, key: str, kind: str) -> Path:
        return self.directory / f"{key}.{kind}"

    def _replace(self, file: Path, content: bytes) -> None:
        handle, scratch = tempfile.mkstemp(dir=self.directory, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(scratch, file)
        except OSError:
            os.unlink(scratch)
            raise


def sources_digest(directories: tuple[Path, ...]) -> str:
    """Return the SHA-256 of every Python file in `directories`, by name and content."""
    digest = hashlib.sha256()
    for directory in directories:
        for file in sorted(directory.glob("*.py")):
            content = file.read_bytes()
            digest.update(f"{directory.name}/{file.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _digest(key: str, sources: Sequence[str], facts: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    for source in sources:
        digest.update(f" {len(source)}\n{source}".encode())
    digest.update(facts)
    return digest.digest()


def _encoded(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"{type(value).__name__} {value!r} has no form in a plan file")


def _decoded(kind: type, value: Any) -> Any:
    found = getattr(torch, value, None) if kind is torch.dtype else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return found


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encoded)
_FILE = msgspec.msgpack.Decoder(PlanFile)
_FACTS = msgspec.msgpack.Decoder(PlanFacts, dec_hook=_decoded)
