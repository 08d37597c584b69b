# SPDX-License-Identifier: MIT
"""How each function of a program is written as Python, line by line with its types."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from .composite import Columns, Joint, Over, Stored, arguments
from .mesh import Mesh
from .overlap import reads
from .program import Apply, Code, Composite, Loop, Move, Project, Step, Var
from .reduction import SUM

WIDTH = 100
DRIVER = ("c: Collectives", "w: Any", "caches: Any", "batch: Any")


class Writer:
    """Writes one function, and notes which ops it used."""

    def __init__(self, code: Code, mesh: Mesh, checked: bool) -> None:
        self.code, self.mesh, self.checked = code, mesh, checked
        self.used: dict[str, str] = {}  # each op's module, "" for one that only programs call
        self.calls = code.calls
        self.joined = {id(step): user for step, user in _joined(code)}
        self.bundles = _bundles(code)
        self.trips: dict[Var, str] = {}
        self.pending: dict[Var, Move] = {}
        self.first_layer = 0  # whose cache is the first of `caches`

    def block(self) -> Iterator[str]:
        constants = self.constants(self.code.constants)
        inputs = ["c: Collectives", "w: Any", "kv: Any"]
        inputs += [f"{name}: {'Any' if name == 'batch' else 'Tensor'}" for name in constants]
        inputs += [f"{var.name}: Tensor" for var in self.code.carry]
        yield from signature(self.code.name, inputs, ["Tensor"] * len(self.code.results))
        yield f'    """Run one layer: {typed(self.code.carry)}."""'
        yield from self.body()
        results = [self.name(var) for var in self.code.results]
        yield f"    return {', '.join(results)}"

    def driver(self) -> Iterator[str]:
        yield from signature("forward", DRIVER, ["Tensor"] * len(self.code.results) + ["Any"])
        yield f'    """Run a step: {typed(self.code.results)}."""'
        yield from self.body()
        results = ", ".join(self.name(var) for var in self.code.results)
        yield f"    return {results}, caches"

    def body(self) -> Iterator[str]:
        skipped = {id(user) for user in self.joined.values() if isinstance(user, Apply)}
        for step in self.code.steps:
            if id(step) in skipped or (isinstance(step, Move) and step.joins):
                continue
            if (call := self.calls.get(id(step))) and step is not call.last:
                continue
            yield from self.waits(call.parts if call else (step,))
            for text, made_by in self.step(step):
                yield from self.noted(text, made_by)
                if self.checked and "\n" not in text:
                    yield from self.checks(made_by)

    def waits(self, steps: Sequence[Step]) -> Iterator[str]:
        """Wait for what these steps read and what was started before them."""
        for var in dict.fromkeys(var for step in steps for var in reads(step)):
            if move := self.pending.pop(var, None):
                yield f"    {self.name(var)} = c.wait({self.name(var)})"
                if self.checked:
                    yield from self.checks(attrs.evolve(move, started=False))

    def checks(self, step: Step) -> Iterator[str]:
        if isinstance(step, Move) and step.started:
            return
        for var in (var for each in self.bundles.get(id(step), (step,)) for var in each.results):
            if not (var.kind == "cache" or id(step) in self.joined or var in self.trips):
                yield f'    c.check({self.name(var)}, {var.spec.axes!r}, "{var}")'

    def noted(self, text: str, step: Step) -> Iterator[str]:
        """Yield a line with its note at the end if both fit, else the note above it."""
        results = [var for each in self.bundles.get(id(step), (step,)) for var in each.results]
        types = ", ".join(str(var.spec) for var in results if var.kind != "cache")
        call = self.calls.get(id(step))
        lines = [str(part.line) for part in call.parts] if call else [str(step.line)]
        note = f"# {types}  {', '.join(dict.fromkeys(lines))}"
        if isinstance(step, Move):
            note += f"  {step.why}{', meanwhile' if step.started else ''}"
        line = f"    {text}"
        if "\n" not in text and len(line) + 2 + len(note) <= WIDTH:
            yield f"{line}  {note}"
        else:
            yield from textwrap.wrap(
                note, WIDTH, initial_indent="    ", subsequent_indent="    #   "
            )
            yield line if "\n" in text else broken(line)

    def step(self, step: Step) -> Iterator[tuple[str, Step]]:
        match step:
            case Project():
                yield from self.project(step)
            case Apply() | Move() if call := self.calls.get(id(step)):
                yield f"{self.targets(step)} = {self.composite(call)}", step
            case Apply():
                trips = [self.trips[var] for var in step.operands if var in self.trips]
                if trips:
                    self.trips[step.results[0]] = trips[0]
                yield f"{self.targets(step)} = {self.call(step)}", step
            case Move():
                yield self.move(step), step
            case Loop():
                yield self.loop(step), step

    def name(self, var: Var) -> str:
        if var.kind == "param":
            return re.sub(r"\.(\d+)\.", r'"][\1]["', f'w["{var.name}"]')
        if var.kind == "cache":  # one tensor of a layer's cache: kv.k, caches[0].k
            return f"{_tree_name(var)}.{var.name.rpartition('.')[2]}"
        return var.name

    def constants(self, constants: tuple[Var, ...]) -> list[str]:
        """Return the names of constants; the columns of the batch are one name."""
        names = ["batch" if var.kind == "batch" else self.name(var) for var in constants]
        return list(dict.fromkeys(names))

    def argument(self, arg: Any) -> str:
        if isinstance(arg, Var):
            return self.name(arg)
        if isinstance(arg, Stored):
            return f'w["{arg.name}"]'
        if isinstance(arg, Columns):
            wide = len(arg.var.spec.dims) > 2
            return f"{self.name(arg.var)}.flatten(1)" if wide else self.name(arg.var)
        if isinstance(arg, Over):
            return f'c, "{self.mesh.group(arg.axes)}"'
        if isinstance(arg, Joint):
            return _joint(arg.vars)
        if isinstance(arg, tuple) and arg and all(isinstance(part, Var) for part in arg):
            roots = {_tree_name(part) for part in arg}
            assert len(roots) == 1, f"a tree of values of several origins: {arg}"
            return str(roots.pop())
        return repr(arg)

    def call(self, step: Apply) -> str:
        args = [self.argument(arg) for arg in step.args]
        if step.op.text:
            return step.op.text.format(*args)
        if found := step.offset(self.mesh):
            var, index, axes = found
            local = var.local(self.mesh)[index]
            size = f"{self.name(var)}.shape[{index}]" if local is None else str(local)
            args.append(f'c.rank("{self.mesh.group(axes)}") * {size}')
        name = step.op.name
        if axes := step.share():
            name = step.op.share
            args += [f'c.rank("{self.mesh.group(axes)}")', str(self.mesh.size(axes))]
        if step.op.region and (axes := step.op.region.told(self.mesh)):
            args += [f'c.rank("{self.mesh.group(axes)}")', str(self.mesh.size(axes))]
        self.used[name] = step.op.run.__module__
        return f"{name}({', '.join(args)})"

    def targets(self, step: Step) -> str:
        names = (self.target(step, var) for var in step.results)
        return ", ".join(dict.fromkeys(names))

    def target(self, step: Step, var: Var) -> str:
        if var.kind != "cache":
            return self.name(var)
        # It is written in place: only a layer's whole cache gets its name again.
        name = _tree_name(var)
        whole = isinstance(step, Apply) and not any(
            isinstance(a, Var) and a.kind == "cache" for a in step.args
        )
        return name if whole and "[" not in name else "_"

    def composite(self, call: Composite) -> str:
        args = arguments(call)
        assert args is not None, f"{call.name} is not made of {call.parts}"
        self.used.setdefault(call.name, "")
        return f"{call.name}({', '.join(map(self.argument, args))})"

    def product(self, step: Project) -> str:
        if call := self.calls.get(id(step)):
            return self.composite(call)
        self.used.setdefault("linear", "")
        return f'linear({self.argument(Columns(step.operands[0]))}, w["{step.pack}"])'

    def project(self, step: Project) -> Iterator[tuple[str, Step]]:
        value = self.product(step)
        shapes = [var.local(self.mesh)[1:] for var in step.results]
        if id(step) in self.joined:
            user = self.joined[id(step)]
            joint = _joint(step.results)
            yield f"{joint} = {value}", step
            if isinstance(user, Apply):
                self.used.setdefault(user.op.packed, "")
                yield f"{self.targets(user)} = {user.op.packed}({joint})", user
            return
        if len(shapes) > 1:
            self.used.setdefault("split", "")
            value = f"split({value}, {', '.join(map(repr, shapes))})"
        elif len(shapes[0]) > 1:
            value = f"{value}.unflatten(1, {shapes[0]!r})"
        yield f"{self.targets(step)} = {value}", step

    def move(self, step: Move) -> str:
        group = self.mesh.group(step.axes)
        operand = self.name(step.operand)
        made = self.name(step.result)
        if step.kind == "merge":
            dtype = str(step.result.dtype).removeprefix("torch.")
            return f'{made} = c.merge({operand}, "{group}", "{dtype}")'
        if step.kind == "combine":
            return f'{made} = c.combine({operand}, {self.trips[step.operand]}, "{group}")'
        if bundle := self.bundles.get(id(step)):
            operands = ", ".join(self.name(move.operand) for move in bundle)
            made = ", ".join(self.name(move.result) for move in bundle)
            if step.kind == "all_gather":
                return f'{made} = c.all_gathers(({operands}), "{group}", {step.dim})'
            assert step.routed is not None
            trip = f"{self.name(step.result)}_trip"
            self.trips.update((move.result, trip) for move in bundle)
            return f'{made}, {trip} = c.dispatch({operands}, "{group}", {step.routed[0]})'
        if step.kind == "slice":
            self.used.setdefault("shard", "")
            ways = self.mesh.size(step.axes)
            return f'{made} = shard({operand}, c.rank("{group}"), {ways}, {step.dim})'
        if step.kind == "own":
            self.used.setdefault("own", "")
            return f'{made} = own({operand}, c.rank("{group}"))'
        rest = "".join(f", {each}" for each in (step.source, step.dim) if each is not None)
        if step.kind in ("all_reduce", "reduce_scatter") and step.operand.spec.reduce != SUM:
            rest += f', "{step.operand.spec.reduce}"'
        if step.started:
            self.pending[step.result] = step
            return f'{made} = c.start("{step.kind}", {operand}, "{group}"{rest})'
        return f'{made} = c.{step.kind}({operand}, "{group}"{rest})'

    def loop(self, step: Loop) -> str:
        carry = ", ".join(self.name(var) for var in step.results)
        entered = ", ".join(self.name(var) for var in step.carry)
        constants = self.constants(step.constants)
        span = f"[{step.start}:{step.stop}]"
        own = f"[{step.start - self.first_layer}:{step.stop - self.first_layer}]"
        rename = "" if carry == entered else f"{carry} = {entered}\n    "
        args = ", ".join(["c", "p", "kv", *constants, *(self.name(v) for v in step.results)])
        return (
            f'{rename}for p, kv in zip(w["{step.layers}"]{span}, caches{own}, strict=True):\n'
            f"        {carry} = {step.block.name}({args})"
        )


def signature(name: str, inputs: Sequence[str], results: Sequence[str]) -> Iterator[str]:
    """Yield the head of a function, its parameters on lines of their own if it is too long."""
    made = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
    line = f"def {name}({', '.join(inputs)}) -> {made}:"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"def {name}("
    whole = ", ".join(each.replace(" ", "\0") for each in inputs)  # a name stays by its type
    for part in textwrap.wrap(f"{whole},", WIDTH, initial_indent="    ", subsequent_indent="    "):
        yield part.replace("\0", " ")
    yield f") -> {made}:"


def broken(line: str) -> str:
    """Return a line that calls something, its arguments on lines of their own if it is too long."""
    if len(line) <= WIDTH or "(" not in line:
        return line
    head, _, arguments = line.partition("(")
    indent = " " * 8
    wrapped = textwrap.fill(
        arguments.removesuffix(")"), WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    return f"{head}(\n{wrapped}\n    )" if arguments.endswith(")") else line


def typed(values: tuple[Var, ...]) -> str:
    """Return names with their placements, for people."""
    return ", ".join(f"{var.name} is {var.spec}" for var in values)


def _tree_name(var: Var) -> str:
    """Return the name of the tree that a cache or batch column belongs to."""
    root, *rest = var.name.split(".")
    return f"{root}[{rest[0]}]" if len(rest) > 1 else root


def _bundles(code: Code) -> dict[int, tuple[Move, ...]]:
    """Return the moves that travel together, by the first of them."""
    found: dict[int, tuple[Move, ...]] = {}
    first = 0
    for step in code.steps:
        if isinstance(step, Move) and step.joins:
            found[first] = (*found[first], step)
        elif isinstance(step, Move):
            first = id(step)
            found[first] = (step,)
    return {first: moves for first, moves in found.items() if len(moves) > 1}


def _joint(results: tuple[Var, ...]) -> str:
    return "_".join(var.name for var in results)


def _joined(code: Code) -> Iterator[tuple[Project, Apply | Composite]]:
    """Yield projections whose only use is one op that takes their results side by side."""
    readers, calls = code.readers, code.calls
    taken = {
        arg.vars: call
        for call in code.composites
        for arg in arguments(call) or ()
        if isinstance(arg, Joint)
    }
    for step in code.steps:
        if not isinstance(step, Project) or len(step.results) < 2:
            continue
        if call := taken.get(step.results):
            yield step, call
        found = [readers.get(var, []) for var in step.results]
        if any(len(each) != 1 for each in found):
            continue
        user = found[0][0]
        if (
            isinstance(user, Apply)
            and id(user) not in calls
            and user.op.packed
            and user.operands == step.results
            and not set(step.results) & set(code.results)
        ):
            yield step, user
