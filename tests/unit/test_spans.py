"""Spans as a collector gets them: OTLP over HTTP, read by OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from wherry.daemon.spans import Spans

messages = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="OpenTelemetry is not installed"
)


class Collector(ThreadingHTTPServer):
    """Keeps what it is told; `status`: what it answers."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.told: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        return [span for _, request in self.told for resource in request.resource_spans
                for scope in resource.scope_spans for span in scope.spans]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.told.append((self.path, messages.ExportTraceServiceRequest.FromString(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_calls_become_spans_of_their_callers_trace(collector: Collector) -> None:
    spans = Spans(collector.url + "/")
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    spans.tell("GET /info", 0.25, {"http.route": "/info", "odd": None}, {"traceparent": f"00-{trace}-{parent}-01"})
    spans.tell("GET /_ping", 0.0, {}, {"traceparent": "nonsense"})
    spans.stop()
    assert {path for path, _ in collector.told} == {"/v1/traces"}
    first, second = collector.spans()
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == ("GET /info", trace, parent)
    assert 0.24e9 < first.end_time_unix_nano - first.start_time_unix_nano < 0.26e9
    assert [(one.key, one.value.string_value) for one in first.attributes] == [("http.route", "/info")]
    assert (second.name, second.parent_span_id) == ("GET /_ping", b"")
    about = {one.key: one.value.string_value for one in collector.told[0][1].resource_spans[0].resource.attributes}
    assert about["service.name"] == "wherryd"


def test_nobody_there_is_nobodys_trouble() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}"
    spans = Spans(url)
    for number in range(3000):  # more than are kept
        spans.tell(f"GET /{number}", 0.0, {}, {})
