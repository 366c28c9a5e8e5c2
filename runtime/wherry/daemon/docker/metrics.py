"""Prometheus' metrics and the health of the daemon, on the same socket and for the same callers.

Decides the names (`wherry_…`, and those that all exporters use of a process).
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterable

from aiohttp import web

import wherry
from wherry.daemon.measures import head, line

from .call import Call, Route

__all__ = ["ROUTES"]


def _things(call: Call, states: Counter[str]) -> list[str]:
    """What there is; `states` of containers."""
    engine = call.engine
    pods = Counter("ready" if pod.ready else "notready" for pod in engine.pods())
    lines: list[str] = []
    for name, words, counted, label in (
        ("wherry_containers", "containers by state", states, "state"), ("wherry_pods", "pods by state", pods, "state"),
    ):  # fmt: skip
        lines += [*head(name, "gauge", words), *(line(name, count, **{label: key}) for key, count in counted.items())]
    lines += [*head("wherry_images", "gauge", "images"), line("wherry_images", len(engine.image_records()))]
    return lines


def _process(began: float) -> Iterable[str]:
    """The daemon itself, by the names that all exporters use."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    for name, kind, value in (
        ("process_cpu_seconds_total", "counter", round(usage.ru_utime + usage.ru_stime, 3)),
        ("process_resident_memory_bytes", "gauge", resident),
        ("process_open_fds", "gauge", len(os.listdir("/proc/self/fd"))),
        ("process_start_time_seconds", "gauge", round(began, 3)),
    ):
        yield from (*head(name, kind, "of wherryd"), line(name, value))


async def metrics(call: Call) -> web.StreamResponse:
    """`GET /metrics`."""
    measures = call.parts.measures
    about = [*head("wherry_build_info", "gauge", "the version"),
             line("wherry_build_info", 1, version=wherry.__version__)]  # fmt: skip
    things = await call.parts.look(_things, call, await call.parts.roster.states())
    lines = [*about, *things, *measures.lines(), *_process(measures.began)]
    return web.Response(text="\n".join([*lines, ""]), headers={"Content-Type": "text/plain; version=0.0.4"})


async def health(call: Call) -> web.StreamResponse:
    """`GET /healthz`: the loop turns."""
    del call
    return web.Response(text="ok\n")


async def ready(call: Call) -> web.StreamResponse:
    """`GET /readyz`: the database answers, too."""
    await call.parts.look(call.engine.containers)
    return web.Response(text="ok\n")


ROUTES: tuple[Route, ...] = (
    Route("GET", "/metrics", metrics),
    Route("GET", "/healthz", health),
    Route("GET", "/readyz", ready),
)
