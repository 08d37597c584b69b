# SPDX-License-Identifier: MIT
"""The state diagram that the core draws from its table of arrows."""

from pathlib import Path

import pytest

from tokenspeed_core.scheduler._scheduler import SchedulerError, diagram

README = Path(__file__).resolve().parents[2] / "scheduler" / "README.md"


def test_the_readme_shows_the_generated_diagram() -> None:
    shown = README.read_text().split("```mermaid\n")[1].split("```")[0]
    assert shown == diagram("mermaid")


def test_both_formats_draw_the_same_arrows() -> None:
    mermaid = {
        tuple(line.replace(":", " -->").split(" --> "))
        for line in diagram("mermaid").splitlines()
        if ":" in line and "[*]" not in line
    }
    drawn = set()
    for line in diagram("dot").splitlines():
        if "label" in line and "start" not in line:
            source, rest = line.split(" -> ")
            target, label = rest.split(" [label=")
            drawn.add((source.strip(), target, label.strip('"]')))
    assert drawn == {(a.strip(), b, c) for a, b, c in mermaid}
    assert ("Decoding", "Ending", "Finish") in drawn


def test_other_formats_are_refused() -> None:
    with pytest.raises(SchedulerError, match="give mermaid or dot"):
        diagram("png")
