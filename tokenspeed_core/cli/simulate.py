# SPDX-License-Identifier: MIT
"""`tokenspeed simulate`: size a deployment by traces, the real scheduler and a modelled card."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

HELP = "size a deployment: play traces through the scheduler on a modelled card"
DESCRIPTION = (
    "Play recorded conversations through the real scheduler core against a roofline of a model on "
    "a card, and report hit rates, latencies and throughput. Comma-separated values of --pool, "
    "--host, --policy, --sessions and --rate run the whole grid."
)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


class SimulateFlagError(ValueError):
    """A flag of `tokenspeed simulate` that cannot be used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the deployment's, the workload's and the report's flags."""
    parser.add_argument("--traces", required=True, metavar="FILE", help="JSON lines, plain or .gz")
    device = parser.add_argument_group("device")
    device.add_argument(
        "--model", default="qwen3-8b", help="a built-in shape, or as of `tokenspeed serve`"
    )
    device.add_argument("--card", default="h100", help="a100, l40s, h100, h200, b200, mi300x, cpu")
    device.add_argument("--tp", type=int, default=1, metavar="N", help="cards of the replica")
    device.add_argument("--dtype", default="bf16", help="of weights: bf16 or fp8")
    device.add_argument("--kv-dtype", default="bf16", help="of the cache: bf16 or fp8")
    cache = parser.add_argument_group("cache")
    cache.add_argument(
        "--pool",
        default="",
        metavar="N[,N...]",
        help="tokens (760k, 1.5M) or bytes a card (40GiB); default: what the card has room for",
    )
    cache.add_argument(
        "--host",
        default="0",
        metavar="N[,N...]",
        help="host tier: tokens, bytes a card, or in pools (4x); default: none",
    )
    cache.add_argument("--policy", default="reuse", metavar="P[,P...]", help="reuse, lru")
    cache.add_argument("--block-size", type=int, default=64, metavar="TOKENS")
    scheduler = parser.add_argument_group("scheduler")
    scheduler.add_argument("--max-running", type=int, default=256, metavar="N")
    scheduler.add_argument("--step-tokens", type=int, default=8192, metavar="N")
    scheduler.add_argument("--decode-stretch", type=float, default=1.5, metavar="X")
    scheduler.add_argument("--transfer-ms", type=int, default=10_000, metavar="MS")
    workload = parser.add_argument_group("workload")
    workload.add_argument(
        "--sessions", default="16", metavar="N[,N...]", help="conversations at once (closed loop)"
    )
    workload.add_argument(
        "--rate", default="", metavar="X[,X...]", help="or: conversations that begin a second"
    )
    workload.add_argument(
        "--requests", type=int, default=0, metavar="N", help="default: each conversation once"
    )
    workload.add_argument(
        "--gap-cap", default="600", metavar="S", help="longest pause; none: as recorded"
    )
    workload.add_argument(
        "--max-context", type=int, default=200_000, metavar="TOKENS", help="leave out longer ones"
    )
    workload.add_argument(
        "--shared-prefix", type=int, metavar="TOKENS", help="that all conversations share"
    )
    workload.add_argument("--seed", type=int, default=0, metavar="N", help="of --rate")
    workload.add_argument("--no-hints", action="store_true", help="no tool-call and end hints")
    workload.add_argument("--no-names", action="store_true", help="no session ids either")
    report = parser.add_argument_group("report")
    report.add_argument("--json", action="store_true", help="one JSON object a metric")
    report.add_argument("--out", metavar="DIR", help="write requests.csv and plots here")
    report.add_argument("--format", default="svg", choices=("svg", "png"), help="of the plots")
    report.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at once")


def run(arguments: argparse.Namespace) -> int:
    """Simulate the grid and report."""
    from pathlib import Path

    from ..simulation import plots
    from ..simulation.report import notes, rows, table, write_requests
    from ..simulation.sweep import sweep
    from ..trace import load_trace

    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        plots.require()
        out.mkdir(parents=True, exist_ok=True)
    deployments = list(_deployments(arguments))
    workloads = list(_workloads(arguments))
    trace, shape = load_trace(
        arguments.traces,
        max_context=_at_least(1, arguments.max_context, "--max-context"),
        shared_prefix=arguments.shared_prefix,
    )
    outcomes = sweep(deployments, workloads, trace, jobs=arguments.jobs)
    if arguments.json:
        for row in rows(outcomes):
            print(json.dumps(row))
    else:
        device = deployments[0].device
        print(
            f"{shape.conversations} conversations of {shape.requests} requests; "
            f"{device.model.name}, {device.dtype}, on {device.tp} x {device.card.name}"
        )
        print(table(outcomes))
        print(*notes(outcomes), sep="\n")
    if out is not None:
        write_requests(outcomes, out / "requests.csv")
        for path in plots.draw(outcomes, out, arguments.format):
            print(f"wrote {path}")
    return 0


def _deployments(arguments: argparse.Namespace) -> Iterator[Any]:
    from ..simulation.deployment import Deployment
    from ..simulation.device_model import CARDS, DeviceModel

    if arguments.card not in CARDS:
        raise SimulateFlagError(f"--card {arguments.card}: give one of {', '.join(CARDS)}")
    device = DeviceModel(
        _shape(arguments.model),
        CARDS[arguments.card],
        tp=_at_least(1, arguments.tp, "--tp"),
        dtype=arguments.dtype,
        kv_dtype=arguments.kv_dtype,
    )
    for pool in _each(arguments.pool or str(device.pool_tokens)):
        pool_tokens = _tokens(pool, "--pool", device.kv_token_bytes, 0)
        for host in _each(arguments.host):
            for policy in _each(arguments.policy):
                if policy not in ("reuse", "lru"):
                    raise SimulateFlagError(f"--policy {policy}: give reuse or lru")
                yield Deployment(
                    device=device,
                    pool_tokens=pool_tokens,
                    host_tokens=_tokens(host, "--host", device.kv_token_bytes, pool_tokens),
                    eviction=policy,
                    block_size=_at_least(1, arguments.block_size, "--block-size"),
                    max_running=_at_least(1, arguments.max_running, "--max-running"),
                    max_step_tokens=_at_least(1, arguments.step_tokens, "--step-tokens"),
                    decode_stretch=arguments.decode_stretch,
                    transfer_ms=arguments.transfer_ms,
                )


def _workloads(arguments: argparse.Namespace) -> Iterator[Any]:
    from ..simulation.deployment import Workload

    none = arguments.gap_cap == "none"
    fixed: dict[str, Any] = {
        "requests": _at_least(0, arguments.requests, "--requests"),
        "gap_cap_s": 1e9 if none else _number(arguments.gap_cap, "--gap-cap", float, 0),
        "seed": _at_least(0, arguments.seed, "--seed"),
        "names": not arguments.no_names,
        "hints": not arguments.no_hints,
    }
    for rate in _each(arguments.rate):
        yield Workload(rate=_number(rate, "--rate", float, 1e-9), **fixed)
    if not arguments.rate:
        for sessions in _each(arguments.sessions):
            yield Workload(sessions=_number(sessions, "--sessions", int, 1), **fixed)


def _shape(model: str) -> Any:
    from ..simulation.model_shape import MODELS, ModelShape

    if model.lower() in MODELS:
        return MODELS[model.lower()]
    if "/" not in model and "." not in model:
        raise SimulateFlagError(
            f"--model {model}: give one of {', '.join(MODELS)}, or a config.json, a directory, a "
            f".gguf file or a hub id"
        )
    from ..stored_config import stored_config

    return ModelShape.of_config(model, stored_config(model))


def _each(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _tokens(text: str, flag: str, token_bytes: float, pool: int) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(x|[kmgt]?(?:i?b)?)", text.lower())
    if found is None or (found[2] == "x" and not pool):
        raise SimulateFlagError(
            f"{flag} {text}: give tokens such as 760k or 1.5M, or bytes a card such as 40GiB"
            + (", or pools such as 4x" if pool else "")
        )
    number, unit = float(found[1]), found[2]
    if unit == "x":
        return int(number * pool)
    scale = 1024 ** "kmgt".index(unit[0]) * 1024 if "i" in unit else _UNITS[unit.rstrip("b")]
    return int(number * scale / (token_bytes if unit.endswith("b") else 1))


def _number(text: str, flag: str, kind: Callable[[str], Any], least: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value < 1e15:
        raise SimulateFlagError(
            f"{flag} {text}: give "
            + ("a whole number" if kind is int else "a number")
            + f", at least {least:g}"
        )
    return value


def _at_least(least: int, value: int, flag: str) -> int:
    if value < least:
        raise SimulateFlagError(f"{flag} {value}: give at least {least}")
    return value
