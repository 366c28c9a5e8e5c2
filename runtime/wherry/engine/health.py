"""Health checks: what is run when, and what its results mean. Started by the monitor's timer as `internal health ID`.

Decides docker's states: starting, healthy, unhealthy, and the log of the last five. The timer ticks at the shortest
interval; a tick that comes too early does nothing. Output is capped (invariant 3).
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from wherry.model import HealthCheck, ImageConfig, Json, RunOptions

from .house import House

if TYPE_CHECKING:
    from .db import Container

__all__ = ["check", "initial", "intervals", "settings", "shape"]

_NS = 1_000_000_000
_DEFAULTS = {"interval": 30.0, "timeout": 30.0, "start_period": 0.0, "start_interval": 5.0, "retries": 3}
_DOCKER = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start_period": "StartPeriod",
    "start_interval": "StartInterval",
}
_LEAST = 1.0  # seconds: an image may not keep the host busy with checks
_KEPT = 5
_OUTPUT = 4096


def settings(options: RunOptions, image: ImageConfig) -> Json | None:
    """The check in seconds: what was asked, else the image's, else docker's defaults; None: no check."""
    asked: HealthCheck = options.health
    own = image.healthcheck or {}
    inherited = own.get("Test")
    test = asked.test or (tuple(map(str, inherited)) if isinstance(inherited, list) else ())
    if options.no_healthcheck or not test or test[0] == "NONE":
        return None
    found: Json = {"test": list(test)}
    for name, default in _DEFAULTS.items():
        key = _DOCKER.get(name)
        found[name] = getattr(asked, name) or _inherited(own, key) or default
    return found


def shape(options: RunOptions, image: ImageConfig) -> Json | None:
    """docker's Config.Healthcheck: what was asked over what the image has, in nanoseconds; defaults are not told."""
    if options.no_healthcheck:
        return {"Test": ["NONE"]}
    asked = {key: round(getattr(options.health, name) * _NS) for name, key in _DOCKER.items()}
    found: Json = {"Test": list(options.health.test), "Retries": options.health.retries, **asked}
    return {**(image.healthcheck or {}), **{key: value for key, value in found.items() if value}} or None


def _inherited(own: Json, key: str | None) -> float:
    """The image's value; 0 where it has none. Text where a number belongs counts as none."""
    value = own.get(key or "Retries", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _NS * 1_000_000:
        return 0
    return max(_LEAST, value / _NS) if key else int(value)


def intervals(check: Json) -> tuple[int, int]:
    """The monitor's timer in milliseconds: period, and the first tick."""
    period = min(check["interval"], check["start_interval"]) if check["start_period"] else check["interval"]
    return max(1, round(period * 1000)), max(1, round(period * 1000))


def initial(path: str, started: float) -> None:
    """Write the state of a container that has just started."""
    _store(path, {"Status": "starting", "FailingStreak": 0, "Log": [], "started": started, "last": started})


def _store(path: str, value: Json) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(value))
    os.replace(temporary, path)


def _load(path: str) -> Json:
    with open(path, encoding="utf-8") as file:
        value: Json = json.load(file)
    return value


def check(house: House, cid: str) -> None:
    """Run the check if it is due. One at a time: a tick during a check does nothing."""
    from wherry.errors import Kind, WherryError
    from wherry.kernel import files

    from .status import look

    row = house.db.find(cid)
    spec = row.config.get("health")
    if spec is None or look(house, row.id).status != "running":
        return
    path = f"{house.state_dir(row.id)}/health"
    try:
        with files.flock(f"{path}.lock", 0):
            state = _load(f"{path}.json")
            if _due(spec, state, time.time()):
                _once(house, row, spec, f"{path}.json", state)
    except FileNotFoundError:
        return
    except WherryError as error:
        if error.kind is not Kind.CONFLICT:
            raise


def _due(spec: Json, state: Json, now: float) -> bool:
    starting = state["Status"] == "starting" and now - state["started"] < spec["start_period"]
    interval = spec["start_interval"] if starting else spec["interval"]
    return bool(now - state["last"] >= interval * 0.9)


def _once(house: House, row: Container, spec: Json, path: str, state: Json) -> None:
    from . import events

    begun = time.time()
    code, output = _probe(house, row, spec)
    fresh = judge(spec, state, code, begun)
    entry = {"Start": _when(begun), "End": _when(time.time()), "ExitCode": code, "Output": output}
    fresh |= {"Log": [*state["Log"], entry][-_KEPT:], "last": time.time()}
    if not os.path.exists(path):
        return  # it ended meanwhile
    _store(path, fresh)
    events.container(house, row, "exec_die", exitCode=str(code))
    if fresh["Status"] != state["Status"]:
        events.container(house, row, f"health_status: {fresh['Status']}")


def judge(spec: Json, state: Json, code: int, now: float) -> dict[str, Any]:
    """Pure: the next state after a check that ended with `code`."""
    if code == 0:
        return {**state, "Status": "healthy", "FailingStreak": 0}
    if state["Status"] == "starting" and now - state["started"] < spec["start_period"]:
        return dict(state)  # failures of the start period do not count
    streak = state["FailingStreak"] + 1
    status = "unhealthy" if streak >= spec["retries"] else state["Status"]
    return {**state, "Status": status, "FailingStreak": streak}


def _probe(house: House, row: Container, spec: Json) -> tuple[int, str]:
    from wherry.errors import WherryError

    from . import execs

    kind, *words = spec["test"]
    shell = row.config["image_config"].get("shell") or ["/bin/sh", "-c"]
    argv = (*shell, " ".join(words)) if kind == "CMD-SHELL" else tuple(words)
    try:
        code, data = execs.capture(house, row, argv, spec["timeout"], _OUTPUT)
    except WherryError as error:
        return -1, error.message
    if code is None:
        return -1, f"Health check exceeded timeout ({spec['timeout']:g}s)"
    return code, data.decode("utf-8", "replace")


def _when(moment: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
