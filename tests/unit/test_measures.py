"""What is counted of calls, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import pytest

from wherry.daemon.measures import Measures, line
from wherry.errors import Kind, WherryError


def test_a_histogram_adds_up() -> None:
    measures = Measures()
    for seconds in (0.0005, 0.001, 0.03, 99.0):
        measures.served("GET", "/x", 200, seconds)
    measures.served("GET", "/x", 404, 0.2)
    lines = list(measures.lines())
    name = 'wherry_docker_request_duration_seconds_bucket{method="GET",route="/x",le='
    found = [row.rpartition(" ") for row in lines if row.startswith(name)]
    assert [(row[0][len(name) + 1 : -2], int(row[2])) for row in found if float(row[0][len(name) + 1 : -2]) in
            (0.001, 0.05, 0.25, 10.0)] == [("0.001", 2), ("0.05", 3), ("0.25", 4), ("10.0", 4)]  # fmt: skip
    assert found[-1] == (f'{name}"+Inf"}}', " ", "5")
    assert 'wherry_docker_request_duration_seconds_count{method="GET",route="/x"} 5' in lines
    assert 'wherry_docker_requests_total{method="GET",route="/x",code="404"} 1' in lines


def test_calls_pulls_and_failures() -> None:
    measures = Measures()
    measures.called("RunPodSandbox", "OK", 0.02)
    measures.called("RunPodSandbox", "NOT_FOUND", 0.02)

    def refused() -> NoReturn:
        raise WherryError(Kind.DENIED, "no")

    def broken() -> NoReturn:
        raise ZeroDivisionError

    assert measures.pulling("cri", lambda name, times=1: name * times)("a", times=2) == "aa"
    for pull in (refused, broken):
        with pytest.raises((WherryError, ZeroDivisionError)) as raised:
            measures.pulling("docker", pull)()
        measures.failed("docker", raised.value)
    lines = list(measures.lines())
    for row in (
        'wherry_cri_calls_total{method="RunPodSandbox",code="NOT_FOUND"} 1',
        'wherry_cri_call_duration_seconds_bucket{method="RunPodSandbox",le="0.025"} 2',
        'wherry_image_pulls_total{face="cri",code="ok"} 1', 'wherry_image_pulls_total{face="docker",code="denied"} 1',
        'wherry_image_pulls_total{face="docker",code="internal"} 1',
        'wherry_errors_total{face="docker",kind="denied"} 1',
        'wherry_errors_total{face="docker",kind="ZeroDivisionError"} 1',
    ):  # fmt: skip
        assert row in lines, row
    told = [row.split()[2] for row in lines if row.startswith("# TYPE")]
    assert len(told) == len(set(told)), "a metric's head stands once"


def test_each_call_is_a_span_too() -> None:
    class Spans:
        def __init__(self) -> None:
            self.seen: list[tuple[str, dict[str, object], Mapping[str, str]]] = []

        def tell(self, name: str, seconds: float, about: Mapping[str, object], carrier: Mapping[str, str]) -> None:
            assert seconds == 0.5
            self.seen.append((name, dict(about), carrier))

    spans = Spans()
    measures = Measures(spans)
    measures.served("GET", "/x", 404, 0.5, {"traceparent": "a"})
    measures.called("Version", "OK", 0.5)
    http = {"http.request.method": "GET", "http.route": "/x", "http.response.status_code": 404}
    assert spans.seen[0] == ("GET /x", http, {"traceparent": "a"})
    assert spans.seen[1][0] == "runtime.v1/Version"
    assert (measures.spanning, Measures().spanning) == (True, False)


def test_labels_are_escaped() -> None:
    assert line("a", 1, b='x"y\\z\n') == 'a{b="x\\"y\\\\z\\n"} 1'
