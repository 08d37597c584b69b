# SPDX-License-Identifier: MIT
"""What the package must not be able to do: run what it reads, or fetch what a request names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("tokenspeed_core", "sharding", "kernels", "ops", "models", "ipc", "scheduler")
# modules that turn bytes into code or objects
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# modules and calls that open a connection to an address from a request
FETCHING = {"urllib.request", "requests", "httpx", "aiohttp", "urllib3", "ftplib", "socketserver"}
UNSAFE_CALLS = {"eval", "exec", "load_module", "broadcast_object_list", "all_gather_object"}
# who may, and why
ALLOWED = {
    ("sharding/plan.py", "exec"),  # the program that this process has just emitted itself
    ("sharding/recheck.py", "exec"),  # the same, read again
    ("tokenspeed_core/unix_connection.py", "http.client"),  # to a path in the run directory
    ("tokenspeed_core/engine_watch.py", "http.client"),  # the exceptions of it
    ("tokenspeed_core/server/siblings.py", "http.client"),  # likewise
    ("tokenspeed_core/cli/engine_url.py", "http.client"),  # a command: the user gives the address
    ("tokenspeed_core/bench/serve.py", "httpx"),  # likewise
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not path.resolve().is_relative_to(ROOT / folder):
                continue  # a symlink to one of the others
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def used(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield called if called in ("torch.load", "eval", "exec") else called.split(".")[-1]
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "trust_remote_code"):
                    yield keyword.arg


FORBIDDEN = UNSAFE | FETCHING | {"http.client", "torch.load", "allow_pickle", "trust_remote_code"}


def test_nothing_runs_what_it_reads_or_fetches_what_a_request_names() -> None:
    found = set()
    for name, tree in sources():
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        words = set(used(tree)) & FORBIDDEN | calls & UNSAFE_CALLS
        found |= {(name, word) for word in words}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "eval(text)", "exec(text)", "torch.load(path)",
     "np.load(path, allow_pickle=True)", "import urllib.request", "from urllib import request"],
)  # fmt: skip
def test_the_search_finds_them(source: str) -> None:
    tree = ast.parse(source)
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert set(used(tree)) & FORBIDDEN or calls & UNSAFE_CALLS


def test_the_sources_are_all_there() -> None:
    assert len(list(sources())) > 200
