# SPDX-License-Identifier: MIT
"""`tokenspeed explain`: the program that a layout makes of a model."""

import argparse

HELP = "print a model's per-rank program and its collectives"
DESCRIPTION = (
    "Print a model's per-rank program under a layout: every value's type, every collective with "
    "its axis, bytes, predicted time and reason. Needs the model's config, not its weights."
)


class LayoutFlagError(ValueError):
    """A layout flag that cannot be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the layout's flags."""
    parser.add_argument(
        "model", help="a .gguf file, a directory, a config.json, a hub id, or smollm2"
    )
    layout = parser.add_argument_group("layout")
    layout.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks")
    layout.add_argument(
        "--sp", action="store_true", help="sequence parallelism: hidden states sharded over tp"
    )
    layout.add_argument(
        "--mesh", metavar="MESH", help='named axes instead of --tp, such as "dp=2 tp=4"'
    )
    layout.add_argument(
        "--place",
        action="append",
        default=[],
        metavar="DIM=AXES",
        help="shard a dim of parameters and caches over axes; repeatable",
    )
    layout.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help='a boundary type, such as "Hidden=n@tp d"; repeatable',
    )
    step = parser.add_argument_group("step")
    step.add_argument("--tokens", type=int, default=1, metavar="N", help="tokens in the step")
    step.add_argument(
        "--block-size", type=int, default=16, metavar="TOKENS", help="tokens in a KV block"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compile and print."""
    import torch

    from ..models.family import compile_plan
    from ..models.registry import family_of
    from ..sharding import Layout
    from ..sharding.explain import explain
    from ..stored_config import stored_config

    stored = stored_config(arguments.model)
    family = family_of(str((stored.get("architectures") or ["none"])[0]))
    types = dict(_pair(text, "--type") for text in arguments.type)
    if arguments.sp:
        types.setdefault("Hidden", "n@tp d")
    layout = Layout(
        mesh=arguments.mesh or f"tp={arguments.tp}",
        place=dict(_pair(text, "--place") for text in arguments.place),
        types=types,
    )
    plan = compile_plan(
        family,
        family.config(stored),
        layout,
        dtype=torch.bfloat16,
        block_size=arguments.block_size,
    )
    print(explain(plan, tokens=arguments.tokens))
    return 0


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise LayoutFlagError(f"{flag} {text!r} is not NAME=VALUE")
    return name.strip(), value.strip()
