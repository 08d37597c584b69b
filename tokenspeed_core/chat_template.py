# SPDX-License-Identifier: MIT
"""Rendering a conversation into the prompt text that a model was trained on."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import jinja2
import jinja2.ext
import jinja2.meta

from .template_budget import TICK, Budget, BudgetedEnvironment, BudgetError

Message = Mapping[str, Any]

MAX_RENDERED_CHARS = 16 * 1024 * 1024
RENDER_S = 2.0  # CPU time; the longest honest conversations take some hundredths of it


class ChatTemplateError(ValueError):
    """A conversation cannot be rendered, or a model has no usable chat template."""


class RenderTimeError(ChatTemplateError):
    """The template took longer on the messages than it may."""


@attrs.frozen
class Rendering:
    """What a template is given beside the messages."""

    tools: Sequence[Mapping[str, Any]] = ()  # in OpenAI's form
    variables: Mapping[str, Any] = attrs.field(factory=dict)  # such as enable_thinking
    adds_generation_prompt: bool = True
    continues_final: bool = False  # the last message is the beginning of the answer
    salt: str = ""  # conversations of different salts share no work

    def with_sorted_tools(self) -> "Rendering":
        """Return this with the tools in the order of their names."""
        named = sorted(self.tools, key=lambda tool: str(tool["function"]["name"]))
        return attrs.evolve(self, tools=named)


@attrs.frozen(eq=False)
class ChatTemplate:
    """A compiled Jinja template in the Hugging Face dialect, sandboxed and bounded in output."""

    template: jinja2.Template
    variables: Mapping[str, str]  # bos_token, eos_token
    source: str
    takes: frozenset[str]  # variables that have an effect
    max_chars: int = MAX_RENDERED_CHARS

    @classmethod
    def compile(cls, source: str, variables: Mapping[str, str]) -> "ChatTemplate":
        """Compile a model's template.

        Raises:
            ChatTemplateError: the source is not valid Jinja.
        """
        environment = BudgetedEnvironment(
            MAX_RENDERED_CHARS,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            template = environment.budgeted(source)
            takes = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"the model's chat template does not compile: {error}"
            ) from error
        return cls(template, dict(variables), source, frozenset(takes))

    def render(
        self,
        messages: Sequence[Message],
        how: Rendering | None = None,
        budget_s: float = RENDER_S,
    ) -> str:
        """Return the prompt of a conversation, ending where the assistant's answer begins.

        Raises:
            RenderTimeError: that takes more than `budget_s` of this thread's CPU time.
            ChatTemplateError: a message is malformed, the template refuses it, or the text is
                longer than `max_chars`.
        """
        how = how or Rendering()
        plain = [plain_message(message, index) for index, message in enumerate(messages)]
        self._check_tools(plain, how)
        variables = {
            **self.variables,
            **how.variables,
            "messages": plain,
            "tools": list(how.tools) or None,
            "documents": None,
            TICK: Budget(budget_s).tick,
            "add_generation_prompt": how.adds_generation_prompt and not how.continues_final,
        }
        text = self._text(variables)
        return _cut_after(text, plain) if how.continues_final else text

    def _check_tools(self, messages: Sequence[Message], how: Rendering) -> None:
        if "tools" in self.takes:
            return
        if how.tools:
            raise ChatTemplateError("tools are given, and this model's chat template takes none")
        for index, message in enumerate(messages):
            if message["role"] == "tool" or message.get("tool_calls"):
                raise ChatTemplateError(
                    f"messages[{index}] tells of a tool, and this model's chat template takes none"
                )

    def _text(self, variables: Mapping[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self.template.generate(variables):
                size += len(part)
                if size > self.max_chars:
                    raise ChatTemplateError(
                        f"the rendered conversation is longer than {self.max_chars} characters; "
                        f"send fewer or shorter messages"
                    )
                parts.append(part)
        except BudgetError as error:
            raise RenderTimeError(f"the chat template was stopped: {error}") from error
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template refused the messages: {error}") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            if isinstance(error, ChatTemplateError):
                raise
            raise ChatTemplateError(
                f"the chat template failed on the messages ({type(error).__name__}: {error})"
            ) from error
        return "".join(parts)


_ROLES = ("system", "developer", "user", "assistant", "tool")


def plain_message(message: Message, index: int) -> dict[str, Any]:
    """Return the message as templates expect it: text parts joined, arguments as objects.

    Raises:
        ChatTemplateError: no role, content that is not text, or a malformed tool call.
    """
    role, content = message.get("role"), message.get("content")
    is_plain = isinstance(content, str) and role in _ROLES and "tool_calls" not in message
    if is_plain and isinstance(message, dict):
        return message  # as most are; templates change nothing that they are given
    where = f"messages[{index}]"
    if not isinstance(role, str) or not role:
        raise ChatTemplateError(f"{where}.role is missing; give system, user or assistant")
    if role not in _ROLES:
        raise ChatTemplateError(
            f"{where}.role {role[:40]!r} is not built; built: {', '.join(_ROLES)}"
        )
    plain = dict(message)
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ChatTemplateError(f"{where}.tool_calls is not a list of an assistant's calls")
        plain["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)
        ]
    else:
        plain.pop("tool_calls", None)
    if content is None and role == "assistant" and (calls or message.get("reasoning_content")):
        plain["content"] = None if calls else ""
    else:
        plain["content"] = _content(content, where)
    return plain


class Arguments(dict[str, Any]):
    """A call's arguments: an object to templates that look into it, its text to those that print.

    Some families' templates serialise the object, others put text together from it.
    """

    def __init__(self, value: Mapping[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, after: str) -> str:
        return self._text + after

    def __radd__(self, before: str) -> str:
        return before + self._text


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise ChatTemplateError(f"{where}.function has no name; give a name and arguments")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            parsed = arguments
        if isinstance(parsed, dict):
            arguments = Arguments(parsed, arguments or "{}")
    if not isinstance(arguments, str | dict):
        raise ChatTemplateError(f"{where}.function.arguments is not a JSON object in a string")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _cut_after(text: str, messages: Sequence[Message]) -> str:
    """Return the text up to the end of the last message's content."""
    content = str(messages[-1]["content"] or "").strip() if messages else ""
    at = text.rfind(content) if content else -1
    if at < 0:
        raise ChatTemplateError("the last message has no text that the answer could continue")
    return text[: at + len(content)]


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise ChatTemplateError(f"{where}.content is {kind}; give a string or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        named = isinstance(part, Mapping)
        part_kind = part.get("type") if named else type(part).__name__
        if part_kind != "text" or not isinstance(part.get("text"), str):
            raise ChatTemplateError(
                f"{where}.content[{number}] is of type {str(part_kind)[:40]!r}; "
                f"only text parts are built"
            )
        texts.append(part["text"])
    return "\n".join(texts)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks training targets; it renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
