# SPDX-License-Identifier: MIT
"""From the bytes of a request to checked fields."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ..sampling_params import MAX_TOP_LOGPROBS, SamplingError, SamplingParams
from ..session import Session
from ..urgency import Urgency
from .answer_format import Asked, asked_format
from .failure import ApiError
from .kv_hints import KvHints

BODY_TIMEOUT_S = 30.0
MAX_CHOICES = 128

_PLACE = re.compile(r"at `\$\.(\w+)")
_FIELD = re.compile(r"field `(\w+)`")


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # every chunk tells the usage so far


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that chat and plain completions share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logit_bias: dict[str, float] = {}
    bad_words: list[str] = []
    session_id: str = ""
    cache_salt: str = ""
    retain_ms: int = 0
    kv_hints: KvHints | None = None
    priority: int = 0
    deadline_ms: int = 0
    n: int = 1
    return_token_ids: bool = False
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    request_id: str = ""  # for /abort
    rid: str = ""  # the same

    def asked_format(self) -> Asked | None:
        """Return the form that the answer must have, and the field that says so.

        Raises:
            ApiError: it is malformed, or two fields say one.
        """
        return asked_format(
            response_format=self.response_format,
            structured_outputs=self.structured_outputs,
            guided_json=self.guided_json,
            guided_regex=self.guided_regex,
            guided_choice=self.guided_choice,
            guided_grammar=self.guided_grammar,
        )

    @property
    def wants_logprobs(self) -> bool:
        """The log-probability of each sampled token is to be reported."""
        raise NotImplementedError

    def usage_asked(self) -> tuple[bool, bool]:
        """Return whether a streamed answer tells its usage at its end, and whether in each chunk.

        Raises:
            ApiError: options of a stream are given without one.
        """
        if self.stream_options is None:
            return False, False
        if not self.stream:
            raise ApiError(
                400, "stream_options needs stream; set it to true", param="stream_options"
            )
        return self.stream_options.include_usage, self.stream_options.continuous_usage_stats

    def refuse(self, *names: str) -> None:
        """Raise ApiError if one of these fields, which mean nothing on this route, is given."""
        defaults = {field.name: field.default for field in msgspec.structs.fields(self)}
        for name in names:
            value = getattr(self, name)
            if value != defaults[name]:
                raise ApiError(
                    400,
                    f"{name}={_shown(value)} means nothing here; leave the field out",
                    param=name,
                    code="unsupported_parameter",
                )

    def check_choices(self, prompts: int = 1) -> None:
        """Raise ApiError if the request asks for too many answers."""
        if not 1 <= self.n * prompts <= MAX_CHOICES:
            what = f"{self.n} for each of {prompts} prompts" if prompts > 1 else str(self.n)
            raise ApiError(
                400,
                f"n is {what}; a request has 1 to {MAX_CHOICES} answers",
                param="n",
                code="invalid_parameter",
            )

    def session(self) -> Session:
        """Return the conversation that the request belongs to.

        Raises:
            SessionError: a name is too long, or a time is no number or negative.
        """
        hints = self.kv_hints.hints() if self.kv_hints is not None else ()
        return Session(self.session_id, self.cache_salt, self.retain_ms, hints)

    def urgency(self) -> Urgency:
        """Return how urgent the request is.

        Raises:
            UrgencyError: a value is out of range.
        """
        return Urgency(self.priority, self.deadline_ms)

    def sampling_params(self) -> SamplingParams:
        """Return the request's sampling.

        Raises:
            SamplingError: a value is out of range.
        """
        return self.told_params(None, 0, None)

    def told_params(self, max_tokens: int | None, top: int, prompt: int | None) -> SamplingParams:
        """Return the sampling with another limit, if given, and what log-probabilities are told.

        Raises:
            SamplingError: a value is out of range.
        """
        if max_tokens is not None and self.max_tokens is not None:
            SamplingParams(max_tokens=self.max_tokens)  # is looked at all the same
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            max_tokens=self.max_tokens if max_tokens is None else max_tokens,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            min_tokens=self.min_tokens,
            logit_bias=self.logit_bias,
            bad_words=self.bad_words,
            logprobs=self.wants_logprobs,
            top_logprobs=top,
            prompt_logprobs=prompt,
        )


class ChatFields(GenerationFields, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True  # false: calls after the first are dropped
    include_reasoning: bool = True
    reasoning_effort: str | None = None
    thinking_budget: int | None = None  # tokens of reasoning, at most
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def template_variables(self) -> dict[str, Any]:
        """Return what the chat template is told beside messages and tools."""
        effort = (
            {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        )
        return effort | self.chat_template_kwargs

    @property
    def wants_logprobs(self) -> bool:
        """The log-probability of each sampled token is to be reported."""
        return self.logprobs

    def sampling_params(self) -> SamplingParams:
        """Return the request's sampling; the newer name of the token limit wins."""
        if self.top_logprobs and not self.logprobs:
            raise SamplingError("top_logprobs", "needs logprobs; set it to true")
        return self.told_params(self.max_completion_tokens, self.top_logprobs, self.prompt_logprobs)


class CompletionFields(GenerationFields, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`."""

    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool = False
    prompt_logprobs: int | None = None

    def sampling_params(self) -> SamplingParams:
        """Return the request's sampling; an echo is told of like the answer."""
        top = self.logprobs or 0
        if not 0 <= top <= MAX_TOP_LOGPROBS:
            raise SamplingError(
                "logprobs", f"is {top}; give an integer from 0 to {MAX_TOP_LOGPROBS}"
            )
        prompt = self.prompt_logprobs
        if self.echo and self.wants_logprobs:
            prompt = max(top, prompt or 0)
        return self.told_params(None, top, prompt)

    @property
    def wants_logprobs(self) -> bool:
        """The log-probability of each sampled token is to be reported."""
        return self.logprobs is not None


def check_scored(fields: ChatFields | CompletionFields) -> None:
    """Raise ApiError if a stream shall tell of its prompt: only a whole answer does."""
    if fields.stream and fields.prompt_logprobs is not None:
        raise ApiError(
            400,
            "prompt_logprobs comes with whole answers; set stream to false",
            param="prompt_logprobs",
            code="unsupported_parameter",
        )


# Fields that change an answer's meaning and are not built, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "length_penalty": (1,),
    "allowed_token_ids": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "thinking": (),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (),
    "chat_template": (),
    "store": (False,),
    "stop_regex": (),
    "lora_path": (),
}

# Fields that change no token of an answer; accepted and counted.
HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "verbosity",
    }
)

Fields = TypeVar("Fields", bound=GenerationFields)
Body = TypeVar("Body", bound=msgspec.Struct)


async def read_body(request: Request) -> bytes:
    """Return the whole body.

    Raises:
        ApiError: it did not arrive in time, or the client left.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        late = f"the request body did not arrive within {BODY_TIMEOUT_S:g} s"
        raise ApiError(408, late) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left while sending the request") from None


def parse(
    body: bytes,
    fields: type[Body],
    ignored: Callable[[str], None],
    decode: Callable[[bytes], Any] = msgspec.json.decode,
) -> Body:
    """Return the request's fields; `ignored` hears the name of each field that has no effect.

    Raises:
        ApiError: bad JSON, a field of a wrong type, or one that is not built; it names the field.
    """
    try:
        given = decode(body)
    except RecursionError:
        raise ApiError(400, "the request body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        kind = type(given).__name__
        raise ApiError(400, f"the request body must be a JSON object, got {kind}")
    known = set(fields.__struct_fields__)
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue  # null asks for the default
        if name in known:
            asked[name] = value
        elif name not in NEUTRAL:
            ignored(name if name in HARMLESS else "other")
        elif not _is_neutral(value, NEUTRAL[name]):
            raise ApiError(
                400,
                f"{name}={_shown(value)} is not built in this version; leave the field out",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return msgspec.convert(asked, fields)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error)) or _FIELD.search(str(error))
        param = place[1] if place else None
        raise ApiError(400, str(error), param=param, code="invalid_type") from None


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    # True == 1 in Python, but `n: true` is a mistake
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:60] + "..."
