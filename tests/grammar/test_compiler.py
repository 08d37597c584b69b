# SPDX-License-Identifier: MIT
"""Compilation in killable processes: what is costly is refused in time, and harms nobody."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tokenspeed_core.grammar import backend as backends
from tokenspeed_core.grammar import compiler as module
from tokenspeed_core.grammar import grammar as form
from tokenspeed_core.grammar.compiler import Compiler
from tokenspeed_core.grammar.grammar import Format, Grammar, GrammarError
from tokenspeed_core.grammar.library import Library, LibraryError
from tokenspeed_core.text_codec import TextCodec

# Its process loads libraries for seconds: one for all tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

HUGE = form.ebnf('root ::= "' + "a" * 500_000 + '"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grammars")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler(folder: Path) -> AsyncIterator[Compiler]:
    compiler = Compiler(folder, backend="auto", deadline_s=1.0, memory=1 << 30)
    yield compiler
    await compiler.close()


async def name_of(compiler: Compiler, codec: TextCodec, made: Format) -> str:
    size, ends = codec.tokenizer.vocab_size, codec.tokenizer.eos_ids
    async with compiler.using(Grammar.of(made, "regex"), codec.table, size, ends) as name:
        return name


async def test_compiled_once_and_found_by_workers(
    compiler: Compiler, codec: TextCodec, folder: Path
) -> None:
    made, before = form.json_object(), compiler.compiled
    names = await asyncio.gather(*(name_of(compiler, codec, made) for _ in range(5)))
    assert len(set(names)) == 1
    assert compiler.compiled == before + 1
    matcher, size = Library(folder).matcher(names[0])
    assert size == codec.tokenizer.vocab_size
    assert matcher.accept(codec.tokenizer.encode("{", add_special=False)[0])
    for wrong in ("x/../../token", names[0] + "0", "nobody/xgrammar-v00-00"):
        with pytest.raises(LibraryError):
            Library(folder).matcher(wrong)


async def test_what_is_costly_is_refused_and_others_go_on(
    compiler: Compiler, codec: TextCodec
) -> None:
    await name_of(compiler, codec, form.regex("a"))  # the process is up
    begun = time.monotonic()
    huge = [asyncio.create_task(name_of(compiler, codec, HUGE)) for _ in range(3)]
    await name_of(compiler, codec, form.regex("b"))
    for result in await asyncio.gather(*huge, return_exceptions=True):
        assert isinstance(result, GrammarError)
        assert result.field == "regex"
        assert "simplify" in str(result)
    assert time.monotonic() - begun < 30  # the deadline, not the minute that it would take
    assert await name_of(compiler, codec, form.regex("c"))


async def test_memory_is_capped(folder: Path, codec: TextCodec) -> None:
    compiler = Compiler(folder, backend="xgrammar", deadline_s=60.0, memory=1 << 26)
    try:
        with pytest.raises(GrammarError, match=r"MiB|crashed"):
            await name_of(compiler, codec, HUGE)
        assert await name_of(compiler, codec, form.regex("a"))
    finally:
        await compiler.close()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (form.json_schema({"$ref": "#"}), "ircular"),
        (form.ebnf('root ::= "a"\nroot ::= "b"'), "root"),
        (form.json_schema({"type": "object", "if": {}, "not": {"type": "string"}}), "not|if"),
    ],
    ids=["recursive", "duplicate", "unbuilt"],
)
async def test_malformed_grammars_are_refused(
    compiler: Compiler, codec: TextCodec, made: Format, said: str
) -> None:
    with pytest.raises(GrammarError, match=said):
        await name_of(compiler, codec, made)


async def test_a_pattern_that_explodes_elsewhere_does_not_here(
    compiler: Compiler, codec: TextCodec
) -> None:
    assert await name_of(compiler, codec, form.regex("(a+)+$"))


async def test_a_schema_goes_to_who_enforces_it(
    compiler: Compiler, codec: TextCodec, folder: Path
) -> None:
    both = {"allOf": [{"type": "integer"}, {"minimum": 5}]}
    assert "/llguidance-" in await name_of(compiler, codec, form.json_schema(both))
    assert "/xgrammar-" in await name_of(compiler, codec, form.json_object())
    only = Compiler(folder, backend="xgrammar", deadline_s=5.0, memory=1 << 30)
    with pytest.raises(GrammarError, match=r"allOf.*--grammar-backend"):
        await name_of(only, codec, form.json_schema(both))


async def test_the_compiler_may_die(compiler: Compiler, codec: TextCodec) -> None:
    await name_of(compiler, codec, form.regex("a"))
    assert compiler._server is not None
    compiler._server.kill()
    await compiler._server.wait()
    assert await name_of(compiler, codec, form.regex("d"))


async def test_what_is_kept_is_bounded(
    compiler: Compiler, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    size, ends = codec.tokenizer.vocab_size, codec.tokenizer.eos_ids
    used = Grammar.of(form.regex("used"))
    async with compiler.using(used, codec.table, size, ends) as name:
        names = [await name_of(compiler, codec, form.regex(str(each))) for each in range(4)]
        kept = {path.name for path in compiler._folder.iterdir() if not path.name.startswith("v")}
        assert kept == {name.split("/")[1], names[-1].split("/")[1]}


async def test_a_grammar_has_a_bound() -> None:
    with pytest.raises(GrammarError, match="at most"):
        Grammar.of(form.constant("x" * (1 << 20)))


async def test_what_is_not_installed_is_named(
    compiler: Compiler, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: False)
    with pytest.raises(GrammarError, match=r"pip install 'tokenspeed-core\[grammar\]'"):
        await name_of(compiler, codec, form.regex("a"))
