# SPDX-License-Identifier: MIT
"""Templates that would run or grow without end are stopped; others render as jinja does."""

import asyncio
import contextlib
import threading
import time
from typing import Any, ClassVar

import attrs
import httpx
import jinja2
import pytest
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from markupsafe import Markup

from tests.frontend.conftest import listening
from tests.frontend.scripted_scheduler import ScriptedScheduler
from tests.frontend.victims import undisturbed
from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.chat_template import (
    Arguments,
    ChatTemplate,
    ChatTemplateError,
    Rendering,
    RenderTimeError,
)
from tokenspeed_core.template_budget import TICK, BudgetedEnvironment

MESSAGES = [{"role": "user", "content": "Hi"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "loops": LOOP,
    "a loop of a macro": "{% macro m(n) %}{% for i in range(n) %}{{ m(n) }}{% endfor %}"
    "{% endmacro %}"
    "{% for i in range(99999) %}{{ m(2) }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [messages] recursive %}{{ loop([messages]) }}{% endfor %}",
    "range": "{{ range(10 ** 10) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "times": "{{ 'x' * 10 ** 10 }}",
    "list times": "{{ [1] * 10 ** 10 }}",
    "doubling": "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}{{ n.s | length }}",
    "joining": "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s | length }}",
    "format": "{{ '%999999999d' % 1 }}",
    "star": "{{ '%*d' % (999999999, 1) }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_stopped(source: str) -> None:
    template = ChatTemplate.compile(source, {})
    before = time.thread_time()
    with pytest.raises(ChatTemplateError):
        template.render(MESSAGES, budget_s=0.2)
    assert time.thread_time() - before < 5


class _Field(dict[str, object]):
    """A mapping that is no plain one."""


def test_attributes_mean_what_the_sandbox_says() -> None:
    """The shorter ways to them too: fields of messages, loops, texts."""
    ours = BudgetedEnvironment(10**6)
    sandbox = ImmutableSandboxedEnvironment()
    loop = LoopContext([1, 2], jinja2.Undefined)
    next(iter(loop))
    message = {"role": "user", "items": 1, "pop": 2, "_x": 3, "__class__": 4}
    of_theirs = {name for each in (loop, message, "", [], Namespace) for name in dir(each)}
    names = sorted(of_theirs | {"role", "missing", "_x", "x", "mro"})
    values = ["text", message, _Field(message), loop, Namespace(x=1, _x=2), [1], Arguments({}, "")]
    values += [7, None, str, dict, len, _Field, Markup("<b>")]
    for value in values:
        for name in names:
            found, wanted = (each.getattr(value, name) for each in (ours, sandbox))
            assert type(found) is type(wanted), (value, name)
            assert isinstance(wanted, jinja2.Undefined) or callable(wanted) or found == wanted


def test_the_budget_is_of_one_rendering() -> None:
    template = ChatTemplate.compile("{% for i in range(n) %}{{ i % 7 }}{% endfor %}", {})
    with pytest.raises(RenderTimeError, match="CPU time"):
        template.render(MESSAGES, Rendering(variables={"n": 99999}), budget_s=0.001)
    for _ in range(3):
        assert template.render(MESSAGES, Rendering(variables={"n": 3}), 0.5) == "012"
    with pytest.raises(ChatTemplateError, match="name of ours"):
        ChatTemplate.compile("{{ " + TICK + " }}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' ~ 1 ~ none ~ (2 ~ 'b') }}{{ ('x' ~ 'y') | upper }}",
        "{% set a = 'p' ~ 'q' %}{% if 'p' ~ 'q' == a %}{{ a[0] ~ a[1:] }}{% endif %}",
        "{% macro m(x) %}<{{ x ~ '!' }}>{{ caller() if caller else '' }}{% endmacro %}"
        "{% call m('a') %}in{% endcall %}{{ m('b') }}",
        "{% for a in 'xyz' if a ~ '' != 'y' %}{{ loop.index ~ a }}{% else %}none{% endfor %}",
        "{% for a in [] %}{{ a }}{% else %}{{ 'no' + 'ne' }}{% endfor %}",
        "{{ [1] * 3 + [2] }}{{ 2 ** 10 }}{{ 17 % 5 }}{{ '%s-%03d' % ('a', 7) }}",
    ],
)
def test_what_ends_is_rendered_as_jinja_does(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(source).render(messages=MESSAGES)
    assert ChatTemplate.compile(source, {}).render(MESSAGES) == expected


def test_a_template_reaches_nothing_outside() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ joined.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
    ):
        text = ""
        with contextlib.suppress(ChatTemplateError, jinja2.TemplateError):
            text = ChatTemplate.compile(source, {}).render(MESSAGES)
        assert not text, text


async def test_a_slow_template_is_a_400_and_slows_nobody(
    scheduler: ScriptedScheduler, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenspeed_core.text_codec.RENDER_S", 1.0)
    slow = attrs.evolve(codec.with_template("{% if slow %}" + LOOP + "{% endif %}x"))
    async with (
        listening(scheduler, slow) as http,
        httpx.AsyncClient(base_url=http.url, timeout=60) as client,
        undisturbed(http),
    ):
        body = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 2}
        bad = {**body, "chat_template_kwargs": {"slow": True}}
        attacks = [
            asyncio.create_task(client.post("/v1/chat/completions", json=bad)) for _ in range(3)
        ]
        probes = 0
        while not all(attack.done() for attack in attacks):
            # whole requests are answered while templates spin
            assert (await client.get("/health")).status_code == 200
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.json()["usage"]["completion_tokens"] == 2
            probes += 1
        assert probes >= 3
        for attack in attacks:
            error = (await attack).json()["error"]
            assert (error["param"], error["code"]) == ("messages", "invalid_messages")
            assert "CPU time" in error["message"]


class _Watched(ChatTemplate):
    """Notes which threads render."""

    threads: ClassVar[list[int]] = []

    def render(self, *args: Any, **kwargs: Any) -> str:
        self.threads.append(threading.get_ident())
        return super().render(*args, **kwargs)


async def test_long_renderings_go_to_a_thread_once_one_was_slow(codec: TextCodec) -> None:
    source = "{% for i in range(messages[0]['turns']) %}{% endfor %}{{ messages[0]['content'] }}"
    mine = codec.with_template(source)
    assert mine.template is not None
    mine = attrs.evolve(mine, template=_Watched(**attrs.asdict(mine.template, recurse=False)))

    async def renders(turns: int, chars: int) -> list[bool]:
        """Return for each rendering of a conversation whether the event loop waited for it."""
        _Watched.threads.clear()
        content = "Hello " * (chars // 6)
        found = await mine.chat([{"role": "user", "content": content, "turns": turns}])
        assert found.ids.tolist() == mine.tokenizer.encode(content, add_special=False)
        return [thread == threading.get_ident() for thread in _Watched.threads]

    assert await renders(1, 60_000) == [True]
    assert await renders(90_000, 60_000) == [True, False]
    assert await renders(1, 60_000) == [False]
    assert await renders(1, 30_000) == [True]
    assert await renders(90_000, 60) == [True, False]
    assert await renders(1, 60) == [True]
    assert await renders(1, 30_000) == [False]
