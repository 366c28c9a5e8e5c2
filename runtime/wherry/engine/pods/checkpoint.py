"""A checkpoint of a pod's container: its processes as criu's images, and what it wrote, in one archive.

The members are those that checkpointctl, CRI-O and containerd read: `checkpoint/` (images), `config.dump` and
`spec.dump` (JSON), `rootfs-diff.tar` (an OCI layer), `deleted.files`, `dump.log`. Decides that the container is held
still for all of it and goes on afterwards, and that an archive is whole or not there. Memory is in it: it is root's
alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.engine import diff, frozen, inspection, rootfs
from wherry.engine.house import House
from wherry.engine.status import running
from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Json

from . import rows

if TYPE_CHECKING:
    from wherry.container.state import State
    from wherry.engine.db import Container

__all__ = ["checkpoint"]

_SECONDS = 600  # where the request gives none
_LOG = "dump.log"


def checkpoint(house: House, row: Container, location: str, timeout: int) -> None:
    """Write the archive `location` (an absolute path, in a directory that is there) within `timeout` seconds (0: our
    own bound). CONFLICT unless the container runs, UNSUPPORTED or PRECONDITION where criu cannot."""
    from wherry.container import criu

    _sound(location, timeout)
    if row.config["handler"]:
        raise WherryError(Kind.UNSUPPORTED, f"container {row.name} is another runtime's: wherry cannot checkpoint it")
    seen, state = running(house, row, paused=True)
    config = inspection.bundle_config(house, row.id)
    program = criu.able("checkpoint", row.id, config)
    still = contextlib.nullcontext() if seen.status == "paused" else frozen.while_held(house, row.id)
    with _scratch(house, row.id) as scratch, still:
        argv = [program, *_words(state, config)]
        _dump(row.name, argv, state, scratch, timeout or _SECONDS)
        _archive(house, row, config, scratch, location)


def _sound(location: str, timeout: int) -> None:
    if not location.startswith("/") or location.endswith("/") or "\0" in location:
        raise WherryError(Kind.INVALID, f"location must be the absolute path of a file, not {location[:200]!r}")
    if not os.path.isdir(os.path.dirname(location)):
        raise WherryError(Kind.INVALID, f"location {location[:200]}: there is no such directory")
    if timeout < 0:
        raise WherryError(Kind.INVALID, f"timeout must not be negative, but is {timeout}")


@contextlib.contextmanager
def _scratch(house: House, cid: str) -> Iterator[str]:
    """A directory that goes with the container, if not before."""
    path = f"{house.container_dir(cid)}/checkpoint"
    files.remove_tree(path)  # of one that was killed
    os.makedirs(f"{path}/images", 0o700)
    try:
        yield path
    finally:
        files.remove_tree(path)


def _words(state: State, config: Json) -> Iterator[str]:
    from wherry.container import criu

    assert state.init is not None
    pid = state.init.pid
    yield from ("dump", "--tree", str(pid), "--leave-running", "--tcp-established", "--file-locks")
    yield "--manage-cgroups=soft"
    yield from criu.dump_words(config, state.bundle, state.init, f"/proc/{pid}/root", state.cgroup)


def _dump(name: str, argv: Sequence[str], state: State, scratch: str, seconds: float) -> None:
    from wherry.container import criu

    assert state.init is not None
    place = criu.Place(f"{scratch}/images", scratch)
    criu.write_descriptors(place.images, state.init)
    try:
        criu.run(argv, place, _LOG, f"checkpoint container {name}", (), seconds=seconds)
    except subprocess.TimeoutExpired as error:
        message = f"the checkpoint of container {name} was not done in {seconds:g} s"
        raise WherryError(Kind.UNAVAILABLE, message, hint="give it a longer timeout") from error


def _archive(house: House, row: Container, config: Json, scratch: str, location: str) -> None:
    deleted = [one["Path"].lstrip("/") for one in diff.changes(house, row.id) if one["Kind"] == 2]
    _layer(house, row, f"{scratch}/rootfs-diff.tar")
    partial = f"{location}.partial"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file, tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(f"{scratch}/images", "checkpoint")
            for name in ("rootfs-diff.tar", _LOG):
                tar.add(f"{scratch}/{name}", name)
            for name, document in (
                ("config.dump", _about(row)), ("spec.dump", config), ("deleted.files", deleted),
            ):  # fmt: skip
                _add(tar, name, document)
        os.rename(partial, location)
    except BaseException:
        os.unlink(partial)
        raise


def _layer(house: House, row: Container, path: str) -> None:
    """What the container has changed of its image."""
    from wherry.image.layertar import write_layer

    rootfs.settle(house, house.snapshots.diff_ids(row.id))
    with open(path, "xb") as file:
        write_layer(house.snapshots.upper(row.id), house.snapshots.lower_paths(row.id), file.write)


def _add(tar: tarfile.TarFile, name: str, document: object) -> None:
    data = json.dumps(document).encode()
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    tar.addfile(member, io.BytesIO(data))


def _about(row: Container) -> Json:
    """config.dump, in checkpointctl's names."""
    return {
        "id": row.id, "name": rows.options(row).name, "rootfsImage": row.config["image_name"],
        "rootfsImageRef": row.image, "rootfsImageName": row.config["image_name"], "runtime": "wherry",
        "createdTime": inspection.when(row.created), "checkpointedTime": inspection.when(time.time()),
        "restored": False,
    }  # fmt: skip
