# SPDX-License-Identifier: MIT
"""The body of OpenAI's `POST /v1/responses`, and the same conversation in the form of chat."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ..chat_template import Rendering
from ..sampling_params import SamplingError, SamplingParams
from .answer_format import Asked, asked_format
from .failure import ApiError
from .request_body import GenerationFields
from .tools import Tools

LOGPROBS = "message.output_text.logprobs"
# More of items that no answer has: nothing is missing without them.
ABSENT = (
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


class ReasoningOptions(msgspec.Struct, frozen=True):
    """How much the model is to think."""

    effort: str | None = None


class ResponseFields(GenerationFields, frozen=True, kw_only=True):
    """Body of `POST /v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str = ""
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    reasoning: ReasoningOptions = ReasoningOptions()
    text: dict[str, Any] = msgspec.field(default_factory=dict)
    previous_response_id: str = ""
    background: bool = False  # answer at once, generate on; GET tells what came of it
    include: list[str] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    store: bool = True
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def wants_logprobs(self) -> bool:
        """The log-probability of each token of the messages is to be reported."""
        return LOGPROBS in self.include

    def sampling_params(self) -> SamplingParams:
        """Return the request's sampling.

        Raises:
            SamplingError: a value is out of range.
        """
        if self.top_logprobs and not self.wants_logprobs:
            raise SamplingError("top_logprobs", f"needs {LOGPROBS} in include")
        return self.told_params(self.max_output_tokens, self.top_logprobs, None)

    def check(self, *, is_stored: bool) -> None:
        """Raise ApiError for what is asked and not built."""
        self.refuse("n", "return_token_ids", "stream_options")
        for name in self.include:
            if name not in (LOGPROBS, *ABSENT):
                raise _unbuilt("include", f"{name[:60]!r} is not built; {LOGPROBS!r} is")
        if self.background and self.stream:
            raise _unbuilt(
                "background", "its events are not streamed; leave stream out, and GET it"
            )
        if self.background and not is_stored:
            raise _unbuilt("background", "this answer is not stored; let store be true")

    def asked_format(self) -> Asked | None:
        """Return the form that the answer must have; here `text.format` says so too."""
        asked = super().asked_format()
        return asked or asked_format(text=self.text.get("format"))

    def offered(self) -> Tools:
        """Return the tools that the model is shown.

        Raises:
            ApiError: a tool is malformed, or the choice cannot be served.
        """
        tools = [_tool(tool) for tool in self.tools]
        return Tools.of(tools, self.tool_choice, one_call=not self.parallel_tool_calls)

    def rendering(self, tools: Tools) -> Rendering:
        """Return what the chat template is given beside the messages."""
        effort = self.reasoning.effort
        told = {} if effort is None else {"reasoning_effort": effort}
        return Rendering(tools.shown, told | self.chat_template_kwargs, salt=self.cache_salt)

    def items(self) -> list[dict[str, Any]]:
        """Return the input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def conversation(self) -> list[dict[str, Any]]:
        """Return the input as messages.

        Raises:
            ApiError: an item is malformed or not built; it names the place.
        """
        said: list[dict[str, Any]] = []
        if self.instructions:
            said.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*said, {"role": "user", "content": self.input}]
        if not self.input:
            raise ApiError(400, "input is empty; send at least one item", param="input")
        for index, item in enumerate(self.input):
            _add(said, item, f"input[{index}]")
        return said


def _add(said: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Add an item; what an assistant thought, said and called in a row is one message."""
    match item.get("type", "message"):
        case "message":
            role, content = item.get("role"), _text(item.get("content"), f"{where}.content")
            if role == "assistant":
                _assistant(said, "content")["content"] = content
            else:
                said.append({"role": role, "content": content})
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _assistant(said, "").setdefault("tool_calls", []).append(call)
        case "function_call_output":
            output = _text(item.get("output"), f"{where}.output")
            said.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        case "reasoning":
            parts = item.get("content") or item.get("summary") or []
            _assistant(said, "reasoning_content")["reasoning_content"] = _text(parts, where)
        case kind:
            raise ApiError(
                400,
                f"{where} is of type {str(kind)[:40]!r}; built: message, function_call, "
                f"function_call_output, reasoning",
                param="input",
                code="unsupported_parameter",
            )


def _assistant(said: list[dict[str, Any]], field: str) -> dict[str, Any]:
    """Return the assistant's message that goes on, or a new one if it has `field` already."""
    last = said[-1] if said else {}
    if last.get("role") != "assistant" or last.get(field) or (field and "tool_calls" in last):
        last = {"role": "assistant", "content": None}
        said.append(last)
    return last


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is neither a text nor a list of parts", param="input")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise ApiError(400, f"{where} has parts that are no text", param="input")
        texts.append(text)
    return "\n".join(texts)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return {"type": tool.get("type")}
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _unbuilt(field: str, why: str) -> ApiError:
    return ApiError(400, f"{field}: {why}", param=field, code="unsupported_parameter")
