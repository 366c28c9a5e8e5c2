"""What the gate has seen of calls, in Prometheus' words (text format 0.0.4).

Operations are counted by route, never by what a client wrote: their number is bounded.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

__all__ = ["Measures", "head", "line"]

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Measures:
    """What the gate has seen. Of one loop."""

    def __init__(self) -> None:
        self.began = time.time()
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._answers: Counter[tuple[str, str, int]] = Counter()

    def served(self, method: str, path: str, status: int, seconds: float) -> None:
        """One call, answered."""
        key = method, path
        buckets = self._buckets.setdefault(key, [0] * (len(_BOUNDS) + 1))
        buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._sums[key] += seconds
        self._answers[*key, status] += 1

    def lines(self) -> Iterator[str]:
        """Operations, in Prometheus' words."""
        yield from head("wherry_docker_requests_total", "counter", "calls answered, by route and status")
        for (method, path, status), count in sorted(self._answers.items()):
            yield line("wherry_docker_requests_total", count, method=method, route=path, code=status)
        name = "wherry_docker_request_duration_seconds"
        yield from head(name, "histogram", "seconds from a call to its answer's end")
        for (method, path), buckets in sorted(self._buckets.items()):
            below = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), buckets, strict=True):
                below += count
                yield line(f"{name}_bucket", below, method=method, route=path, le=bound)
            yield line(f"{name}_sum", round(self._sums[method, path], 6), method=method, route=path)
            yield line(f"{name}_count", below, method=method, route=path)


def head(name: str, kind: str, words: str) -> tuple[str, str]:
    """What stands before the lines of a metric."""
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"


def line(name: str, value: float, **labels: object) -> str:
    """One of them."""
    inner = ",".join(f'{key}="{str(text).translate(_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"
