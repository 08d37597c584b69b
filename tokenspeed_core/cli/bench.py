# SPDX-License-Identifier: MIT
"""`tokenspeed bench`: the runner timed on shapes that peers were measured on."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bench.row import Row

HELP = "time decode, prefill, warm turns, shared prefixes, agents, throughput, or a server"
DESCRIPTION = (
    "decode, prefill, warm, shared: time the runner on dummy weights and random tokens, in lock "
    "step with plans that are made two steps ahead; agentic, throughput: sessions that grow turn "
    "by turn, and 128 prompts at once, through the real processes; serve: recorded agent "
    "conversations against any server that speaks OpenAI's completions. Prints a JSON object a "
    "line; peers' figures beside ours on their card."
)
BENCHES = ("decode", "prefill", "warm", "shared", "agentic", "throughput", "serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench, the model's shape and the device."""
    parser.add_argument("bench", choices=BENCHES, help="what to time")
    parser.add_argument(
        "--shape",
        default="qwen3-8b",
        metavar="NAME",
        help="qwen3-0.6b, qwen3-8b (default), qwen3-32b, qwen3-30b-a3b, deepseek-v2-lite or tiny",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--blocks", type=int, default=0, metavar="N", help="KV blocks; 0: all free")
    parser.add_argument(
        "--most", type=int, default=0, metavar="N", help="only the first N cases; 0: all"
    )
    parser.add_argument("--no-graphs", action="store_true", help="run decode steps eagerly")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks")
    parser.add_argument(
        "--layout", default="", metavar="TEXT", help='any other layout, such as "tp=2; j: e:tp"'
    )

    parser.add_argument("--kv-cache", default="auto", choices=("auto", "bf16", "fp32", "fp8"))
    parser.add_argument(
        "--weights", default="auto", choices=("auto", "plain", "fp8", "fp8-block", "fp8-tensor")
    )
    parser.add_argument(
        "--decode-stretch", type=float, default=1.5, metavar="X", help="of agentic, throughput"
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="JSON lines of an earlier run, or of vLLM's anchors: print both and their ratios",
    )
    serve = parser.add_argument_group("serve")
    serve.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server, with /v1")
    serve.add_argument("--model", default="", help="its name there")
    serve.add_argument("--traces", metavar="FILE", help="conversations, as simulate reads them")
    serve.add_argument("--sessions", type=int, default=8, metavar="N", help="at once")
    serve.add_argument("--requests", type=int, default=0, metavar="N", help="at most; 0: all")
    serve.add_argument(
        "--max-context", type=int, default=1 << 17, metavar="TOKENS", help="no longer conversation"
    )
    serve.add_argument(
        "--max-answer", type=int, default=0, metavar="TOKENS", help="cut answers; 0: as recorded"
    )
    serve.add_argument(
        "--vocabulary", type=int, default=32000, metavar="N", help="token ids stay below it"
    )
    serve.add_argument(
        "--pause", type=float, default=0.0, metavar="X", help="part of recorded pauses to wait"
    )
    serve.add_argument("--api-key", default="", metavar="KEY")


def run(arguments: argparse.Namespace) -> int:
    """Time and print."""
    from ..bench.comparison import stored, table

    before = stored(arguments.compare) if arguments.compare else None
    found = _served(arguments) if arguments.bench == "serve" else _timed(arguments)
    if before is not None:
        for line in table(found, before):
            print(line, file=sys.stderr)
    return 0


def _timed(arguments: argparse.Namespace) -> "list[Row]":
    from ..bench.options import Options

    options = Options(
        bench=arguments.bench,
        shape=arguments.shape,
        device=arguments.device,
        blocks=arguments.blocks,
        most=arguments.most,
        graphs=not arguments.no_graphs,
        tp=arguments.tp,
        layout=arguments.layout,
        kv_cache=arguments.kv_cache,
        weights=arguments.weights,
        decode_stretch=arguments.decode_stretch,
    )
    if arguments.bench not in ("agentic", "throughput"):
        from ..bench.ranks import time_ranks

        return time_ranks(options)
    from ..bench.agentic import SESSIONS, SMALL, time_agentic

    sessions = (SMALL if options.shape == "tiny" else SESSIONS)[options.bench]
    return _printed(list(time_agentic(options, sessions)))


def _served(arguments: argparse.Namespace) -> "list[Row]":
    import asyncio

    from ..bench.conversation import conversations
    from ..bench.serve import Load, ServeError, play, rows

    if not arguments.traces or not arguments.model:
        raise ServeError("bench serve needs --traces FILE and --model NAME")
    load = Load(
        url=arguments.url,
        model=arguments.model,
        vocabulary=arguments.vocabulary,
        sessions=arguments.sessions,
        requests=arguments.requests,
        pause=arguments.pause,
        api_key=arguments.api_key,
        max_answer=arguments.max_answer,
    )
    found = conversations(arguments.traces, arguments.max_context)
    answered, seconds = asyncio.run(play(load, found))
    return _printed(list(rows(load, answered, seconds)))


def _printed(rows: "list[Row]") -> "list[Row]":
    for row in rows:
        print(row.json(), flush=True)
    return rows
