# SPDX-License-Identifier: MIT
"""`tokenspeed generate`: one prompt in, text out as it comes."""

import argparse
import sys

from ..config import from_arguments
from ..config_flags import add_flags

HELP = "generate text for one prompt in the terminal"
DESCRIPTION = (
    "Start an engine, generate text for one prompt and print it as it comes. "
    "Without --prompt the prompt is read from standard input."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's flags and the request's."""
    add_flags(parser)
    request = parser.add_argument_group("request")
    request.add_argument("--prompt", "-p", metavar="TEXT", help="the prompt; default: stdin")
    request.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    request.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    request.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0, the default, is greedy"
    )
    request.add_argument("--top-k", type=int, default=0, metavar="N", help="0 keeps all tokens")
    request.add_argument("--top-p", type=float, default=1.0, metavar="X", help="1 keeps all tokens")
    request.add_argument("--sampling-seed", type=int, metavar="N", help="default: a random one")
    request.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")


def run(arguments: argparse.Namespace) -> int:
    """Generate and print."""
    from ..llm import LLM
    from ..sampling_params import SamplingParams

    config = from_arguments(arguments)
    params = SamplingParams(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.sampling_seed,
        max_tokens=arguments.max_tokens,
        stop=arguments.stop,
    )
    prompt = sys.stdin.read() if arguments.prompt is None else arguments.prompt
    with LLM(config) as llm:
        if arguments.raw:
            deltas = llm.stream(prompt, params)
        else:
            deltas = llm.stream_chat([{"role": "user", "content": prompt}], params)
        for delta in deltas:
            print(delta.text, end="", flush=True)
    print()
    return 0
