# SPDX-License-Identifier: MIT
"""Every example runs as a user would run it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.embedders import save_tiny_embedder

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# What a reader should see; a run that prints something else is broken.
EXPECTED = {
    "01_generate": "Paris",
    "02_trace_llama": "all_reduce",
    "03_your_first_model": "9 ops, the same in both",
    "04_tensor_parallel": "sequence parallel      off by",
    "05_scheduler_without_gpu": "cached",
    "06_stream": "",
    "07_session": "CacheReport(host=0, new=",
    "08_simulate": "12 sessions, reuse, pool 100k, host 400k: missed new",
    "09_kv_events": "and so it is: ",
    "10_structured_output": '"on_the_sea"',
    "11_embeddings": "nearest",
    "12_remote_client": "Paris",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(example)]
    if example.stem == "11_embeddings":
        save_tiny_embedder(tmp_path)
        command.append(str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert EXPECTED[example.stem] in done.stdout
    assert example.read_text().count("\n") <= 70, "an example fits on one screen"
