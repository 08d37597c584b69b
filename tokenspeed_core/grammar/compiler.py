# SPDX-License-Identifier: MIT
"""Grammars ready for workers: compiled in killable processes, kept by their digest, bounded."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import attrs
import msgspec

from ..detokenizer import TokenText
from .backend import installed, wanted
from .compile_server import Order, Report, framed
from .grammar import Grammar, GrammarBusyError, GrammarError
from .schema_support import schemas_of, unenforced
from .vocabulary import Vocabulary

MAX_KEPT = 512
MAX_KEPT_BYTES = 256 << 20
MAX_WAITING = 64
# What a server does before its first report: it loads libraries.
_START_S = 120.0
_END_S = 2.0


@attrs.define
class _Kept:
    name: str
    size: int
    users: int = 0


class CompilerLostError(RuntimeError):
    """The process that compiles died; the request may be sent again."""


class Compiler:
    """One frontend's compiled grammars, in a folder of its own below the run directory's.

    The process that compiles starts with the first grammar.  A compiled grammar stays while a
    request uses it, so that a worker which takes the place of another finds it.
    """

    def __init__(self, grammars: Path, backend: str, deadline_s: float, memory: int) -> None:
        self._folder = grammars / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._backend = backend
        self._limits = ("--deadline-s", str(deadline_s), "--memory", str(memory))
        self._patience_s = deadline_s * (MAX_WAITING + 1) + _START_S
        self._vocabularies: dict[int, tuple[TokenText, str]] = {}  # by id of the table
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._compiling: dict[str, asyncio.Task[_Kept]] = {}
        self._reports: dict[int, asyncio.Future[Report]] = {}
        self._server: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._number = 0
        self.compiled = 0  # grammars, for metrics
        self.refused = 0

    @contextlib.asynccontextmanager
    async def using(
        self, grammar: Grammar, table: TokenText, size: int, ends: Iterable[int]
    ) -> AsyncIterator[str]:
        """Yield the name by which workers find a compiled grammar, and keep it meanwhile.

        `table` spells the answer's tokens, `size` is that of the logits; `ends` end an answer.

        Raises:
            GrammarError: it is malformed, not built, or too costly.
            GrammarBusyError: too many others are being compiled.
            CompilerLostError: the process died.
        """
        kept = await self._find(grammar, table, size, ends)
        kept.users += 1
        try:
            yield f"{self._folder.name}/{kept.name}"
        finally:
            kept.users -= 1

    async def close(self) -> None:
        """End the process and remove the files."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        server = self._server
        if server is not None and server.returncode is None:
            assert server.stdin is not None
            server.stdin.close()  # it ends its children, and itself
            try:
                await asyncio.wait_for(server.wait(), _END_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    server.kill()
                await server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _find(
        self, grammar: Grammar, table: TokenText, size: int, ends: Iterable[int]
    ) -> _Kept:
        backend = self._choice(grammar)
        vocabulary = await self._vocabulary(grammar, table, size, ends)
        name = f"{backend}-{vocabulary}-{grammar.digest}"
        if name not in self._kept:
            if name not in self._compiling:
                if len(self._compiling) >= MAX_WAITING:
                    raise GrammarBusyError(
                        f"{MAX_WAITING} grammars are being compiled; try again later"
                    )
                order = self._compile(Order(0, backend, vocabulary, grammar.tree, name), grammar)
                self._compiling[name] = task = asyncio.create_task(order)
                task.add_done_callback(self._compiling_ended)
            return await asyncio.shield(self._compiling[name])
        self._kept.move_to_end(name)
        return self._kept[name]

    def _compiling_ended(self, task: asyncio.Task[_Kept]) -> None:
        self._compiling = {name: each for name, each in self._compiling.items() if each is not task}
        if not task.cancelled():
            task.exception()  # whoever still waits raises it

    def _choice(self, grammar: Grammar) -> str:
        """Return the backend for a grammar: in doubt the one that enforces all of it."""
        backend = wanted(self._backend, grammar.field)
        if backend != "xgrammar":
            return backend
        for schema in schemas_of(grammar.form):
            part = unenforced(schema)
            if part is None:
                continue
            if self._backend == "auto" and installed("llguidance"):
                return "llguidance"
            raise GrammarError(
                grammar.field,
                f"has {part}, which xgrammar does not enforce; leave it out, or serve with "
                f"--grammar-backend llguidance",
            )
        return backend

    async def _vocabulary(
        self, grammar: Grammar, table: TokenText, size: int, ends: Iterable[int]
    ) -> str:
        known = self._vocabularies.get(id(table))
        if known is not None:
            return known[1]
        stops = sorted(ends)
        if not stops:
            raise GrammarError(grammar.field, "needs a model with an end token; this has none")
        name = await asyncio.to_thread(self._write, Vocabulary.of(table, size, stops))
        self._vocabularies[id(table)] = (table, name)
        return name

    def _write(self, vocabulary: Vocabulary) -> str:
        data = msgspec.msgpack.encode(vocabulary)
        name = "v" + hashlib.blake2b(data, digest_size=8).hexdigest()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._folder / f"{name}.{secrets.token_hex(4)}"
        unfinished.write_bytes(data)
        unfinished.rename(self._folder / name)
        return name

    async def _compile(self, order: Order, grammar: Grammar) -> _Kept:
        server = await self._running()
        self._number += 1
        number = self._number
        self._reports[number] = asyncio.get_running_loop().create_future()
        assert server.stdin is not None
        try:
            order = msgspec.structs.replace(order, number=number)
            server.stdin.write(framed(msgspec.msgpack.encode(order)))
            async with asyncio.timeout(self._patience_s):
                report = await self._reports[number]
        except (ConnectionError, TimeoutError) as error:
            raise CompilerLostError(f"the grammar compiler is gone ({error!r})") from error
        finally:
            del self._reports[number]
        if report.error:
            self.refused += 1
            raise GrammarError(grammar.field, report.error)
        self.compiled += 1
        kept = self._kept[order.name] = _Kept(order.name, report.size)
        self._make_room(kept)
        return kept

    def _make_room(self, newest: _Kept) -> None:
        spare = [kept for kept in self._kept.values() if kept.users == 0 and kept is not newest]
        total = sum(kept.size for kept in self._kept.values())
        for kept in spare:
            if total <= MAX_KEPT_BYTES and len(self._kept) <= MAX_KEPT:
                break
            total -= kept.size
            del self._kept[kept.name]
            (self._folder / kept.name).unlink(missing_ok=True)

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._server is None or self._server.returncode is not None:
                self._server = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tokenspeed_core.grammar.compile_server"),
                    *(str(self._folder), *self._limits),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
                self._listening = asyncio.create_task(self._listen(self._server))
            return self._server

    async def _listen(self, server: asyncio.subprocess.Process) -> None:
        assert server.stdout is not None
        try:
            while True:
                size = int.from_bytes(await server.stdout.readexactly(4), "little")
                data = await server.stdout.readexactly(size)
                report = msgspec.msgpack.decode(data, type=Report)
                waiting = self._reports.get(report.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(report)
        except asyncio.IncompleteReadError:
            await server.wait()
            for waiting in self._reports.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(f"it ended with {server.returncode}"))
