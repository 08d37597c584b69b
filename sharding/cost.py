# SPDX-License-Identifier: MIT
"""What a program's collectives cost: which there are, their bytes and predicted time."""

from collections.abc import Iterator

from .program import Code, Loop, Move, Program


def moves(code: Code) -> Iterator[tuple[Move, int]]:
    """Yield each redistribution of a function with how many times a step runs it."""
    for step in code.steps:
        if isinstance(step, Move):
            yield step, 1
        elif isinstance(step, Loop):
            yield from ((move, step.stop - step.start) for move, _ in moves(step.block))


def axes_of(program: Program) -> tuple[tuple[str, ...], ...]:
    """Return the axis groups that the program communicates over, each once."""
    return tuple(dict.fromkeys(move.axes for move, _ in moves(program.driver)))
