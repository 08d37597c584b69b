# SPDX-License-Identifier: MIT
"""One schema for command-line flags, a YAML file and Python: `EngineConfig`.

Precedence is flag, then YAML, then default.
"""

import argparse
import difflib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from .config_option import ConfigError as ConfigError
from .config_option import option, size_in_bytes

WEIGHT_FORMS = ("auto", "plain", "fp8", "fp8-block", "fp8-tensor")
_AXIS_SIZE = re.compile(r"=\s*(\d+)")


@attrs.frozen(kw_only=True)
class EngineConfig:
    """Everything that starting an engine needs; checked when made.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    model: str = option("", "model", "a .gguf file, a directory, a hub id, or smollm2")
    served_model_name: str = option("", "model", "the name in the API; default: the model's")
    dtype: str = option(
        "auto", "model", "type of weights and activations", choices=("auto", "bf16", "fp32")
    )
    weights: str = option(
        "auto", "model", "form of layers' matrices; auto: as stored", choices=WEIGHT_FORMS
    )
    load_format: str = option(
        "auto", "model", "where weights come from; dummy: random ones", choices=("auto", "dummy")
    )
    max_model_len: int = option(
        0, "model", "longest prompt plus answer in tokens; 0: the model's", low=0, metavar="TOKENS"
    )
    family: str = option(
        "",
        "model",
        "a .py file that defines the model's family; default: by the architecture's name",
        metavar="FILE",
    )
    matryoshka: bool = option(
        False, "model", "an embedder's first values are embeddings too, which its config may say"
    )
    plan_cache: str = option(
        "", "model", "keep compiled plans here, or off; default: in the user's", metavar="DIR"
    )

    host: str = option("127.0.0.1", "server", "address to listen on")
    port: int = option(8000, "server", "port to listen on; 0: any free one", low=0, high=65535)
    api_key: str = option("", "server", "clients must send it as a bearer token", metavar="KEY")
    api_keys: str = option("", "server", "file of keys, a line NAME:KEY each", metavar="FILE")
    cache_per_key: bool = option(False, "server", "callers of different keys share no cache")
    open_metrics: bool = option(False, "server", "answer /metrics without a key")
    api_processes: int = option(1, "server", "processes behind the port", low=1, high=64)
    max_connections: int = option(
        4096, "server", "open connections of an API process; more get 503", low=1
    )
    stored_responses: int = option(
        1000, "server", "answers of /v1/responses to keep, over all API processes", low=0
    )
    response_ttl_s: float = option(3600.0, "server", "seconds to keep one after its use", low=1)
    ssl_certfile: str = option("", "server", "serve HTTPS with this certificate", metavar="PEM")
    ssl_keyfile: str = option("", "server", "the certificate's private key", metavar="PEM")
    ssl_ca_certs: str = option(
        "", "server", "take only clients with a certificate of these authorities", metavar="PEM"
    )
    drain_s: float = option(
        30.0, "server", "how long running requests may finish on SIGTERM", low=0, metavar="SECONDS"
    )
    grammar_backend: str = option(
        "auto",
        "server",
        "what constrains answers; auto: the first installed that enforces all of a schema",
        choices=("auto", "xgrammar", "llguidance"),
    )
    grammar_deadline_s: float = option(
        5.0, "server", "how long a grammar may take to compile", low=0.01, metavar="SECONDS"
    )
    grammar_memory: int = option(
        1 << 30,
        "server",
        "memory that a grammar may take to compile",
        low=1,
        metavar="SIZE",
        converter=size_in_bytes,
    )
    log_level: str = option(
        "info",
        "server",
        "least severe message to log",
        choices=("debug", "info", "warning", "error"),
    )

    sort_tools: bool = option(
        False, "server", "show tools by name, so that clients that shuffle them hit the cache"
    )
    grpc_port: int = option(
        0, "server", "speak to the SMG gateway on this port; 0: do not", low=0, high=65535
    )
    grpc_host: str = option(
        "127.0.0.1", "server", "address of grpc_port, which asks for no key: a private network's"
    )
    profiling: bool = option(False, "server", "allow /start_profile and /stop_profile")
    request_log: str = option(
        "", "server", "append a line of JSON for each request to this file", metavar="FILE"
    )
    log_texts: bool = option(False, "server", "the request log holds prompts and answers too")
    otlp_endpoint: str = option(
        "",
        "server",
        "send OpenTelemetry traces there, such as http://127.0.0.1:4318/v1/traces",
        metavar="URL",
    )

    tp: int = option(1, "parallelism", "tensor-parallel ranks", low=1)
    layout: str = option(
        "",
        "parallelism",
        'any other layout instead, such as "tp=2; Hidden=n@tp d" or "tp=2; j: e:tp"',
    )
    link: str = option(
        "",
        "parallelism",
        "what joins ranks, by which plans are priced: a name of `tokenspeed explain --link`, or "
        "AXIS=NAME for one axis, separated by commas; default: nvlink-h100, shared-memory on CPUs",
        metavar="NAME",
    )
    device: str = option(
        "auto",
        "parallelism",
        "where workers run; auto: a GPU that is there",
        choices=("auto", "cpu", "cuda"),
    )
    cuda_graphs: bool = option(True, "parallelism", "replay captured decode steps on a GPU")
    kernels: str = option(
        "",
        "parallelism",
        "OP=BACKEND instead of the preferred kernel; tuned: time those that contest",
    )
    time_gaps: bool = option(
        False, "parallelism", "time how long a GPU waits between steps; logged when it ends"
    )
    threads: int = option(0, "parallelism", "CPU threads of a rank; 0: cores / tp", low=0)

    max_running: int = option(64, "scheduling", "requests that run at once", low=1)
    max_waiting: int = option(4096, "scheduling", "requests that may queue; more get 429", low=1)
    max_step_tokens: int = option(
        0,
        "scheduling",
        "tokens in one step, prefill and decode; 0: 512 on CPUs, 8192 on a GPU",
        low=0,
        metavar="TOKENS",
    )
    decode_stretch: float = option(
        1.5,
        "scheduling",
        "longest step beside a long prefill, in steps without; a crowd that waits may add twice as "
        "much; more: sooner first tokens, less even ones after them; 0: any",
        low=0,
        metavar="X",
    )

    kv_cache: str = option(
        "auto", "cache", "type of keys and values", choices=("auto", "bf16", "fp32", "fp8")
    )
    block_size: int = option(16, "cache", "tokens in a block", low=1, metavar="TOKENS")
    kv_cache_bytes: int = option(
        0,
        "cache",
        "memory of a rank for keys and values, such as 2GiB; 0: from free memory",
        low=0,
        metavar="SIZE",
        converter=size_in_bytes,
    )
    cache_percent: int = option(
        0,
        "cache",
        "part of free memory for keys and values; 0: 40, of a GPU what steps leave",
        low=0,
        high=95,
        metavar="PERCENT",
    )
    num_blocks: int = option(0, "cache", "blocks of a rank; 0: from kv_cache_bytes", low=0)
    state_interval: int = option(
        0,
        "cache",
        "tokens between kept states of layers that have one (delta nets); 0: by their size",
        low=0,
        high=1 << 20,
        metavar="TOKENS",
    )
    prefix_caching: bool = option(True, "cache", "reuse blocks between prompts that begin alike")
    host_kv: int = option(
        0,
        "cache",
        "host memory of a rank for evicted keys and values, such as 8GiB; 0: none",
        low=0,
        metavar="SIZE",
        converter=size_in_bytes,
    )

    transfer_ms: int = option(
        10_000,
        "cache",
        "a copy to or from host memory that takes longer has failed; 0: never",
        low=0,
        high=86_400_000,
        metavar="MS",
    )

    record: str = option(
        "",
        "processes",
        "keep a black box of the scheduler's events, token ids included, in this file",
        metavar="FILE",
    )
    record_bytes: int = option(
        50 * 1024 * 1024,
        "processes",
        "size of the black box",
        low=64 * 1024,
        metavar="SIZE",
        converter=size_in_bytes,
    )
    kv_events: str = option(
        "",
        "processes",
        "tell routers what the prefix cache holds, at ipc://PATH, or tcp://HOST:PORT with a key",
        metavar="ENDPOINT",
    )
    kv_events_key: str = option(
        "",
        "processes",
        "certificate with the secret CURVE key of kv_events, as pyzmq writes it",
        metavar="FILE",
    )
    bind: str = option("", "processes", "listen for SDK clients too", metavar="tcp://HOST:PORT")
    curve_keys: str = option("", "processes", "file of `tokenspeed keys`, for bind", metavar="FILE")
    run_dir: str = option(
        "", "processes", "parent directory of sockets; default: the temporary one", metavar="DIR"
    )

    def __attrs_post_init__(self) -> None:
        if self.host_kv and not self.prefix_caching:
            raise ConfigError(
                f"host_kv = {self.host_kv} keeps blocks that are found by their prefix; set "
                f"prefix_caching, or host_kv = 0"
            )
        if self.max_model_len == 1:
            raise ConfigError(
                "max_model_len = 1 has no room for a prompt and its answer; give at least 2, or 0 "
                "for the model's"
            )
        if 0 < self.decode_stretch < 1:
            raise ConfigError(
                f"decode_stretch = {self.decode_stretch:g} would make steps with prefill shorter "
                f"than those without; give 0, or at least 1"
            )
        if self.layout and self.tp > 1:
            raise ConfigError(
                f"tp = {self.tp} and layout = {self.layout!r} both say how the model is spread; "
                f"give one of them"
            )
        if self.kv_events and not self.kv_events.startswith(("ipc://", "tcp://")):
            raise ConfigError(f"kv_events = {self.kv_events!r} is neither ipc://PATH nor tcp://...")
        if self.kv_events.startswith("tcp://") and not self.kv_events_key:
            raise ConfigError(
                f"kv_events = {self.kv_events!r} would tell prompts to everybody on the network; "
                f"give kv_events_key, or an ipc:// endpoint"
            )
        if self.step_tokens < self.max_running:
            raise ConfigError(
                f"max_step_tokens = {self.step_tokens} is less than max_running = "
                f"{self.max_running}: every running request takes a token a step; raise the first "
                f"or lower the second"
            )

    @property
    def on_gpu(self) -> bool:
        """Workers are to run on a GPU; told without loading torch."""
        if self.device == "auto":
            if self.num_ranks == 1:
                return Path("/dev/nvidiactl").exists()
            return len(list(Path("/dev").glob("nvidia[0-9]*"))) >= self.num_ranks
        return self.device == "cuda"

    @property
    def step_tokens(self) -> int:
        """The most tokens of a step."""
        return self.max_step_tokens or (8192 if self.on_gpu else 512)

    @property
    def num_ranks(self) -> int:
        """Worker processes: one for each place of the mesh."""
        mesh = self.layout.partition(";")[0] or f"tp={self.tp}"
        return math.prod(int(size) for size in _AXIS_SIZE.findall(mesh))

    @property
    def scheme(self) -> str:
        """How the HTTP server is reached."""
        return "https" if self.ssl_certfile else "http"

    @property
    def model_name(self) -> str:
        """The model's name in the API."""
        return self.served_model_name or self.model


FIELDS = {field.name: field for field in attrs.fields(EngineConfig)}


def from_arguments(arguments: argparse.Namespace) -> EngineConfig:
    """Return the configuration of parsed flags and of the YAML file that they name.

    Raises:
        ConfigError: naming the flag or the file and key.
    """
    given = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    if hasattr(arguments, "model_flag"):
        if "model" in given:
            raise ConfigError(
                f"the model is given twice, {given['model']!r} and --model {arguments.model_flag!r}"
            )
        given["model"] = arguments.model_flag
    flags = {name: _parse(name, value) for name, value in given.items()}
    path = getattr(arguments, "config", None)
    settings = _read_file(Path(path)) if path else {}
    return _make({**settings, **flags}, "")


def _parse(name: str, text: Any) -> Any:
    kind: Any = type(FIELDS[name].default)
    if not isinstance(text, str) or kind is str or FIELDS[name].converter is not None:
        return text
    try:
        return kind(text)
    except ValueError:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} must be a number, got {text!r}") from None


def read_config(path: Path | str) -> EngineConfig:
    """Read a YAML (or JSON) file.

    Raises:
        ConfigError: naming the file and the key.
    """
    return _make(_read_file(Path(path)), f"{path}: ")


def write_config(config: EngineConfig, path: Path | str) -> None:
    """Write a file that `read_config` reads back equal, private to its owner."""
    file = Path(path)
    file.touch(mode=0o600)
    file.write_text(json.dumps(attrs.asdict(config), indent=1), encoding="utf-8")


def _read_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML: {first}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path}: must hold `name: value` lines, got {type(settings).__name__}")
    for key in settings:
        if key not in FIELDS:
            near = difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near[0]!r}?")
    _make(settings, f"{path}: ")  # a wrong value is the file's fault even where a flag overrides it
    return cast(dict[str, Any], dict(settings))


def _make(settings: Mapping[str, Any], where: str) -> EngineConfig:
    try:
        return EngineConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
