# SPDX-License-Identifier: MIT
"""Bodies as Claude Code sends them: a nonce in front, tools in any order, timestamps.

Whatever a client does to the head of its prompts, the cache is used as well as it can be, or the
answer says why it is not.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import attrs
import httpx
import pytest
import uvicorn

from tests.frontend.conftest import thin_engine
from tokenspeed_core.async_llm import AsyncLLM, TextCodec
from tokenspeed_core.launch import Engine
from tokenspeed_core.server.__main__ import bind
from tokenspeed_core.server.app import create_app, new_service

MODEL = "smollm2"
PATIENCE_S = 120.0
TURNS = 5
# as Qwen's: tools in the system message, then the turns
TEMPLATE = """<|im_start|>system
{{ messages[0].content }}
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
Call one by <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% for message in messages[1:] %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SYSTEM = "You are an agent that edits code. " + " ".join(
    f"Rule {number}: read file {number} before you change it." for number in range(30)
)
TOOLS = [
    {
        "name": name,
        "description": f"{name} something in the working directory, and tell what came of it.",
        "input_schema": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "what": {"type": "string"}},
            "required": ["path"],
        },
    }
    for name in ("Bash", "Edit", "Glob", "Grep", "Read", "Task", "WebFetch", "Write")
]


@pytest.fixture(scope="module")
def engine(thin_smollm2: Path) -> Iterator[Engine]:
    with thin_engine(
        thin_smollm2,
        serves_http=False,
        served_model_name=MODEL,
        num_blocks=1500,
        max_model_len=4096,
    ) as engine:
        yield engine


@contextlib.asynccontextmanager
async def serving(engine: Engine, codec: TextCodec, *, sort_tools: bool) -> AsyncIterator[str]:
    """An API process's server in this process, so that the model may have another template."""
    config = attrs.evolve(engine.config, sort_tools=sort_tools)
    shaped = codec.with_template(TEMPLATE)
    async with AsyncLLM(config, run_dir=engine.run.path, codec=shaped) as llm:
        app = create_app(new_service(llm))
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


def body(
    history: list[dict[str, Any]], draw: random.Random, name: str, *, shuffled: bool, stamped: bool
) -> dict[str, Any]:
    nonce = f"x-anthropic-billing-header: cc_version=2.1; cch={draw.getrandbits(64):016x};"
    stamp = f"Now: {draw.getrandbits(40)} seconds.\n" if stamped else ""
    tools = draw.sample(TOOLS, len(TOOLS)) if shuffled else TOOLS
    return {
        "model": MODEL,
        "max_tokens": 12,
        "system": [
            {"type": "text", "text": nonce},
            {"type": "text", "text": stamp + SYSTEM, "cache_control": {"type": "ephemeral"}},
        ],
        "tools": tools,
        "messages": history,
        "extra_body": {"session_id": name, "temperature": 0},
    }


async def hit_rate(
    url: str, name: str, *, shuffled: bool = False, stamped: bool = False
) -> tuple[float, anthropic.types.Message]:
    """Play a conversation; return cached / ideal tokens of its later turns, and the last answer."""
    draw = random.Random(name)
    history: list[dict[str, Any]] = []
    cached = ideal = before = 0
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        for turn in range(TURNS):
            history.append({"role": "user", "content": f"{name} {turn}: " + "look again. " * 12})
            asked = body(history, draw, name, shuffled=shuffled, stamped=stamped)
            answer = await client.messages.create(**asked)
            text = answer.content[0].text if answer.content else ""
            history.append({"role": "assistant", "content": text})
            found = answer.usage.cache_read_input_tokens or 0
            if turn:
                cached += found
                ideal += before  # the last prompt is what this one begins with
            before = answer.usage.input_tokens + found
    return cached / ideal, answer


async def volatile(url: str) -> float:
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{url}/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("tokenspeed_volatile_prefix")]
    return sum(float(line.split()[-1]) for line in lines if "_total" in line)


async def test_a_nonce_and_shuffled_tools_keep_the_hit_rate(
    engine: Engine, codec: TextCodec
) -> None:
    async with serving(engine, codec, sort_tools=True) as url:
        for name, shuffled in (("nonce", False), ("shuffled", True)):
            rate, _ = await hit_rate(url, name, shuffled=shuffled)
            print(f"{name}: {100 * rate:.1f}% of the ideal hit rate")
            assert rate >= 0.95
        assert await volatile(url) == 0


async def test_what_is_not_put_in_order_is_told(engine: Engine, codec: TextCodec) -> None:
    async with serving(engine, codec, sort_tools=False) as url:
        rate, _ = await hit_rate(url, "stamped", stamped=True)
        assert rate < 0.2
        assert await volatile(url) >= TURNS - 3  # once it is seen to be a habit
