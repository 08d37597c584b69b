# SPDX-License-Identifier: MIT
"""The pipeline cut: a program split between layers into what each stage of a pipeline runs.

A stage has the layers from its first to the next one's, what precedes or follows all layers at the
ends, and receives what layers carry in the placement in which they carry it.  What depends on no
layer (angles of positions, say) is computed again where it is read, not sent.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import attrs

from .error import MeshError, PlacementError
from .mesh import Mesh
from .program import Apply, Code, Loop, Program, Stage, Step, Var
from .storage import Pack, storage, stored


def cut(program: Program) -> Program:
    """Return `program` with the stages of its mesh's pipeline; itself if that has none.

    The heaviest stage, by bytes of parameters, is as light as can be.

    Raises:
        MeshError: the pipeline is longer than the model has layers.
        PlacementError: the model has no layers of one scan to be cut between.
    """
    ways = program.mesh.size(program.mesh.stages)
    if ways == 1:
        return program
    loops = [step for step in program.driver.steps if isinstance(step, Loop)]
    if (
        not loops
        or program.driver.cache
        or any(left.results != right.carry for left, right in itertools.pairwise(loops))
    ):
        raise PlacementError(
            f"a pipeline over {program.mesh.group(program.mesh.stages)} is cut between the layers "
            f"of one scan; this model has other layers, or values between its layers. Run all "
            f"layers by one `scan`, which takes their caches too"
        )
    count = loops[-1].stop
    if count < ways:
        raise MeshError(
            f"a pipeline of {ways} stages is longer than the model's {count} layers; "
            f"choose {program.mesh.group(program.mesh.stages)} from 1 to {count}"
        )
    starts = _starts(_weights(program, count), ways)
    driver = _split(program.driver, starts)
    return attrs.evolve(program, driver=driver, stages=_stages(driver, (*starts, count)))


def packs_of(stage: Stage, mesh: Mesh) -> tuple[str, ...]:
    """Return the names of the packs that a stage reads."""
    return tuple(pack.name for pack in stored(stage.code, mesh))


def _weights(program: Program, count: int) -> list[int]:
    """Return the bytes of each layer; the ends count for the layers beside them."""
    weights = [0] * count
    loops = [step for step in program.driver.steps if isinstance(step, Loop)]
    after = itertools.dropwhile(lambda step: step is not loops[-1], program.driver.steps)
    late = {var.name for step in after for var in step.operands if not isinstance(step, Loop)}
    for pack in storage(program):
        layer = pack.name.removeprefix(f"{loops[0].layers}.").partition(".")[0]
        read_last = not late.isdisjoint(member.path for member in pack.members)
        index = int(layer) if layer.isdigit() else count - 1 if read_last else 0
        weights[index] += _bytes(pack)
    return weights


def _bytes(pack: Pack) -> int:
    return math.prod(pack.shape) * pack.dtype.itemsize


def _starts(weights: Sequence[int], ways: int) -> tuple[int, ...]:
    """Return the first layer of each stage such that the heaviest stage is as light as can be.

    Among equal ones, stages are as even as their greatest number of layers goes.
    """
    total = list(itertools.accumulate(weights, initial=0))
    count = len(weights)
    # best[i]: (the heaviest stage's bytes and layers, first layers) of the layers before i.
    best: list[tuple[tuple[int, int], tuple[int, ...]]] = [
        ((total[i], i), (0,)) for i in range(count + 1)
    ]
    for stage in range(1, ways):
        best = [
            min(
                (
                    (max(best[at][0], (total[i] - total[at], i - at)), (*best[at][1], at))
                    for at in range(stage, i)
                ),
                default=((total[-1] + 1, 0), ()),
            )
            for i in range(count + 1)
        ]
    return best[count][1]


def _split(driver: Code, starts: Sequence[int]) -> Code:
    """Return the driver with each loop that spans a stage's first layer in two."""
    names = {var.name for step in driver.steps for var in step.results}
    steps: list[Step] = []
    for step in driver.steps:
        if isinstance(step, Loop):
            for at in starts:
                if step.start < at < step.stop:
                    seam = tuple(_at(var, at, names) for var in step.results)
                    steps.append(attrs.evolve(step, stop=at, results=seam))
                    step = attrs.evolve(step, start=at, carry=seam)
        steps.append(step)
    return attrs.evolve(driver, steps=tuple(steps))


def _at(var: Var, layer: int, names: set[str]) -> Var:
    name = f"{var.name.rstrip('_0123456789')}_at_{layer}"
    while name in names:
        name += "_"
    return attrs.evolve(var, name=name)


def _stages(driver: Code, bounds: Sequence[int]) -> tuple[Stage, ...]:
    made = {var: step for step in driver.steps for var in step.results}
    at: dict[int, int] = {}  # the stage of each step that depends on a layer, by the step's id
    for step in driver.steps:
        before = [at[id(made[var])] for var in reads(step) if id(made.get(var)) in at]
        if isinstance(step, Loop):
            before.append(sum(start <= step.start for start in bounds[1:-1]))
        if before:
            at[id(step)] = max(before)
    last = len(bounds) - 2
    stages: list[Stage] = []
    received: tuple[Var, ...] = ()
    for index in range(last + 1):
        sent = driver.results if index == last else tuple(_sent(driver, at, index))
        steps = _needed(driver, at, index, sent, set(received))
        stages.append(
            Stage(_code(driver, index, received, steps, sent), *bounds[index : index + 2])
        )
        received = sent
    return tuple(stages)


def reads(step: Step) -> tuple[Var, ...]:
    """Return every value that a step reads."""
    return (*step.operands, *(step.metadata if isinstance(step, Apply) else ()))


def _sent(driver: Code, at: dict[int, int], stage: int) -> Iterator[Var]:
    """Yield what later stages read of what this one or an earlier one makes from layers."""
    later = {v for step in driver.steps if at.get(id(step), -1) > stage for v in reads(step)}
    for step in driver.steps:
        if 0 <= at.get(id(step), -1) <= stage:
            yield from (var for var in step.results if var in later)


def _needed(
    driver: Code, at: dict[int, int], stage: int, results: Sequence[Var], given: set[Var]
) -> tuple[Step, ...]:
    """Return the stage's own steps, and those of no stage that they or `results` read."""
    wanted = {*results} - given
    kept = []
    for step in reversed(driver.steps):
        own = at.get(id(step))
        if own == stage or (own is None and not wanted.isdisjoint(step.results)):
            wanted.update(var for var in reads(step) if var not in given)
            kept.append(step)
    return tuple(reversed(kept))


def _code(
    driver: Code,
    index: int,
    received: tuple[Var, ...],
    steps: tuple[Step, ...],
    results: tuple[Var, ...],
) -> Code:
    read = {var for step in steps for var in reads(step)}
    own = {id(step) for step in steps}
    return attrs.evolve(
        driver,
        name=f"stage_{index}",
        params=tuple(var for var in driver.params if var in read),
        batch=tuple(var for var in driver.batch if var in read),
        carry=received,
        steps=steps,
        results=results,
        composites=tuple(
            each for each in driver.composites if all(id(part) in own for part in each.parts)
        ),
    )
