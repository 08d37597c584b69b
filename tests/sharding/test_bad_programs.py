# SPDX-License-Identifier: MIT
"""Every bad program is refused on the author's line, and the fixes offered for it type-check."""

import importlib.util
import linecache
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bad_programs import PROGRAMS, Bad

from tokenspeed_core.ops import LayerKV, declared_batch
from tokenspeed_core.sharding import Layout, Plan, ShardingError, build, declare, trace
from tokenspeed_core.sharding.fix import Fix
from tokenspeed_core.sharding.layout_text import parse_layout


def imported(source: str, path: Path) -> ModuleType:
    path.write_text(source)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # annotations are evaluated by module name
    exec(compile(source, str(path), "exec"), vars(module))
    return module


def compiled(source: str, path: Path, layout: Layout) -> Plan:
    module = imported(source, path)
    params = declare(module.Weights, module.SIZES, torch.float32)
    caches = (declare(LayerKV, module.SIZES, torch.float32),)
    traced = trace(module.forward, params, caches, declared_batch())
    return build(
        traced,
        layout,
        name=path.stem,
        ops="tokenspeed_core.ops",
        params=params,
        caches=caches,
        constants={},
    )


def refused(bad: Bad, path: Path) -> ShardingError:
    with pytest.raises(ShardingError) as raised:
        compiled(bad.source, path, parse_layout(bad.layout))
    return raised.value


def type_checks(bad: Bad, fix: Fix, path: Path) -> bool:
    layout = parse_layout(bad.layout)
    source = bad.source
    if fix.place:
        layout = layout.but(place=dict(fix.place))
    elif fix.mesh:
        layout = layout.but(mesh=fix.mesh)
    else:
        source = fix.applied(source)
    try:
        compiled(source, path, layout)
    except ShardingError as error:
        print(f"{bad.name}: {fix}\n  still: {error}")
        return False
    return True


@pytest.mark.parametrize("bad", PROGRAMS, ids=lambda bad: bad.name)
def test_a_bad_program_is_refused_on_its_line(bad: Bad, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    error = refused(bad, path)
    marked = [n for n, text in enumerate(bad.source.splitlines(), 1) if text.endswith("#!")]
    assert len(marked) == 1
    text = str(error)
    assert text.startswith(f"program.py:{marked[0]}: "), text
    assert all(word in text for word in bad.words), text
    assert error.fixes or "fix" in text, text
    assert 1 <= len(error.fixes) <= 4, text


def test_the_corpus_is_large_and_its_fixes_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the fixes that are edits, nine in ten make the program type-check."""
    assert len({bad.source + bad.layout for bad in PROGRAMS}) == len(PROGRAMS) >= 100
    tried = worked = helped = 0
    for bad in PROGRAMS:
        error = refused(bad, tmp_path / "program.py")
        applicable = [fix for fix in error.fixes if fix.applies or fix.place or fix.mesh]
        good = [type_checks(bad, fix, tmp_path / "program.py") for fix in applicable]
        tried, worked, helped = tried + len(good), worked + sum(good), helped + any(good)
    with capsys.disabled():
        print(
            f"\n{len(PROGRAMS)} bad programs: {worked} of {tried} edits offered type-check; "
            f"{helped} programs have one that does"
        )
    assert worked >= 0.9 * tried
    assert helped >= 0.5 * len(PROGRAMS)
