# SPDX-License-Identifier: MIT
"""`tokenspeed explain`: the program that a layout makes of a model."""

import argparse
from pathlib import Path

from .layout_flags import add_layout_arguments, layout_of

HELP = "print a model's per-rank program and its collectives"
DESCRIPTION = (
    "Print a model's per-rank program under a layout: every value's type, every collective with "
    "its axis, bytes, predicted time and reason. Needs the model's config, not its weights."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the layout's flags, and what to show."""
    parser.add_argument(
        "model",
        help="a .gguf file, a directory, a config.json, a hub id, smollm2, or a .py file that "
        "defines a family",
    )
    parser.add_argument("--config", metavar="FILE", help="another config.json for the model")
    add_layout_arguments(parser)
    show = parser.add_argument_group("what to show")
    show.add_argument("--collectives", action="store_true", help="only the table of collectives")
    show.add_argument("--why", metavar="VALUE", help="where a value's placement comes from")
    show.add_argument("--diff", metavar="LAYOUT", help='what changes under "tp=8; Hidden=n@tp d"')
    show.add_argument("--memory", action="store_true", help="bytes that a rank holds")
    show.add_argument(
        "--minimal",
        action="store_true",
        help="try all placements of each layer: whether any needs cheaper collectives",
    )
    show.add_argument("--html", metavar="FILE", help="write the program as a page")
    show.add_argument(
        "--composites",
        action="store_true",
        help="as for a target whose kernels compute several ops in one call",
    )
    show.add_argument(
        "--for-step",
        action="store_true",
        help="as compiled for steps of --tokens: how rows reach experts, what starts early",
    )
    show.add_argument(
        "--sizes",
        action="store_true",
        help="the plans of all sizes of steps up to --tokens: which runs what, how they differ",
    )
    step = parser.add_argument_group("step")
    step.add_argument("--tokens", type=int, default=1, metavar="N", help="tokens in the step")
    step.add_argument("--rows", type=int, metavar="N", help="rows of logits, as many as tokens")
    step.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="[AXIS=]NAME",
        help="nvlink-h100 (default), nvlink-h200 (measured), nvlink-a100, pcie5, pcie4, "
        "infiniband-400g, ethernet-100g, shared-memory; repeatable",
    )
    cache = parser.add_argument_group("cache")
    cache.add_argument(
        "--block-size", type=int, default=16, metavar="TOKENS", help="tokens in a KV block"
    )
    cache.add_argument(
        "--max-model-len", type=int, default=8192, metavar="TOKENS", help="tokens of a request"
    )
    cache.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="KV blocks, or parents of several groups: those of one request",
    )


def run(arguments: argparse.Namespace) -> int:
    """Compile and print."""
    import attrs
    import torch

    from ..block_groups import block_groups
    from ..model_definition import define
    from ..models.family import Compilation
    from ..ops import declared_batch
    from ..sharding import Layout, Plan, explain, trace
    from ..sharding.collective_table import collectives, table
    from ..sharding.composite import FORMS
    from ..sharding.difference import difference
    from ..sharding.explain import step_sizes
    from ..sharding.layout_text import parse_layout
    from ..sharding.link import parse_links
    from ..sharding.machine import H100
    from ..sharding.memory import memory
    from ..sharding.minimal import certificates
    from ..sharding.page import page
    from ..sharding.plan_table import sizes_text
    from ..sharding.provenance import why

    definition = define(arguments.model, arguments.config)
    links = parse_links(arguments.link)
    how = Compilation(
        dtype=torch.bfloat16,
        block_size=arguments.block_size,
        composites=frozenset(FORMS if arguments.composites else ()),
        machine=attrs.evolve(H100, links=links),
    )

    def compiled(layout: Layout) -> Plan:
        draft = how.draft(definition.family, definition.config, layout)
        return draft.plan(draft.program(arguments.tokens if arguments.for_step else 0))

    tokens = step_sizes(arguments.tokens, arguments.rows)
    blocks = arguments.blocks or -(-arguments.max_model_len // arguments.block_size) + 1
    if arguments.sizes:
        given = (definition.family, definition.config, layout_of(arguments))
        print(sizes_text(how.table(*given, arguments.tokens), arguments.tokens, links))
        return 0
    plan = compiled(layout_of(arguments))
    other = compiled(parse_layout(arguments.diff)) if arguments.diff else None
    if arguments.html:
        plans = [plan] if other is None else [plan, other]
        text = page(plans, tokens=tokens, links=links, blocks=blocks)
        Path(arguments.html).write_text(text, encoding="utf-8")
        print(f"wrote {arguments.html}")
    elif arguments.minimal:
        family, config = definition.family, definition.config
        declared = family.params(config, torch.bfloat16)
        caches = family.caches(config, arguments.block_size, torch.bfloat16)
        traced = trace(family.forward, declared, caches, declared_batch(), config)
        for certificate in certificates(traced, layout_of(arguments), arguments.tokens, links):
            print(certificate)
    elif arguments.why:
        print(why(plan.program, arguments.why))
    elif other is not None:
        print(difference(plan, other, tokens=tokens, links=links, blocks=blocks))
    elif arguments.memory:
        held = memory(plan, tokens=tokens, blocks=blocks)
        groups = block_groups(plan, arguments.block_size, arguments.max_model_len)
        if len(groups) > 1:
            count = arguments.blocks or groups.parents(arguments.max_model_len) + 1
            held = attrs.evolve(held, block=groups.parent_bytes, blocks=count, piece="parents")
        print(held)
    elif arguments.collectives:
        print(table(tuple(collectives(plan.program, tokens, links))))
    else:
        print(explain(plan, tokens=tokens["n"], rows=tokens["m"], links=links))
    return 0
