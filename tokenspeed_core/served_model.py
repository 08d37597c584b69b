# SPDX-License-Identifier: MIT
"""What an engine config leaves open, decided once before any process starts."""

import socket
from pathlib import Path
from typing import Any

import attrs

from .checkpoint import CheckpointError, open_checkpoint
from .config import ConfigError, EngineConfig
from .keyring import Keyring
from .model_source import resolve
from .pooling import Pooling
from .stored_config import stored_config
from .tls import server_context


class PortInUseError(RuntimeError):
    """The address to listen on is taken, or is not this machine's."""


@attrs.frozen
class ServedModel:
    """A config with what it leaves open decided once, for all processes, and the vocabulary."""

    config: EngineConfig  # the model a path; name, greatest length and port definite
    vocab_size: int

    @classmethod
    def of(cls, config: EngineConfig, serve_http: bool) -> "ServedModel":
        """Find the model, read its sizes, and check the port.

        Raises:
            ConfigError, ModelNotFoundError, CheckpointError, PoolingError: the model cannot be
                served.
            PortInUseError: the address cannot be listened on.
        """
        if not config.model:
            raise ConfigError("no model is given; name a .gguf file, a directory or a hub id")
        if serve_http:
            server_context(config)
            if config.api_keys:
                Keyring.read(config.api_keys)
            config = attrs.evolve(config, port=_free_port(config.host, config.port))
        dummy = config.load_format == "dummy"
        source = resolve(config.model, weights=not dummy)
        path = source.path
        stored = stored_config(config.model) if dummy else _stored(path)
        longest = _size(stored, "max_position_embeddings", path)
        vocab_size = _size(stored, "vocab_size", path)
        if Pooling.of(path) is None and config.matryoshka:
            raise ConfigError(f"matryoshka is given, but {path} is no embedder; leave it out")
        config = attrs.evolve(
            config,
            model=str(path.resolve()),
            served_model_name=config.served_model_name
            or (source.name if Path(config.model).expanduser().exists() else config.model),
            max_model_len=config.max_model_len or longest,
        )
        return cls(config, vocab_size)


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0; PortInUseError if it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # where another socket listens, bind may pass and this does not
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
            ) from error
        chosen: int = probe.getsockname()[1]
        return chosen


def _stored(path: Path) -> dict[str, object]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


def _size(config: dict[str, object], key: str, path: Path) -> int:
    nested = config.get("text_config")
    value: Any = config.get(key, nested.get(key) if isinstance(nested, dict) else None)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"the config of {path} has {key} = {value!r}; it must be a positive integer"
        )
    return value
