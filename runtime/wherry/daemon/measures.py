"""What wherryd's gates have seen: calls of both faces, pulls and failures, in Prometheus' words (text format 0.0.4);
and each call as a span where somebody wants spans.

Calls are counted by route or method, never by what a client wrote: their number is bounded.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, Protocol, TypeVar

from wherry.errors import WherryError

__all__ = ["Measures", "Timed", "head", "line"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Spans(Protocol):
    """Where spans go (module `spans`)."""

    def tell(self, name: str, seconds: float, about: Mapping[str, object], carrier: Mapping[str, str]) -> None:
        """One call that has just ended. `carrier`: its headers, for the span that it is part of."""


class Timed:
    """Things of one kind: how many, by how they ended, and how long they took. Of any thread."""

    def __init__(self, name: str, words: str, *labels: str) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._ends: Counter[tuple[tuple[str, ...], str]] = Counter()

    def add(self, key: tuple[str, ...], end: object, seconds: float) -> None:
        """One more; `key`: what its labels say."""
        with self._lock:
            buckets = self._buckets.setdefault(key, [0] * (len(_BOUNDS) + 1))
            buckets[bisect_left(_BOUNDS, seconds)] += 1
            self._sums[key] += seconds
            self._ends[key, str(end)] += 1

    def lines(self) -> Iterator[str]:
        """A counter, and a histogram."""
        with self._lock:
            ends, sums = sorted(self._ends.items()), dict(self._sums)
            found = sorted((key, list(buckets)) for key, buckets in self._buckets.items())
        yield from head(f"{self._name}s_total", "counter", f"{self._words}, by how they ended")
        for (key, end), count in ends:
            yield line(f"{self._name}s_total", count, **self._labelled(key), code=end)
        name = f"{self._name}_duration_seconds"
        yield from head(name, "histogram", f"seconds of {self._words}")
        for key, buckets in found:
            labels, below = self._labelled(key), 0
            for bound, count in zip((*_BOUNDS, "+Inf"), buckets, strict=True):
                below += count
                yield line(f"{name}_bucket", below, **labels, le=bound)
            yield line(f"{name}_sum", round(sums[key], 6), **labels)
            yield line(f"{name}_count", below, **labels)

    def _labelled(self, key: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._labels, key, strict=True))


class Measures:
    """Of one wherryd. `spans`: None where nobody wants any. `stirred` is called after each call."""

    def __init__(self, spans: Spans | None = None, stirred: Callable[[], None] = lambda: None) -> None:
        self.began, self.spanning, self._spans, self._stirred = time.time(), spans is not None, spans, stirred
        self._requests = Timed("wherry_docker_request", "requests of the Docker API", "method", "route")
        self._calls = Timed("wherry_cri_call", "calls of the CRI", "method")
        self._pulls = Timed("wherry_image_pull", "pulls of images", "face")
        self._errors: Counter[tuple[str, str]] = Counter()

    def served(
        self, method: str, path: str, status: int, seconds: float, carrier: Mapping[str, str] | None = None
    ) -> None:
        """A request of the Docker API, answered."""
        self._stirred()
        self._requests.add((method, path), status, seconds)
        if self._spans is not None:
            about = {"http.request.method": method, "http.route": path, "http.response.status_code": status}
            self._spans.tell(f"{method} {path}", seconds, about, carrier or {})

    def called(self, method: str, code: str, seconds: float, carrier: Mapping[str, str] | None = None) -> None:
        """A call of the CRI, answered; `code` as gRPC names it."""
        self._stirred()
        self._calls.add((method,), code, seconds)
        if self._spans is not None:
            about = {"rpc.system": "grpc", "rpc.service": "runtime.v1", "rpc.method": method, "rpc.grpc.status": code}
            self._spans.tell(f"runtime.v1/{method}", seconds, about, carrier or {})

    def failed(self, face: str, error: BaseException) -> None:
        """What a call ended with, by its kind; a defect of ours is one, too."""
        self._errors[face, error.kind.name.lower() if isinstance(error, WherryError) else type(error).__name__] += 1

    def pulling(self, face: str, pull: Callable[_P, _T]) -> Callable[_P, _T]:
        """`pull`, counted."""

        def counted(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            began, end = time.monotonic(), "internal"
            try:
                found = pull(*args, **kwargs)
                end = "ok"
            except WherryError as error:
                end = error.kind.name.lower()
                raise
            finally:
                self._pulls.add((face,), end, time.monotonic() - began)
            return found

        return counted

    def lines(self) -> Iterator[str]:
        """All of it, in Prometheus' words."""
        for timed in (self._requests, self._calls, self._pulls):
            yield from timed.lines()
        yield from head("wherry_errors_total", "counter", "failures that callers were told, by their kind")
        for (face, kind), count in sorted(self._errors.items()):
            yield line("wherry_errors_total", count, face=face, kind=kind)


def head(name: str, kind: str, words: str) -> tuple[str, str]:
    """What stands before the lines of a metric."""
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"


def line(name: str, value: float, **labels: object) -> str:
    """One of them."""
    inner = ",".join(f'{key}="{str(text).translate(_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"
