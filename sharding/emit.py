# SPDX-License-Identifier: MIT
"""Emission: a typed local program as a readable Python file that stands alone."""

from collections.abc import Iterator

from .program import Program, Var
from .writer import DRIVER, WIDTH, Writer, signature, typed


def emit(program: Program, title: str, ops: str, checked: bool = False) -> str:
    """Return the source of `forward(c, w, caches, batch) -> (result, caches)`.

    `ops` is the module that the file imports its ops from.  Each line names the type of what it
    makes and the author's line.  A `checked` program also calls `c.check(value, axes, where)` for
    each value, with the axes over which its ranks may differ.
    """
    writers = [Writer(code, program.mesh, checked) for code in program.blocks]
    functions = ["\n".join(writer.block()) for writer in writers]
    if program.stages:
        drivers = [StageWriter(program, index, checked) for index in range(len(program.stages))]
        functions += ["\n".join(driver.stage()) for driver in drivers]
        functions.append("\n".join(_pipeline(program)))
        writers += drivers
    else:
        writers.append(Writer(program.driver, program.mesh, checked))
        functions.append("\n".join(writers[-1].driver()))
    imported: dict[str, list[str]] = {ops: []}
    modules = {"Collectives": "", "Tensor": ""}
    for writer in writers:
        modules |= writer.used
    for name, module in sorted(modules.items()):
        own = module and not module.startswith(f"{ops}.")  # a model's own op
        imported.setdefault(module if own else ops, []).append(name)
    head = [f'"""{title}"""', "", "from typing import Any", ""]
    for module, names in sorted(imported.items()):
        short = f"from {module} import {', '.join(names)}"
        long = [f"from {module} import (", *(f"    {name}," for name in names), ")"]
        head += [short] if len(short) <= WIDTH else long
    return "\n".join(head) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


class StageWriter(Writer):
    """Writes the stage of a pipeline: it receives, computes and sends, and returns the result."""

    def __init__(self, program: Program, index: int, checked: bool) -> None:
        stage = program.stages[index]
        super().__init__(stage.code, program.mesh, checked)
        self.program, self.index, self.first_layer = program, index, stage.start
        self.axis = program.mesh.group(program.mesh.stages)

    def stage(self) -> Iterator[str]:
        program, stage = self.program, self.program.stages[self.index]
        results = program.driver.results
        layers = f"layers {stage.start} to {stage.stop - 1}"
        yield from signature(self.code.name, DRIVER, ["Tensor"] * len(results) + ["Any"])
        yield f'    """Run {layers}: {typed(self.code.results)}."""'
        if self.code.carry:
            yield f"    # {typed(self.code.carry)}, of the stage before"
            types = [f'"{self.axis}"', *map(self.described, self.code.carry)]
            made = ", ".join(map(self.name, self.code.carry))
            comma = "," if len(self.code.carry) == 1 else ""
            line = f"    {made}{comma} = c.receive({', '.join(types)})"
            if len(line) > WIDTH:
                inner = "".join(f"        {each},\n" for each in types)
                line = f"    {made}{comma} = c.receive(\n{inner}    )"
            yield line
        yield from self.body()
        names = ", ".join(map(self.name, self.code.results))
        if self.index + 1 < len(program.stages):
            yield f'    c.send("{self.axis}", {names})'
            names = ", ".join(map(self.name, results))
            for var in results:
                note = "# of the last stage"
                call = f'c.published("{self.axis}", {self.described(var)})'
                yield f"    {self.name(var)} = {call}  {note}"
        else:
            for var in results:
                yield f'    {self.name(var)} = c.publish("{self.axis}", {self.name(var)})'
        yield f"    return {names}, caches"

    def described(self, var: Var) -> str:
        """Return dtype and sizes of a rank's shard, those of the step from its batch's columns."""
        columns = [
            (dim.name, column.name, at, self.mesh.size(dim.axes))
            for column in self.program.driver.batch
            for at, dim in enumerate(column.spec.dims)
        ]
        sizes = [f'"{str(var.dtype).removeprefix("torch.")}"']
        for dim, size in zip(var.spec.dims, var.local(self.mesh), strict=True):
            found = [each[1:] for each in columns if each[0] == dim.name]
            assert size is not None or found, f"no column of the batch has the dim {dim} of {var}"
            if size is None:
                column, at, ways = found[0]
                parts = self.mesh.size(dim.axes) // ways
                sizes.append(f"{column}.shape[{at}]" + (f" // {parts}" if parts > 1 else ""))
            else:
                sizes.append(str(size))
        return f"({', '.join(sizes)})"


def _pipeline(program: Program) -> Iterator[str]:
    """Yield `forward` of a pipeline: each rank runs its stage."""
    names = ", ".join(stage.code.name for stage in program.stages)
    axis = program.mesh.group(program.mesh.stages)
    yield from signature("forward", DRIVER, ["Tensor"] * len(program.driver.results) + ["Any"])
    yield f'    """Run one stage of a step: {typed(program.driver.results)}."""'
    yield f'    return ({names})[c.rank("{axis}")](c, w, caches, batch)'
