"""The verbs about the whole: its size, its host, its health."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wherry.cli import human
from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch, text
from wherry.cli.table import FORMAT, Column, aligned, one_object, show
from wherry.model import Json

OBJECT_FORMAT = one("-f --format", text, "TEMPLATE", "'json' or a Go template")

# ---- df ----


def _volume_size(row: Json) -> float:
    return float((row.get("UsageData") or {}).get("Size", 0))


def _usage(kind: str, rows: Sequence[Json], active: Sequence[Json], room: Mapping[str, float]) -> Json:
    total, free = room["Size"], room["Reclaimable"]
    share = f" ({free / total * 100:.0f}%)" if total else ""
    return {
        "Type": kind,
        "TotalCount": str(len(rows)),
        "Active": str(len(active)),
        "Size": human.size(total),
        "Reclaimable": human.size(free) + share,
    }


def usage(found: Json) -> list[Json]:
    """docker's four rows, from its system/df object and the room of each kind."""
    images, containers, volumes = (found.get(key) or [] for key in ("Images", "Containers", "Volumes"))
    cache, rooms = found.get("BuildCache") or [], found["Usage"]
    used = [i for i in images if i.get("Containers", 0) > 0]
    running = [c for c in containers if c.get("State") in ("running", "paused", "restarting")]
    mounted = [v for v in volumes if (v.get("UsageData") or {}).get("RefCount", 0) > 0]
    return [
        _usage("Images", images, used, rooms["Images"]),
        _usage("Containers", containers, running, rooms["Containers"]),
        _usage("Local Volumes", volumes, mounted, rooms["Local Volumes"]),
        _usage("Build Cache", cache, [c for c in cache if c.get("InUse")], rooms["Build Cache"]),
    ]


DF = tuple(
    Column(name, header, lambda r, _, name=name: str(r[name]))  # type: ignore[misc]
    for name, header in (
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    )
)


def _image(row: Json) -> list[str]:
    name, size, shared = (row.get("RepoTags") or ["<none>"])[0], row["Size"], row["SharedSize"]
    sizes = [human.size(number) for number in (size, shared, size - shared)]
    return [name, human.short_id(row["Id"]), *sizes, str(row.get("Containers", 0))]


def _container(row: Json) -> list[str]:
    names = ",".join(name.removeprefix("/") for name in row.get("Names") or ())
    return [row["Id"][:12], row["Image"], human.size(row.get("SizeRw") or 0), row.get("Status", ""), names]


def _volume(row: Json) -> list[str]:
    return [row["Name"], str((row.get("UsageData") or {}).get("RefCount", 0)), human.size(_volume_size(row))]


def details(found: Json) -> Iterator[str]:
    """Each object with its size, for -v."""
    images, containers, volumes = (found.get(key) or [] for key in ("Images", "Containers", "Volumes"))
    head = ["IMAGE", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"]
    tables = (
        ("Images space usage:", head, map(_image, images)),
        ("Containers space usage:", ["CONTAINER ID", "IMAGE", "SIZE", "STATUS", "NAMES"], map(_container, containers)),
        ("Local Volumes space usage:", ["VOLUME NAME", "LINKS", "SIZE"], map(_volume, volumes)),
    )
    for title, head, rows in tables:
        yield from (title, "", *aligned([head, *rows]), "")
    rooms = found["Usage"]
    yield f"Build cache usage: {human.size(rooms['Build Cache']['Size'])}"
    yield f"All else (database, networks, caches): {human.size(rooms['Other']['Size'])}"
    yield f"Total on disk: {human.size(sum(room['Size'] for room in rooms.values()))}"


@verb(
    "df",
    "",
    FORMAT,
    switch("-v --verbose", "show every image, container and volume"),
    aliases="wherry system df",
    examples="wherry system df -v",
)
def df(app: App, values: Values) -> None:
    """Show how much disk images, containers and volumes take, and how much of it could go."""
    found = app.engine.system_df()
    if values["verbose"]:
        app.out("\n".join(details(found)))
        return
    show(app, usage(found), DF, [column.name for column in DF], values)


# ---- info, version ----


def tree(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Key: value lines, nested objects indented; what is empty is left out."""
    for key, item in value.items():
        if item in (None, "", [], {}):
            continue
        if isinstance(item, Mapping):
            yield f"{indent}{key}:"
            yield from tree(item, indent + " ")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, (Mapping, list)) for part in item):
            yield f"{indent}{key}:"
            for part in item:
                yield from tree(part, indent + "  ") if isinstance(part, Mapping) else [f"{indent}  {part}"]
        elif isinstance(item, (list, tuple)):
            yield f"{indent}{key}: {' '.join(map(str, item))}"
        else:
            yield f"{indent}{key}: {json.dumps(item) if isinstance(item, bool) else item}"


@verb(
    "info",
    "",
    OBJECT_FORMAT,
    aliases="wherry system info, wherry info",
    examples="wherry info\nwherry info -f '{{.Driver}}'",
)
def info(app: App, values: Values) -> None:
    """Show this wherry and its host."""
    found = app.engine.info()
    if not one_object(app, found, values["format"]):
        app.out("\n".join(tree({k: v for k, v in found.items() if k != "Warnings"})))
        for warning in found.get("Warnings") or ():
            app.err(warning if str(warning).startswith("WARNING") else f"WARNING: {warning}")


@verb("version", "", OBJECT_FORMAT, examples="wherry version\nwherry version -f json")
def version(app: App, values: Values) -> None:
    """Show the versions of wherry and of what it stands on."""
    found = app.engine.version()
    if not one_object(app, found, values["format"]):
        app.out("\n".join(tree(found)))


# ---- check ----

CHECKED = (("Kind", "KIND"), ("Subject", "SUBJECT"), ("Problem", "PROBLEM"), ("Cure", "CURE"))
CHECK = tuple(Column(name, header, lambda r, _, name=name: str(r[name])) for name, header in CHECKED)  # type: ignore[misc]


@verb(
    "check",
    "",
    one("--format", text, "TEMPLATE", "'json' or a Go template, for the whole report"),
    switch("--quick", "do not read blobs through to verify their digests"),
    switch("--repair", "take away what is damaged (a pull brings it back) and sweep what is left over"),
    aliases="wherry system check",
    examples="wherry system check\nwherry system check --quick --format json\nwherry system check --repair",
)
def check(app: App, values: Values) -> int:
    """Look whether images, layers, snapshots and the database are whole and agree. Ends with 1 if something is not.

    It may run beside everything else. What a killed command left half made is told, but is no damage: `wherry gc` takes
    it.
    """
    report = app.engine.system_check(quick=values["quick"], repair=values["repair"])
    findings = report["Findings"]
    if not one_object(app, report, values["format"]):
        if findings:
            show(app, findings, CHECK, [name for name, _ in CHECKED], {})
        for path in report["Leftovers"]:
            app.out(f"left over{', swept' if values['repair'] else ''}: {path}")
        counts = ", ".join(f"{number} {kind}" for kind, number in report["Counts"].items())
        app.out(f"{counts or 'nothing is stored'}: {f'{len(findings)} findings' if findings else 'clean'}")
    return 1 if any(not finding["Repaired"] for finding in findings) else 0


# ---- doctor, gc ----

MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@verb("doctor", "", switch("-q --quiet", "show only what is not right"), examples="wherry doctor")
def doctor(app: App, values: Values) -> int:
    """Tell what the host lacks, with what mends it. Ends with 1 if something that wherry needs is missing."""
    checks = app.engine.doctor()
    for check in checks:
        if values["quiet"] and check.status == "ok":
            continue
        app.out(f"{MARKS.get(check.status, check.status)}  {check.name}: {check.detail}")
        if check.cure and check.status != "ok":
            app.out(f"      cure: {check.cure}")
    return 1 if any(check.status == "fail" for check in checks) else 0


@verb("gc", "", examples="wherry gc")
def gc(app: App, _values: Values) -> None:
    """Sweep what crashes left behind, and print what was swept. Every start does a small part of this by itself."""
    for kind, items in app.engine.gc().items():
        for item in items if isinstance(items, (list, tuple)) else [items]:
            app.out(f"{kind}: {item}")


# ---- systemd ----


@verb("boot", "", examples="wherry system boot")
def boot(app: App, _values: Values) -> int:
    """Start the containers whose restart policy is always or unless-stopped and that have not run since the host came
    up. What wherry-restart.service runs."""
    bad = 0
    for name, error in app.engine.boot():
        if error is None:
            app.out(name)
        else:
            app.err(f"cannot start {name}: {error}")
            bad = 1
    return bad


@verb("halt", "", examples="wherry system halt")
def halt(app: App, _values: Values) -> int:
    """Stop all containers side by side, each with its own grace, as before the end of the host: those whose restart
    policy is always or unless-stopped start again at the next boot. What wherry-halt.service runs as it is stopped."""
    bad = 0
    for name, error in app.engine.halt():
        if error is None:
            app.out(name)
        else:
            app.err(f"cannot stop {name}: {error}")
            bad = 1
    return bad


@verb("install-units", "[DIR]", examples="wherry system install-units\nsystemctl enable --now wherryd.socket")
def install_units(app: App, values: Values) -> None:
    """Write wherry's units for systemd into /etc/systemd/system or DIR: wherryd.service, wherryd.socket (the Docker
    API), wherry-cri.socket, wherry-restart.service, wherry-halt.service, wherry-csi.service, wherry@.service."""
    for path in app.engine.install_units(os.path.join(app.cwd, values["dir"] or "/etc/systemd/system")):
        app.out(path)
    app.err("  hint: systemctl daemon-reload; systemctl enable --now wherryd.socket wherry-restart.service")


@verb(
    "systemd",
    "CONTAINER",
    switch("--notify", "the container tells by sd_notify(3) when it is ready: Type=notify"),
    examples="wherry generate systemd web > /etc/systemd/system/web.service",
)
def systemd(app: App, values: Values) -> None:
    """Print a unit for systemd that runs a container."""
    app.out(app.engine.unit(values["container"], notify=values["notify"]).rstrip("\n"))
