# SPDX-License-Identifier: MIT
"""Rendering a conversation into the prompt text that a model was trained on."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

MAX_RENDERED_CHARS = 16 * 1024 * 1024


class ChatTemplateError(ValueError):
    """A conversation cannot be rendered, or a model has no usable chat template."""


@attrs.frozen(eq=False)
class ChatTemplate:
    """A compiled Jinja template in the Hugging Face dialect, sandboxed and bounded in output."""

    template: jinja2.Template
    variables: Mapping[str, str]  # bos_token, eos_token
    max_chars: int = MAX_RENDERED_CHARS

    @classmethod
    def compile(cls, source: str, variables: Mapping[str, str]) -> "ChatTemplate":
        """Compile a model's template.

        Raises:
            ChatTemplateError: the source is not valid Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            return cls(environment.from_string(source), dict(variables))
        except jinja2.TemplateError as error:
            raise ChatTemplateError(
                f"the model's chat template does not compile: {error}"
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt of a conversation, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: a message is malformed, the template refuses it, or the text is
                longer than `max_chars`.
        """
        plain = [plain_message(message, index) for index, message in enumerate(messages)]
        parts: list[str] = []
        size = 0
        try:
            for part in self.template.generate(
                messages=plain, add_generation_prompt=add_generation_prompt, **self.variables
            ):
                size += len(part)
                if size > self.max_chars:
                    raise ChatTemplateError(
                        f"the rendered conversation is longer than {self.max_chars} characters; "
                        f"send fewer or shorter messages"
                    )
                parts.append(part)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template refused the messages: {error}") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            if isinstance(error, ChatTemplateError):
                raise
            raise ChatTemplateError(
                f"the chat template failed on the messages ({type(error).__name__}: {error})"
            ) from error
        return "".join(parts)


def plain_message(message: Message, index: int) -> dict[str, Any]:
    """Return the message with its text parts joined; templates expect `content` to be a string.

    Raises:
        ChatTemplateError: no role, or content that is not text.
    """
    where = f"messages[{index}]"
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ChatTemplateError(f"{where}.role is missing; give system, user or assistant")
    if role not in ("system", "developer", "user", "assistant"):
        raise ChatTemplateError(
            f"{where}.role {role[:40]!r} is not built; built: system, developer, user, assistant"
        )
    if message.get("tool_calls"):
        raise ChatTemplateError(f"{where}.tool_calls is not built; send the text of the call")
    return {**message, "role": role, "content": _content(message.get("content"), where)}


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
