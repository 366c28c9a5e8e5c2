"""Calls as spans of OpenTelemetry, sent by OTLP over HTTP (extra `otlp`). Nothing of it is loaded where no endpoint is
set.

Decides how a call that has ended becomes a span, and to which trace it belongs (W3C traceparent).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import wherry
from wherry.errors import Kind, WherryError

__all__ = ["Spans"]

_WAITS_MS = 5000  # for the last spans at the end
_SEND_SECONDS = 5
_QUEUE = 2048  # spans that wait to be sent; more are dropped


class Spans:
    """One endpoint such as http://127.0.0.1:4318. `tell` never waits."""

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            message = f"otlp_endpoint is set, and {error.name} is not installed"
            raise WherryError(Kind.PRECONDITION, message, hint='pip install "wherry[otlp]"') from error
        about = Resource.create({"service.name": "wherryd", "service.version": wherry.__version__})
        self._provider = TracerProvider(resource=about, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUE))
        self._tracer, self._kind = self._provider.get_tracer("wherryd"), SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    def tell(self, name: str, seconds: float, about: Mapping[str, object], carrier: Mapping[str, str]) -> None:
        """One call that has just ended."""
        now = time.time_ns()
        attributes = {key: value for key, value in about.items() if isinstance(value, (str, int))}
        span = self._tracer.start_span(
            name, self._propagator.extract(carrier), self._kind, attributes, start_time=now - int(seconds * 1e9)
        )
        span.end(now)

    def stop(self) -> None:
        """Send what waits, and no more. Blocks for a moment."""
        self._provider.force_flush(_WAITS_MS)
        self._provider.shutdown()
