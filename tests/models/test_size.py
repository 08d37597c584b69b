# SPDX-License-Identifier: MIT
"""Families are small: what an author writes is counted, not estimated."""

import ast
import re
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
NOT_FAMILIES = {"__init__", "checkpoint", "config", "family", "registry", "rope"}
FILES = [path for path in sorted(MODELS.glob("*.py")) if path.stem not in NOT_FAMILIES]
COLLECTIVE = re.compile(
    r"all_reduce\(|all_gather\(|reduce_scatter\(|all_to_all\(|\brank\b\(|dist\."
)


def functions(path: Path) -> int:
    """Return the lines of a file's functions that compute: config parsing and names apart."""
    tree = ast.parse(path.read_text())
    apart = ("params", "hf", "caches", "from_hf", "sizes")
    return sum(
        (node.end_lineno or 0) - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name not in apart
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_file_has_at_most_150_lines_of_functions(path: Path) -> None:
    assert functions(path) <= 150


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_model_has_a_collective_or_a_rank(path: Path) -> None:
    code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
    assert not COLLECTIVE.search(re.sub(r'"""(.*?)"""', "", code, flags=re.DOTALL))


def test_a_dense_decoder_is_120_lines_with_15_placed_dims() -> None:
    """Every file that runs for Llama, config parsing and names apart."""
    files = [MODELS / f"{name}.py" for name in ("stream", "attention", "mlp", "layer", "llama")]
    assert sum(map(functions, files)) <= 120
    placed = re.findall(r'Placed\[Tensor, "[^"]*@', "\n".join(f.read_text() for f in files))
    assert 0 < len(placed) <= 15
