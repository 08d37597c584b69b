# SPDX-License-Identifier: MIT
"""Differences between two plans of one model: types, collectives, totals, memory."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from .collective_table import collectives, total
from .link import Links
from .memory import memory
from .plan import Plan
from .program import Apply, Code, Loop, Move, Project, Step, Var
from .size_text import size_text


def difference(
    left: Plan, right: Plan, *, tokens: Mapping[str, int], links: Links, blocks: int
) -> str:
    """Return what changes from plan `left` to plan `right`, line by line, then in total.

    Steps of both are matched by the author's line; `-` and `+` stand before what only one has,
    `~` before a step whose results have another type.
    """
    lines = [f"- {left.mesh}, plan {left.hash[:12]}", f"+ {right.mesh}, plan {right.hash[:12]}"]
    for before, after in _pairs(left, right):
        if before is None or after is None:
            code = before or after
            assert code is not None
            lines += ["", f"{'-' if before else '+'} {code.name}"]
            continue
        changed = list(_changed(before, after))
        lines += ["", f"  {before.name}: {'' if changed else 'the same'}".rstrip(), *changed]
    lines.append("")
    for sign, plan in (("-", left), ("+", right)):
        held = memory(plan, tokens=tokens, blocks=blocks)
        lines.append(f"{sign} a step: {total(tuple(collectives(plan.program, tokens, links)))}")
        lines.append(
            f"{sign} a rank: weights {size_text(sum(held.weights.values()))}, cache "
            f"{size_text(held.cache)}, activations {size_text(held.activations)}"
        )
    return "\n".join(lines)


def _pairs(left: Plan, right: Plan) -> Iterator[tuple[Code | None, Code | None]]:
    codes = [{code.name: code for code in plan.program.functions} for plan in (left, right)]
    for name in dict.fromkeys((*codes[0], *codes[1])):
        yield codes[0].get(name), codes[1].get(name)


def _changed(before: Code, after: Code) -> Iterator[str]:
    keys = [[_key(step) for step in code.steps] for code in (before, after)]
    matched = difflib.SequenceMatcher(a=keys[0], b=keys[1], autojunk=False)
    for tag, i, j, m, n in matched.get_opcodes():
        if tag == "equal":
            for old, new in zip(before.steps[i:j], after.steps[m:n], strict=True):
                if _types(old.results) != _types(new.results):
                    yield (
                        f"~ {_title(old)}: {_types(old.results)}  ->  {_types(new.results)}  "
                        f"{old.line}"
                    )
            continue
        yield from (f"- {_shown(step)}" for step in before.steps[i:j])
        yield from (f"+ {_shown(step)}" for step in after.steps[m:n])


def _key(step: Step) -> tuple[str, ...]:
    axes = step.axes if isinstance(step, Move) else ()
    return (type(step).__name__, _title(step), str(step.line), *axes)


def _title(step: Step) -> str:
    match step:
        case Move():
            return step.kind
        case Project():
            return step.pack
        case Apply():
            return step.op.name
        case Loop():
            return f"layers {step.start}..{step.stop - 1}"


def _types(values: Sequence[Var]) -> str:
    return ", ".join(str(var.spec) for var in values if var.kind != "cache")


def _shown(step: Step) -> str:
    line = f"{_title(step)}: {_types(step.operands[:1])} -> {_types(step.results)}  {step.line}"
    return f"{line}  {step.why}" if isinstance(step, Move) else line
