"""What is counted of calls, in Prometheus' text format."""

from __future__ import annotations

from wherry.daemon.docker.measures import Measures, line


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


def test_labels_are_escaped() -> None:
    assert line("a", 1, b='x"y\\z\n') == 'a{b="x\\"y\\\\z\\n"} 1'
