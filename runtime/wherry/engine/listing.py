"""`ps`: rows in docker's shape, their words ("Up 3 minutes"), and the filters that choose them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import fence, filters, inspection
from .house import House
from .status import Seen, look, look_many

if TYPE_CHECKING:
    from .db import Container

__all__ = ["Listed", "complete", "containers", "duration", "listed"]

Filters = Mapping[str, Sequence[str]]
_FILTERS = ("ancestor", "before", "exited", "expose", "health", "id", "label", "name", "network", "publish", "since",
            "status", "volume", "is-task")  # fmt: skip
_STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


def duration(seconds: float) -> str:
    """docker's words for a span of time (go-units HumanDuration)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    steps: tuple[tuple[int, Callable[[], str]], ...] = (
        (2, lambda: "1 second"), (60, lambda: f"{whole} seconds"), (120, lambda: "About a minute"),
        (3600, lambda: f"{whole // 60} minutes"), (5400, lambda: "About an hour"),
        (48 * 3600, lambda: f"{round(whole / 3600)} hours"), (14 * 86400, lambda: f"{whole // 86400} days"),
        (60 * 86400, lambda: f"{whole // 604800} weeks"), (730 * 86400, lambda: f"{whole // 2592000} months"),
    )  # fmt: skip
    return next((words() for limit, words in steps if whole < limit), f"{whole // 31536000} years")


def _status(seen: Seen, row: Container) -> str:
    now = time.time()
    if seen.running:
        up = f"Up {duration(now - (seen.state.started if seen.state else now))}"
        health = seen.health["Status"] if row.config.get("health") and seen.health else ""
        note = " (Paused)" if seen.status == "paused" else ""
        return up + (f" (health: {health})" if health == "starting" else f" ({health})" if health else "") + note
    life = seen.life
    if seen.status == "restarting":
        return f"Restarting ({life.code}) {duration(now - life.finished)} ago"
    if seen.status == "exited":
        return f"Exited ({life.code}) {duration(now - life.finished)} ago"
    return seen.status.capitalize()


def _ports(seen: Seen, row: Container) -> list[Json]:
    if not row.config["exposed"]:
        return []
    rows = []
    published = inspection.port_map(seen)
    for text in row.config["exposed"]:
        port, _, protocol = text.partition("/")
        bindings = published.get(text) or []
        if seen.running and not bindings:
            rows.append({"PrivatePort": int(port), "Type": protocol})
        for binding in bindings:
            rows.append(
                {
                    "IP": binding["HostIp"],
                    "PrivatePort": int(port),
                    "PublicPort": int(binding["HostPort"]),
                    "Type": protocol,
                }
            )
    return rows


def _row(house: House, row: Container, seen: Seen, size: bool) -> Json:
    made = {**_facts(row, seen), "Status": _status(seen, row)}
    if size:
        upper, lower = inspection.sizes(house, row)
        made |= {"SizeRw": upper, "SizeRootFs": upper + lower}
    return made


def _facts(row: Container, seen: Seen) -> Json:
    """All but the words that change with the time."""
    mode = inspection.network_mode(row)
    return {
        "Id": row.id,
        "Names": [f"/{row.name}"],
        "Image": row.config["image_name"],
        "ImageID": row.image,
        "Command": shlex.join(row.config["argv"]),
        "Created": int(row.created),
        "Ports": _ports(seen, row),
        "Labels": row.config["labels"],
        "State": seen.status,
        "HostConfig": {"NetworkMode": mode},
        "NetworkSettings": {"Networks": inspection.networks(row, seen)},
        "Mounts": row.config["mounts"],
    }


class Listed(NamedTuple):
    """One as it was when it was looked at: true until an event of it, or the end of `pid` (0: nothing ends)."""

    id: str
    created: float  # unix seconds
    facts: Json  # as `containers` tells them, without Status
    status: Callable[[], str]  # which has the time in it
    alive: bool  # one of those that are listed without `all`
    pid: int
    steady: bool  # False: it may change without a word


def listed(house: House, ids: Collection[str] | None) -> tuple[list[Listed], set[str]]:
    """These (None: all) as far as they are there; and the ids of all that are."""
    rows = house.db.containers() if ids is None else [row for cid in ids if (row := house.db.container(cid))]
    rows = [row for row in fence.each(house, rows, fence.container) if not row.config.get("build")]
    found = [_listed(row, seen) for row, seen in zip(rows, look_many(house, rows), strict=True)]
    return found, house.db.container_ids()


def _listed(row: Container, seen: Seen) -> Listed:
    restarting = seen.status == "restarting"
    steady = not restarting and not seen.unsettled
    status = partial(_status, seen, row)
    return Listed(row.id, row.created, _facts(row, seen), status, seen.running or restarting, seen.pid, steady)


def containers(house: House, *, all: bool, filters: Filters, size: bool, last: int) -> list[Json]:
    """The verb."""
    _check(filters)
    every = all or bool(filters.get("status")) or bool(filters.get("exited")) or last > 0
    found = []
    every_row = fence.each(house, house.db.containers(), fence.container)
    rows = [row for row in every_row if not row.config.get("build")]  # a step of a build is nobody's
    for row, seen in zip(rows, look_many(house, rows), strict=True):
        if (every or seen.running or seen.status == "restarting") and _fits(house, row, seen, filters):
            found.append(_row(house, row, seen, size))
    return found[:last] if last > 0 else found


def _check(wanted: Filters) -> None:
    filters.check(wanted, _FILTERS)
    for value in wanted.get("status", ()):
        if value not in _STATES:
            hint = f"one of {', '.join(_STATES)}"
            raise WherryError(Kind.INVALID, f'invalid filter "status={value}"', hint=hint)


Test = Callable[["House", "Container", Seen, Sequence[str]], bool]


def _ancestor(house: House, row: Container, _seen: Seen, values: Sequence[str]) -> bool:
    for value in values:
        by_id = row.image.removeprefix("sha256:").startswith(value.removeprefix("sha256:"))
        if by_id or row.config["image_name"] == value:
            return True
        try:
            wanted = house.images.get(value)
        except WherryError:
            continue
        layers = list(wanted.config.diff_ids)
        if row.image == wanted.id or row.config["layers"][: len(layers)] == layers:
            return True
    return False


def _volume(_house: House, row: Container, _seen: Seen, values: Sequence[str]) -> bool:
    rows = row.config["mounts"]
    have = {text for mount in rows for text in (mount.get("Name"), mount["Destination"], mount["Source"])}
    return bool(have & set(values))


def _port_fits(text: str, wanted: str) -> bool:
    ports, _, protocol = wanted.partition("/")
    first, _, last = ports.partition("-")
    port, _, have = text.partition("/")
    return (not protocol or protocol == have) and first.isdigit() and int(first) <= int(port) <= int(last or first)


_TESTS: dict[str, Test] = {
    "id": lambda _h, row, _s, v: any(row.id.startswith(text) for text in v),
    "name": lambda _h, row, _s, v: filters.named([text.removeprefix("/") for text in v], row.name),
    "label": lambda _h, row, _s, v: filters.labels(v, row.config["labels"]),
    "status": lambda _h, _r, seen, v: seen.status in v,
    "exited": lambda _h, _r, seen, v: seen.status == "exited" and str(seen.life.code) in v,
    "ancestor": _ancestor,
    "before": lambda h, row, _s, v: row.created < h.db.find(v[0]).created,
    "since": lambda h, row, _s, v: row.created > h.db.find(v[0]).created,
    "volume": _volume,
    "network": lambda _h, row, seen, v: bool(set(inspection.networks(row, seen)) & set(v)),
    "publish": lambda _h, _r, seen, v: any(_port_fits(p, w) for p in inspection.port_map(seen) for w in v),
    "expose": lambda _h, row, _s, v: any(_port_fits(p, w) for p in row.config["exposed"] for w in v),
    "health": lambda _h, _r, seen, v: (seen.health["Status"] if seen.health else "none") in v,
    "is-task": lambda _h, _r, _s, v: v[0].lower() in ("false", "0"),
}


def _fits(house: House, row: Container, seen: Seen, wanted: Filters) -> bool:
    return all(_TESTS[name](house, row, seen, values) for name, values in wanted.items() if values)


def complete(house: House, what: str, prefix: str) -> list[str]:
    """Names for a shell: never an error, for nobody sees it."""
    try:
        return sorted(name for name in _candidates(house, what) if name.startswith(prefix))
    except (WherryError, OSError):
        return []


def _candidates(house: House, what: str) -> list[str]:
    return _NAMES.get(what, _image_names)(house)


def _registry_names(_house: House) -> list[str]:
    from .registries import logins

    return logins()


def _image_names(house: House) -> list[str]:
    from . import images

    return [tag for image in images.listing(house, all=False, filters={}) for tag in image["RepoTags"]]


_NAMES: dict[str, Callable[[House], list[str]]] = {
    "container": lambda house: [row.name for row in house.db.containers()],
    "running": lambda house: [row.name for row in house.db.containers() if look(house, row.id).running],
    "volume": lambda house: [row.name for row in house.db.volumes()],
    "snapshot": lambda house: [row.name for row in house.db.snapshots()],
    "network": lambda house: [str(network["Name"]) for network in house.networks.list()],
    "registry": _registry_names,
}
