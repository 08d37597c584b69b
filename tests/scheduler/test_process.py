# SPDX-License-Identifier: MIT
"""The real process over real sockets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_peers import VOCAB, Frontend, Run, start_worker
from simulated_worker import expected_tokens

from tokenspeed_core.ipc.messages import FinishReason


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as running:
        yield running


def test_tokens_come_back(run: Run) -> None:
    frontend = Frontend(run)
    worker = start_worker(run)
    prompts = {1: [1, 2, 3], 2: list(range(40)), 3: list(range(100, 250))}
    for request, prompt in prompts.items():
        frontend.submit(request, prompt, 9)
    frontend.until(lambda: len(frontend.reasons) == 3)
    for request, prompt in prompts.items():
        assert frontend.tokens[request] == expected_tokens(prompt, 9, VOCAB)
        assert frontend.reasons[request] == FinishReason.LENGTH
    worker.kill()
    worker.wait()
