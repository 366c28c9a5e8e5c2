"""`system check`: is everything here whole, and do rows and files tell the same?

Decides what of containers, pods and volumes is damage. Files without a row are none: a killed command left them, and
`wherry gc` takes them. The store's own invariants are the store's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from wherry.image.check import Finding
from wherry.model import Json

from . import fence
from .db import Container, PodRow
from .house import House
from .undo import sweeping

__all__ = ["check"]


def check(house: House, *, quick: bool, repair: bool) -> Json:
    """The verb. Findings that `repair` mends say so; what is left over is swept by it."""
    if not os.path.isdir(house.place.root):
        return {"Findings": [], "Leftovers": [], "Counts": {}}
    report = house.images.check(quick=quick)
    found, leftovers = _rows(house)
    mended = house.images.repair(report) if repair and report.findings else []
    if repair:
        _sweep(house)
    shape = [_shape(finding, finding in mended) for finding in (*report.findings, *found)]
    counts = {**report.counts, "containers": len(house.db.container_ids()), "volumes": len(house.db.volumes()),
              "pods": len(house.db.pod_ids())}  # fmt: skip
    return {"Findings": shape, "Leftovers": sorted({*report.leftovers, *leftovers}), "Counts": counts}


def _shape(finding: Finding, mended: bool) -> Json:
    return {"Kind": finding.kind, "Subject": finding.subject, "Problem": finding.problem, "Cure": finding.cure,
            "Repaired": mended}  # fmt: skip


def _sweep(house: House) -> None:
    from . import gc, images

    gc.sweep(house, thorough=True)
    images.sweep(house)


def _rows(house: House) -> tuple[list[Finding], list[str]]:
    """Rows that lack their files; files that lack a row."""
    with sweeping(house, True):  # nobody has files without their row at this moment
        rows = house.db.containers()
        volumes = {volume.dir: volume.name for volume in house.db.volumes() if volume.driver == "local"}
        copies = {copy.dir: copy.name for copy in house.db.snapshots() if copy.driver == "local"}
        folders = _names(f"{house.place.root}/containers")
        pods, homes = house.db.pods(), _names(f"{house.place.root}/pods")
        snapshots, dirs = set(house.snapshots.keys()), set(house.volumes.ids())
    ids = {row.id for row in rows}
    found = [Finding("database", f"{house.place.root}/wherry.db", problem) for problem in house.db.problems()]
    for row in rows:
        if house.db.container(row.id) is None:  # removed meanwhile
            continue
        found += [Finding("container", row.name, problem, f"wherry rm -f {row.name}")
                  for problem in _lacks(row.id, folders, snapshots)]  # fmt: skip
    found += [Finding("pod", f"{pod.namespace}/{pod.name}", "its directory is missing", f"crictl rmp -f {pod.id[:12]}")
              for pod in pods if pod.id not in homes and house.db.pod(pod.id)]  # fmt: skip
    found += [Finding("volume", name, "its directory is missing", f"wherry volume rm {name}")
              for folder, name in volumes.items() if folder not in dirs]  # fmt: skip
    found += [Finding("volume snapshot", name, "its directory is missing", f"wherry volume snapshot rm {name}")
              for folder, name in copies.items() if folder not in dirs]  # fmt: skip
    left = [f"{house.place.root}/containers/{name}" for name in folders - ids]
    left += [f"{house.place.root}/pods/{name}" for name in homes - {pod.id for pod in pods}]
    left += [f"{house.place.root}/snapshots/{name}" for name in snapshots - ids]
    left += [f"{house.place.root}/volumes/{name}" for name in dirs - set(volumes) - set(copies)]
    return found + _unreadable(house, rows, pods), left + _of_drivers(house)


def _unreadable(house: House, rows: Sequence[Container], pods: Sequence[PodRow]) -> list[Finding]:
    good = {row.id for row in fence.each(house, rows, fence.container)}
    good |= {ref for ref, _ in fence.each(house, pods, lambda pod: (pod.id, fence.pod(pod)))}
    named = [("container", row.name, row.id, f"wherry rm -f {row.name}") for row in rows]
    named += [("pod", f"{pod.namespace}/{pod.name}", pod.id, f"crictl rmp -f {pod.id[:12]}") for pod in pods]
    return [Finding(kind, name, "its row cannot be read", cure) for kind, name, ref, cure in named if ref not in good]


def _of_drivers(house: House) -> list[str]:
    from . import served

    return served.orphans(house)


def _lacks(cid: str, folders: set[str], snapshots: set[str]) -> Iterator[str]:
    if cid not in folders:
        yield "its directory is missing"
    if cid not in snapshots:
        yield "its snapshot is missing"


def _names(path: str) -> set[str]:
    try:
        return set(os.listdir(path))
    except FileNotFoundError:
        return set()
