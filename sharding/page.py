# SPDX-License-Identifier: MIT
"""A plan as one self-contained HTML page: its functions as pictures, its collectives as a table."""

import linecache
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from .collective_table import Collective, cheaper, collectives
from .cost import cost, nbytes
from .explain import priced
from .lanes import Drawing, Wire, draw, made_by
from .link import Links
from .memory import Memory, memory
from .plan import Plan
from .program import LOCAL, Apply, Code, Loop, Move, Program, Project, Step, Var
from .provenance import Chain
from .size_text import size_text

ROW, LANE, LEFT = 46, 22, 22  # pixels
_SIGNS = {
    "all_reduce": "Σ",
    "reduce_scatter": "Σ/",
    "all_gather": "⊞",
    "all_to_all": "⇄",
    "dispatch": "⇉",
    "combine": "Σ⇇",
    "merge": "λ",
}


def page(plans: Sequence[Plan], *, tokens: Mapping[str, int], links: Links, blocks: int) -> str:
    """Return a page without external resources; several plans stand side by side.

    `tokens` gives the dims whose sizes are known at run time only; `blocks` counts cache blocks.
    """
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    colours: dict[str, int] = {}
    views = [
        PlanView(plan, index, tokens, links, blocks, colours) for index, plan in enumerate(plans)
    ]
    bodies = [f'<section class="plan">{"".join(view.parts())}</section>' for view in views]
    title = f"{plans[0].name} on {' and '.join(str(plan.mesh) for plan in plans)}"
    return Template(template).substitute(
        title=escape(title),
        step=escape(f"step of {tokens['n']} tokens, {tokens['m']} logit rows; {links} (estimates)"),
        count=len(plans),
        body="\n".join(bodies),
    )


class PlanView:
    """The parts of the page that one plan fills."""

    def __init__(
        self,
        plan: Plan,
        index: int,
        tokens: Mapping[str, int],
        links: Links,
        blocks: int,
        colours: dict[str, int],
    ) -> None:
        self.plan, self.index, self.tokens, self.links = plan, index, tokens, links
        self.program: Program = plan.program
        self.found = tuple(collectives(plan.program, tokens, links))
        self.memory = memory(plan, tokens=tokens, blocks=blocks)
        groups = dict.fromkeys(
            self.group(var)
            for code in self.program.functions
            for step in code.steps
            for var in (*step.operands, *step.results)
        )
        self.groups = [group for group in groups if group]
        self.colours = colours  # by group; equal groups of all plans look alike
        for group in self.groups:
            colours.setdefault(group, len(colours) % 6)

    def group(self, var: Var) -> str:
        """Return the axes over which a value is sharded, whatever its dims; empty if it is not."""
        mesh = self.program.mesh
        return mesh.group(mesh.ordered({axis for dim in var.spec.dims for axis in dim.axes}))

    def parts(self) -> Iterator[str]:
        yield f"<h2>{escape(str(self.plan.mesh))}</h2>"
        yield f'<p class="sub">{self.plan.mesh.num_ranks} ranks, plan {self.plan.hash[:12]}</p>'
        yield "".join(self.tiles())
        yield "".join(self.legend())
        for code in self.program.functions:
            yield "".join(self.card(code))
        yield "".join(self.table())
        yield (
            f"<details><summary>the emitted program</summary>"
            f"<pre>{escape(self.plan.source)}</pre></details>"
        )

    def tiles(self) -> Iterator[str]:
        count = sum(each.times for each in self.found if not each.joins)
        wire = sum(each.times * each.price.wire for each in self.found)
        us = sum(each.times * each.price.us for each in self.found)
        yield '<div class="tiles">'
        for value, label in (
            (f"{us:,.0f} µs", "in collectives a step"),
            (f"{count}", "collectives a step"),
            (size_text(wire), f"on the wire{', all stages' if self.program.stages else ' a rank'}"),
            (size_text(self.memory.total), "held by a rank"),
        ):
            yield f'<div class="tile"><b>{value}</b><span>{label}</span></div>'
        yield "</div>"
        yield "".join(_memory_bar(self.memory))

    def legend(self) -> Iterator[str]:
        yield '<div class="legend"><i class="chip r">Replicated</i>'
        for group in self.groups:
            yield f'<i class="chip s{self.colours[group]}">Sharded over {escape(group)}</i>'
        yield '<i class="chip p">Partial: a sum is owed</i>'
        for kind in dict.fromkeys(each.kind for each in self.found):
            if kind in _SIGNS:
                yield f'<span class="sign"><b>{_SIGNS[kind]}</b>{kind}</span>'
        yield "</div>"

    def kind(self, var: Var) -> str:
        """Return the style of a value's placement."""
        if var.spec.partial:
            return "p"
        group = self.group(var)
        return f"s{self.colours.get(group, 0)}" if group else "r"

    def chip(self, var: Var) -> str:
        text = f"{escape(var.name)}<em>{escape(str(var.spec))}</em>"
        return f'<i class="chip {self.kind(var)}">{text}</i>'

    def key(self, code: Code, var: Var) -> str:
        return f"v{self.index}-{code.name}-{var.name}".replace(".", "-")

    def card(self, code: Code) -> Iterator[str]:
        drawing = draw(code)
        left = LEFT * 2 + LANE * max(drawing.width - 1, 0)
        height = ROW * (len(code.steps) + 2)
        yield f'<article class="card"><h3>{escape(code.name)}</h3>'
        yield f'<div class="code" style="height:{height}px">'
        yield f'<svg width="{left}" height="{height}" aria-hidden="true">'
        for wire in drawing.wires:
            yield (
                f'<path class="wire {self.kind(wire.var)}" data-v="{self.key(code, wire.var)}" '
                f'd="{_path(wire)}"/>'
            )
        for row, (lane, step) in enumerate(zip(drawing.nodes, code.steps, strict=True), 1):
            yield _node(step, _x(lane), _y(row))
        yield "</svg>"
        yield f'<div class="rows" style="left:{left}px">'
        entered = " ".join(map(self.chip, code.carry))
        hands = {each.function: each for each in self.found if each.kind in ("send", "publish")}
        came = next((n for n, each in hands.items() if each.result == code.name), "")
        came = f" <small>from {came}</small>" if came else ""
        yield f'<div class="row edge"><p>{entered or "the step begins"}{came}</p></div>'
        for row, step in enumerate(code.steps, 1):
            yield from self.row(code, row, step, drawing)
        results = " ".join(map(self.chip, code.results))
        sent = ""
        if each := hands.get(code.name):
            price = f"{size_text(each.price.payload)} · {each.price.us:.1f} µs"
            sent = f" <small>{each.kind} to {each.result}, {price} over {each.axis}</small>"
        yield f'<div class="row edge"><p><b>return</b> {results}{sent}</p></div>'
        yield "</div></div></article>"

    def row(self, code: Code, row: int, step: Step, drawing: Drawing) -> Iterator[str]:
        touched = " ".join(self.key(code, var) for var in (*step.operands, *made_by(step)))
        move = isinstance(step, Move) and step.kind not in LOCAL
        call = code.calls.get(id(step))
        part = f" <small>in {call.name}</small>" if call else ""
        yield (
            f'<div class="row{" move" if move else ""}" tabindex="0" data-vs="{touched}">'
            f'<p>{self.title(step)}{part}<a class="line">{escape(str(step.line))}</a></p>'
            f"<p>{' '.join(map(self.chip, made_by(step)))}"
            f"{f' <small>{escape(step.why)}</small>' if isinstance(step, Move) else ''}</p>"
        )
        yield f"<template>{''.join(self.details(code, step))}</template></div>"

    def title(self, step: Step) -> str:
        match step:
            case Move():
                price = cost(step, self.plan.mesh, self.tokens, self.links.over(step.axes))
                what = (
                    "local"
                    if not price.payload
                    else (f"{size_text(price.payload)} · {price.us:.1f} µs")
                )
                group = escape(self.plan.mesh.group(step.axes))
                joins = " with the one above" if step.joins else ""
                early = " <small>started early, goes on meanwhile</small>" if step.started else ""
                return f"<b>{step.kind}</b> over {group}{joins} <span>{what}</span>{early}"
            case Loop():
                return f"<b>{step.block.name}</b> over layers {step.start} to {step.stop - 1}"
            case Project():
                weights = [apply.operands[1] for apply in step.applies]
                name = "linear"
            case Apply():
                weights = [var for var in step.operands if var.kind in ("param", "cache")]
                name = step.op.name
        return f"<b>{name}</b> {' '.join(map(self.chip, weights))}"

    def details(self, code: Code, step: Step) -> Iterator[str]:
        source = linecache.getline(step.line.path, step.line.number).strip()
        yield f"<h4>{escape(str(step.line))}</h4><pre>{escape(source) or '?'}</pre>"
        for var in made_by(step):
            sizes = " x ".join("?" if size is None else str(size) for size in var.sizes)
            local = " x ".join("?" if s is None else str(s) for s in var.local(self.plan.mesh))
            held = size_text(nbytes(var, self.tokens, self.plan.mesh))
            yield (
                f"<p>{self.chip(var)} {str(var.dtype).removeprefix('torch.')}, {sizes} whole, "
                f"{local} on a rank, {held}</p>"
            )
        if isinstance(step, Move):
            price = cost(step, self.plan.mesh, self.tokens, self.links.over(step.axes))
            yield f"<p>{escape(priced(price))}</p><p><b>why</b> {escape(step.why)}</p>"
            if other := cheaper(step, code, self.program, self.tokens, self.links):
                yield f'<p class="cheaper"><b>cheaper</b> {escape(other)}</p>'
        for var in made_by(step)[:1]:
            yield "<pre>" + escape("\n".join(Chain(self.program, code).of(var, 0))) + "</pre>"

    def table(self) -> Iterator[str]:
        yield '<article class="card"><h3>collectives</h3>'
        if not self.found:
            yield "<p>none</p></article>"
            return
        yield "<table><thead><tr>"
        heads = ("where", "collective", "axis", "times", "payload", "wire a rank", "µs", "link")
        yield from (f"<th>{head}</th>" for head in heads)
        yield "</tr></thead><tbody>"
        for each in self.found:
            yield from _table_row(each)
        yield "</tbody></table></article>"


def _table_row(each: Collective) -> Iterator[str]:
    cells = (
        f"{each.function} {each.line}",
        each.title,
        f"{each.axis}={each.ranks}",
        str(each.times),
        size_text(each.price.payload),
        size_text(each.price.wire),
        f"{each.price.us:.1f}",
        each.link,
    )
    yield f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    other = f'<br><span class="cheaper">cheaper: {escape(each.cheaper)}</span>'
    yield (
        f'<tr class="why"><td colspan="8">{escape(each.operand)} → {escape(each.result)}: '
        f"{escape(each.why)}{other if each.cheaper else ''}</td></tr>"
    )


def _memory_bar(held: Memory) -> Iterator[str]:
    parts = (
        ("weights", sum(held.weights.values())),
        ("cache", held.cache),
        ("activations", held.activations),
    )
    yield '<div class="bar">'
    for name, size in parts:
        share = max(100 * size / max(held.total, 1), 0.5)
        yield f'<i class="{name}" style="flex:{share:.2f}" title="{name} {size_text(size)}"></i>'
    listed = ", ".join(f"{name} {size_text(size)}" for name, size in parts)
    yield f'</div><p class="sub">a rank: {listed} (most at {escape(held.peak)})</p>'


def _x(lane: int) -> int:
    return LEFT + lane * LANE


def _y(row: int) -> int:
    return row * ROW + ROW // 2


def _path(wire: Wire) -> str:
    """Return a line down the value's lane, with a bend where a step stands in another lane."""
    x, bend = _x(wire.lane), ROW // 2
    top = _y(wire.row)
    path = [f"M{_x(wire.source)} {top}"]
    if wire.source != wire.lane:
        path.append(f"C{_x(wire.source)} {top + bend} {x} {top} {x} {top + bend}")
    for row, lane in wire.uses:
        y = _y(row)
        if lane == wire.lane:
            path.append(f"L{x} {y}")
        else:
            path.append(f"L{x} {y - bend}C{x} {y} {_x(lane)} {y - bend} {_x(lane)} {y}")
            path.append(f"M{x} {y - bend}")
    return "".join(path)


def _node(step: Step, x: int, y: int) -> str:
    if isinstance(step, Move) and step.kind not in LOCAL:
        sign = _SIGNS.get(step.kind, "")
        return (
            f'<g class="node move"><circle cx="{x}" cy="{y}" r="11"/>'
            f'<text x="{x}" y="{y + 4}">{sign}</text></g>'
        )
    if isinstance(step, Loop):
        return f'<rect class="node" x="{x - 8}" y="{y - 8}" width="16" height="16" rx="4"/>'
    return f'<circle class="node" cx="{x}" cy="{y}" r="6"/>'
