# SPDX-License-Identifier: MIT
"""An engine on one machine, a client on another: ZeroMQ over tcp, encrypted with CURVE.

    python examples/12_remote_client.py [MODEL]

Both run here.  On two machines it is, on that of the engine, whose address is HOST:

    tokenspeed keys engine.keys tcp://HOST:7700
    tokenspeed serve smollm2 --bind tcp://HOST:7700 --curve-keys engine.keys

and on the other, with the file `engine.keys.client` that was made there, what `ask` does below.  It
needs `tokenspeed_core.sdk` and no torch: token ids go out and come back.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenspeed_core import Client, EngineConfig
from tokenspeed_core.ipc.remote_engine import RemoteEngine
from tokenspeed_core.launch import Engine
from tokenspeed_core.text_codec import TextCodec


async def ask(keys: Path, prompt: list[int], stop_ids: list[int]) -> list[int]:
    """All that the client's machine does."""
    async with Client(RemoteEngine.read(keys)) as client:
        answer = client.generate(prompt, max_tokens=24, stop_ids=stop_ids)
        return [token async for delta in answer for token in delta.tokens]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(model: str) -> None:
    codec = TextCodec.load(model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = asyncio.run(codec.chat_prompt(question))
    with tempfile.TemporaryDirectory() as directory:
        keys = Path(directory) / "engine.keys"
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        made = [sys.executable, "-m", "tokenspeed_core", "keys", str(keys), endpoint]
        subprocess.run(made, check=True)
        config = EngineConfig(model=model, bind=endpoint, curve_keys=str(keys))
        with Engine.start(config) as engine:
            engine.wait_ready()
            ends = sorted(codec.tokenizer.eos_ids)
            answer = asyncio.run(ask(keys.with_name("engine.keys.client"), prompt, ends))
    print(codec.tokenizer.decode(answer))


if __name__ == "__main__":
    main(*sys.argv[1:] or ["smollm2"])
