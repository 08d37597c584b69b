# SPDX-License-Identifier: MIT
"""The body of Anthropic's `POST /v1/messages`, and the same conversation in OpenAI's form."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..chat_template import Rendering
from ..sampling_params import SamplingParams
from .answer_format import Asked, asked_format
from .failure import ApiError
from .request_body import GenerationFields
from .tools import Tools

# Claude Code begins its system prompt with a line that differs in every request, and would so keep
# every prompt out of the prefix cache.
_NONCE = "x-anthropic-billing-header:"


class ToolChoice(msgspec.Struct, frozen=True):
    """Which tools may be called."""

    type: str = "auto"
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model is to think, and for how many tokens at most; 0: for as long as it will."""

    type: str
    budget_tokens: int = 0
    display: str = ""


class CountFields(GenerationFields, frozen=True, kw_only=True):
    """What of the body makes the prompt."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] = ""
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def wants_logprobs(self) -> bool:
        """Anthropic's answers have none."""
        return False

    def offered(self) -> Tools:
        """Return the tools that the model is shown.

        Raises:
            ApiError: a tool is malformed, or the choice cannot be served.
        """
        choice: Any = self.tool_choice.type
        if choice == "tool":
            choice = {"type": "function", "name": self.tool_choice.name}
        tools = [_tool(tool) for tool in self.tools]
        return Tools.of(tools, choice, one_call=self.tool_choice.disable_parallel_tool_use)

    def rendering(self, tools: Tools) -> Rendering:
        """Return what the chat template is given beside the messages.

        A conversation that ends with the assistant's own text is continued.
        """
        told: dict[str, Any] = {}
        if self.thinking is not None:
            told["enable_thinking"] = self.thinking.type != "disabled"
        ends = bool(self.messages) and self.messages[-1].get("role") == "assistant"
        return Rendering(
            tools.shown,
            told | self.chat_template_kwargs,
            continues_final=ends,
            salt=self.cache_salt,
        )

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages in OpenAI's form.

        Raises:
            ApiError: a block is malformed or not built; it names the place.
        """
        if not self.messages:
            raise ApiError(400, "messages is empty; send at least one", param="messages")
        said = list(_system(self.system))
        for index, message in enumerate(self.messages):
            said += _messages(message, f"messages[{index}]")
        return said


class MessageFields(CountFields, frozen=True, kw_only=True):
    """Body of `POST /v1/messages`."""

    max_tokens: int
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    output_config: dict[str, Any] = msgspec.field(default_factory=dict)

    def asked_format(self) -> Asked | None:
        """Return the form that the answer must have; here `output_config.format` says so too."""
        asked = super().asked_format()
        return asked or asked_format(output_config=self.output_config.get("format"))

    def thinking_tokens(self) -> int | None:
        """Return how many tokens the model may think; None: as many as it will."""
        thinking = self.thinking
        if thinking is None or thinking.type != "enabled" or thinking.budget_tokens <= 0:
            return None
        return thinking.budget_tokens

    def sampling_params(self) -> SamplingParams:
        """Return the request's sampling.

        Raises:
            SamplingError: a value is out of range.
        """
        stops = msgspec.structs.replace(self, stop=self.stop_sequences, stop_sequences=[])
        return super(MessageFields, stops).sampling_params()


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type", "custom")
    if kind not in ("custom", None):
        return {"type": kind}
    function = {
        "name": tool.get("name"),
        "description": tool.get("description", ""),
        "parameters": tool.get("input_schema") or {},
        "strict": tool.get("strict") is True,
    }
    return {"type": "function", "function": function}


def _system(system: str | Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
    texts = [_text(block, f"system[{index}]") for index, block in enumerate(blocks)]
    kept = [text for text in map(_without_nonce, texts) if text]
    if kept:
        yield {"role": "system", "content": "\n".join(kept)}


def _without_nonce(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_NONCE) else text


def _text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if kind != "text" or not isinstance(block.get("text"), str):
        raise ApiError(
            400,
            f"{where} is of type {str(kind)[:40]!r}; only text is built here",
            param=where.partition("[")[0],
            code="unsupported_parameter",
        )
    text: str = block["text"]
    return text


def _messages(message: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list) or not all(isinstance(each, Mapping) for each in content):
        raise ApiError(
            400, f"{where}.content must be a string or a list of blocks", param="messages"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        place = f"{where}.content[{number}]"
        match block.get("type"):
            case "tool_result" if role == "user":
                yield _result(block, place)
            case "tool_use" if role == "assistant":
                calls.append(_call(block))
            case "thinking" if role == "assistant":
                thoughts.append(str(block.get("thinking", "")))
            case "redacted_thinking" if role == "assistant":
                pass  # nobody but its author can read it
            case _:
                texts.append(_text(block, place))
    if role == "assistant":
        said: dict[str, Any] = {"role": role, "content": "\n".join(texts) if texts else None}
        if thoughts:
            said["reasoning_content"] = "\n".join(thoughts)
        if calls:
            said["tool_calls"] = calls
        elif said["content"] is None:
            said["content"] = ""
        yield said
    elif texts:
        yield {"role": role, "content": "\n".join(texts)}


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content") or ""
    if not isinstance(content, str | list):
        raise ApiError(400, f"{where}.content is neither text nor blocks", param="messages")
    text = (
        content
        if isinstance(content, str)
        else "\n".join(_text(part, f"{where}.content") for part in content)
    )
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.get("input") or {}).decode()
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}
