# SPDX-License-Identifier: MIT
"""The verifier of a pipeline: its stages together compute what the driver does, in order.

A value denotes one tensor wherever it is held.  So stages that are verified equation by equation,
whose inputs are the very values that the stage before sends, and that run each layer once and in
order, hand on what the whole driver would.
"""

import itertools

from .error import VerificationError
from .program import Loop, Program, Stage, Var
from .verify import Verification


def verify_stages(program: Program) -> None:
    """Check the stages of a pipeline.

    Raises:
        VerificationError: naming the stage and what it lacks.
    """
    stages, ways = program.stages, program.mesh.size(program.mesh.stages)
    if len(stages) != (ways if ways > 1 else 0):
        raise VerificationError(f"{len(stages)} stages on {ways} places of a pipeline")
    if not stages:
        return
    steps = {id(step) for step in program.driver.steps}
    for stage in stages:
        if any(id(step) not in steps for step in stage.code.steps):
            raise VerificationError(f"{stage.code.name}: a step that the driver does not have")
        Verification(program.mesh, stage.code, is_stage=True).run()
        _layers(stage)
    if stages[0].code.carry or stages[-1].code.results != program.driver.results:
        raise VerificationError("a pipeline does not begin or end with the program's own values")
    for left, right in itertools.pairwise(stages):
        if left.code.results != right.code.carry:
            raise VerificationError(
                f"{right.code.name} receives {_named(right.code.carry)}, but {left.code.name} "
                f"sends {_named(left.code.results)}"
            )
        if left.stop != right.start:
            raise VerificationError(
                f"{right.code.name} has caches from layer {right.start} on, "
                f"{left.code.name} those before layer {left.stop}"
            )
    loops = [step for step in program.driver.steps if isinstance(step, Loop)]
    if stages[0].start != 0 or stages[-1].stop != max(loop.stop for loop in loops):
        raise VerificationError("the stages' layers are not all of the driver's")


def _layers(stage: Stage) -> None:
    """Check that a stage runs each of its layers once, in order, and none of another's."""
    at = stage.start
    for step in stage.code.steps:
        if isinstance(step, Loop):
            if step.start != at:
                raise VerificationError(f"{stage.code.name}: layer {step.start} runs after {at}")
            at = step.stop
    if at != stage.stop:
        raise VerificationError(f"{stage.code.name} ends before layer {at}, not {stage.stop}")


def _named(values: tuple[Var, ...]) -> str:
    return ", ".join(map(str, values)) or "nothing"
