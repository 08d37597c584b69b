# SPDX-License-Identifier: MIT
"""OpenTelemetry spans of requests, with the W3C context that they came with.

Needs the extra `tokenspeed-core[otel]`.  A request's span has the children prepare, queue, prefill
and decode; the last two have a child for each step that brought a token (the first 256), as long as
the worker took for it, and name steps as profiles and logs do.
"""

import time
from typing import TYPE_CHECKING

from .request_record import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from ..course import StepTime


class TracingError(RuntimeError):
    """Traces are asked for and cannot be sent."""


class Tracing:
    """Turns each request that is over into spans; they are sent in the background."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("tokenspeed_core")
        self._propagator = TraceContextTextMapPropagator()
        # spans are in Unix time, records in that of time.monotonic
        self._unix_ns = time.time_ns() - time.monotonic_ns()

    @classmethod
    def to(cls, endpoint: str, service_name: str) -> "Tracing":
        """Send spans to an OTLP receiver over HTTP, such as http://127.0.0.1:4318/v1/traces.

        Raises:
            TracingError: the extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"otlp_endpoint needs OpenTelemetry ({error}); pip install 'tokenspeed-core[otel]'"
            ) from error
        resource = Resource.create({"service.name": service_name})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        return cls(provider)

    def close(self) -> None:
        """Send what is queued."""
        self._provider.shutdown()

    def __call__(self, record: RequestRecord) -> None:
        """Make the spans of a request that is over."""
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode

        arrival, course = record.arrival, record.course
        carrier = {"traceparent": arrival.traceparent, "tracestate": arrival.tracestate}
        ended = record.ended
        assert ended is not None
        whole = self._tracer.start_span(
            f"POST {arrival.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=self._ns(arrival.started),
            attributes={
                "http.request.method": "POST",
                "http.route": arrival.route,
                "http.response.status_code": record.status,
                "gen_ai.request.id": arrival.id,
                "gen_ai.usage.prompt_tokens": record.prompt_tokens,
                "gen_ai.usage.cached_tokens": record.cached_tokens,
                "gen_ai.usage.completion_tokens": record.completion_tokens,
                "gen_ai.response.finish_reasons": [record.outcome],
                "tokenspeed.choice": record.choice,
                "tokenspeed.session": arrival.session,
            },
        )
        if record.status >= 500:
            whole.set_status(Status(StatusCode.ERROR, record.code))
        inside = trace.set_span_in_context(whole)

        def child(
            name: str, start: float, end: float, parent: "Context" = inside, **attributes: int
        ) -> "Context":
            span = self._tracer.start_span(name, parent, start_time=self._ns(start))
            for key, value in attributes.items():
                span.set_attribute(f"tokenspeed.{key}", value)
            span.end(self._ns(end))
            return trace.set_span_in_context(span)

        def worked(parent: "Context", steps: "Sequence[StepTime]") -> None:
            for each in steps:
                child("step", each.began_ns / 1e9, each.ended_ns / 1e9, parent, step=each.step)

        if course is not None:
            child("prepare", arrival.started, course.submitted)
        if course is not None and course.queued_s is not None and record.first_token is not None:
            admitted = min(course.submitted + course.queued_s, record.first_token)
            computed = record.prompt_tokens - record.cached_tokens
            child("queue", course.submitted, admitted)
            prefill = child(
                "prefill",
                admitted,
                record.first_token,
                first_step=course.first_step,
                computed_tokens=computed,
            )
            worked(prefill, course.steps[:1])
        if course is not None and record.first_token and record.last_token:
            decode = child(
                "decode", record.first_token, record.last_token, last_step=course.last_step
            )
            worked(decode, course.steps[1:])
        whole.end(self._ns(ended))

    def _ns(self, moment: float) -> int:
        return int(moment * 1e9) + self._unix_ns
