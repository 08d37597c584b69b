# SPDX-License-Identifier: MIT
"""Where records of requests go, as the configuration says."""

import attrs

from ..config import EngineConfig
from ..detokenizer import TokenText
from .metrics import Metrics
from .observer import Observer
from .request_log import RequestLog
from .tracing import Tracing, TracingError


class SinkError(RuntimeError):
    """A log or a trace that is asked for cannot be written."""


@attrs.frozen
class Sinks:
    """The request log and the traces of one process, each None if it is not asked for."""

    log: RequestLog | None
    tracing: Tracing | None
    keeps_text: bool

    @classmethod
    def of(cls, config: EngineConfig, table: TokenText) -> "Sinks":
        """Open what the configuration names.

        Raises:
            SinkError: it cannot be opened.
        """
        log = tracing = None
        if config.request_log:
            try:
                log = RequestLog(config.request_log, table if config.log_texts else None)
            except OSError as error:
                raise SinkError(
                    f"request_log {config.request_log} cannot be written: {error.strerror}; "
                    f"name a file in a directory that is there"
                ) from error
        if config.otlp_endpoint:
            try:
                tracing = Tracing.to(config.otlp_endpoint, f"tokenspeed/{config.model_name}")
            except TracingError as error:
                raise SinkError(str(error)) from error
        return cls(log, tracing, config.log_texts)

    def join(self, observer: Observer, metrics: Metrics) -> None:
        """Let an observer tell them of all requests."""
        observer.keeps_text = self.keeps_text
        if (log := self.log) is not None:
            lost = "Lines that the request log had no room for."
            metrics.follow("request_log_dropped_lines", lost, lambda: log.dropped)
        for sink in (self.log, self.tracing):
            if sink is not None:
                observer.add(sink)

    def close(self) -> None:
        """Write and send what is queued."""
        for sink in (self.log, self.tracing):
            if sink is not None:
                sink.close()
