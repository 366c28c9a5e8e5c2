"""`ps`: the list of containers."""

from __future__ import annotations

import json

from wherry.cli import human, parse
from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch
from wherry.cli.table import LISTING, Column, Look, filters, show
from wherry.model import Json

FILTERS = (
    "ancestor", "before", "expose", "exited", "health", "id", "label", "name", "network", "publish", "since", "status",
    "volume",
)  # fmt: skip


_QUOTED = json.JSONEncoder(ensure_ascii=False).encode


def _command(row: Json, look: Look) -> str:
    words = str(row.get("Command", ""))
    return _QUOTED(words if look.full else human.shortened(words, 20))


def _image(row: Json, look: Look) -> str:
    name = str(row.get("Image", ""))
    return human.short_id(name) if name.startswith("sha256:") and not look.full else name


def _size(row: Json, _look: Look) -> str:
    own, whole = row.get("SizeRw") or 0, row.get("SizeRootFs") or 0
    return human.size(own) + (f" (virtual {human.size(whole)})" if whole else "")


def _mounts(row: Json, look: Look) -> str:
    names = [str(m.get("Name") or m.get("Source", "")) for m in row.get("Mounts") or ()]
    return ",".join(name if look.full else human.shortened(name, 15) for name in names)


def _networks(row: Json, _look: Look) -> str:
    found = (row.get("NetworkSettings") or {}).get("Networks") or {}
    return ",".join(sorted(found))


def _labels(row: Json, _look: Look) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((row.get("Labels") or {}).items()))


COLUMNS = (
    Column("ID", "CONTAINER ID", lambda r, look: str(r["Id"]) if look.full else str(r["Id"])[:12]),
    Column("Image", "IMAGE", _image),
    Column("Command", "COMMAND", _command),
    Column("RunningFor", "CREATED", lambda r, look: human.ago(look.now - r["Created"]) + " ago"),
    Column("Status", "STATUS", lambda r, _: str(r.get("Status", ""))),
    Column("Ports", "PORTS", lambda r, _: human.ports(r.get("Ports") or ())),
    Column("Names", "NAMES", lambda r, _: ",".join(name.removeprefix("/") for name in r.get("Names") or ())),
    Column("Size", "SIZE", _size),
    Column("CreatedAt", "CREATED AT", lambda r, _: human.stamp(r["Created"])),
    Column("Labels", "LABELS", _labels),
    Column("Mounts", "MOUNTS", _mounts),
    Column(
        "LocalVolumes", "LOCAL VOLUMES", lambda r, _: str(sum(m.get("Type") == "volume" for m in r["Mounts"] or ()))
    ),
    Column("Networks", "NETWORKS", _networks),
    Column("State", "STATE", lambda r, _: str(r.get("State", ""))),
)
DEFAULT = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


@verb(
    "ps",
    "",
    switch("-a --all", "show stopped containers too"),
    *LISTING,
    one("-n --last", parse.integer(-1, 2**31 - 1), "N", "show the N newest containers in any state"),
    switch("-l --latest", "show the newest container in any state"),
    switch("-s --size", "show what the containers take on disk"),
    aliases="wherry container ls, wherry container list, wherry container ps, wherry ps",
    examples="""
wherry ps -a --filter status=exited --filter label=app=web
wherry ps --format "table {{.ID}}\\t{{.Names}}\\t{{.Status}}"
wherry ps -aq --no-trunc""",
)
def ps(app: App, values: Values) -> None:
    """List containers, the running ones or with -a all.

    Filters: ancestor, before, expose, exited, health, id, label, name, network, publish, since, status, volume.
    """
    last = 1 if values["latest"] else max(values["last"] or 0, 0)
    size = values["size"] or ".Size" in (values["format"] or "")
    wanted = filters(values, FILTERS)
    rows = app.engine.containers(all=values["all"], filters=wanted, size=size, last=last)
    show(app, rows, COLUMNS, (*DEFAULT, "Size") if values["size"] else DEFAULT, values)
