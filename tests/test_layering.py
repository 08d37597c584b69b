# SPDX-License-Identifier: MIT
"""Which folder may import which: the arrows of the architecture, and no others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": set(),
    "sharding": set(),
    "ipc": set(),
    "scheduler": {"ipc"},
    "ops": {"kernels", "sharding"},
    "models": {"ops", "sharding"},
}
WITHOUT_TORCH = {"ipc", "scheduler"}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "base"}
MAX_LINES = {"tests": 600, "": 400}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Yield (imported folder or top-level module, whether it is one of ours)."""
    depth = len(path.relative_to(ROOT / folder).parts)
    checking: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            checking.update(ast.walk(node))
        if node in checking:
            continue
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((name.split(".")[0], True) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], False
        elif isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], False) for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows(folder: str) -> None:
    files = sources(folder)
    assert files
    for path in files:
        for name, ours in imports(path, folder):
            if ours:
                assert name in MAY_IMPORT[folder], f"{path} imports {name}"
            assert name != "tokenspeed_core", f"{path}: import relatively inside the package"
            if folder in WITHOUT_TORCH:
                assert name != "torch", f"{path} imports torch"
            assert name not in ("pickle", "transformers"), f"{path} imports {name}"


def tracked(*suffixes: str) -> list[Path]:
    folders = [*MAY_IMPORT, "tokenspeed_core", "tests", "examples"]
    return [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and path.is_file() and not path.parent.is_symlink()
    ]


def test_files_are_small_and_named_after_nouns() -> None:
    for path in tracked(".py", ".h", ".cpp"):
        part = path.relative_to(ROOT).parts[0]
        limit = MAX_LINES["tests" if part == "tests" else ""]
        lines = path.read_text().count("\n")
        assert lines <= limit, f"{path} has {lines} lines, over {limit}"
        if path.suffix == ".py":
            assert path.stem not in FORBIDDEN_NAMES, f"{path}: name the noun it defines"


def test_the_package_has_no_pickle() -> None:
    for path in sources("tokenspeed_core"):
        for name, _ in imports(path, "tokenspeed_core"):
            assert name != "pickle", f"{path} imports {name}"
            # `tokenspeed check` compares with transformers where it is installed; nothing needs it.
            oracle = path == ROOT / "tokenspeed_core" / "oracle.py"
            assert name != "transformers" or oracle, f"{path} imports {name}"
