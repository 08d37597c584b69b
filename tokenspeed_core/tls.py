# SPDX-License-Identifier: MIT
"""The certificates of the HTTP server, checked before anything else starts."""

import ssl

from .config import ConfigError, EngineConfig


def server_context(config: EngineConfig) -> ssl.SSLContext | None:
    """Return how connections are encrypted, None for plain HTTP.

    With `ssl_ca_certs` clients need a certificate too (mutual TLS).

    Raises:
        ConfigError: a file is missing or damaged, or key and certificate are no pair.
    """
    if not config.ssl_certfile:
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(config, name):
                raise ConfigError(f"{name} is given and ssl_certfile is not; give both or none")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # an encrypted key must not ask at a terminal
        context.load_cert_chain(
            config.ssl_certfile, config.ssl_keyfile or None, password=lambda: b""
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ssl_certfile {config.ssl_certfile} with ssl_keyfile "
            f"{config.ssl_keyfile or '(the same file)'} cannot be used: {_why(error)}"
        ) from error
    if config.ssl_ca_certs:
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"ssl_ca_certs {config.ssl_ca_certs} cannot be used: {_why(error)}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error}; it must be PEM, its key without a password"
    return str(error.strerror if isinstance(error, OSError) else error)
