# SPDX-License-Identifier: MIT
"""`tokenspeed serve`: an engine behind an OpenAI-compatible HTTP server."""

import argparse
import json

from ..config import ConfigError, EngineConfig, from_arguments
from ..config_flags import add_flags

HELP = "serve a model over HTTP"
DESCRIPTION = "Serve a model over HTTP, compatible with OpenAI's API, until SIGTERM."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's flags."""
    add_flags(parser)


def ready_message(config: EngineConfig, seconds: float) -> str:
    """Return what to print when requests are welcome: the address and a line to paste."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"{config.scheme}://{host}:{config.port}"
    body = {"model": config.model_name, "messages": [{"role": "user", "content": "Hello!"}]}
    key = " -H 'Authorization: Bearer '$KEY" if config.api_key or config.api_keys else ""
    return (
        f"ready in {seconds:.1f} s: {config.model_name} at {url}\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{json.dumps(body)}'"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    config = from_arguments(arguments)
    if not config.model:
        raise ConfigError("no model is given; name a .gguf file, a directory, a hub id or smollm2")
    from ..launch import serve

    return serve(config, ready_message)
