"""A container's root as a descriptor: detached and read-only at rest, the init's own root while it runs.

Decides how the three are reached without a path that the container could bend (invariant 1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Mount

from .house import House

if TYPE_CHECKING:
    from wherry.container.state import State

__all__ = ["at_rest", "live", "mounts", "read_only", "settle"]


def settle(house: House, diff_ids: Sequence[str]) -> None:
    """Mount the layers that want it, where they are not yet: once for all containers, until they are removed."""
    from wherry.kernel import mount

    try:
        mount.settle(house.snapshots.below(diff_ids))
    except OSError as error:
        hint = 'remove the image, and pull it again with snapshot_format = "directory" in wherry.toml'
        raise WherryError(Kind.UNSUPPORTED, f"cannot mount a layer: {error.strerror or error}", hint=hint) from error


def mounts(house: House, cid: str) -> list[Mount]:
    """The mounts of a container's root, over layers that are there."""
    settle(house, house.snapshots.diff_ids(cid))
    return house.snapshots.mounts(cid)


def read_only(root: Sequence[Mount]) -> list[Mount]:
    """The same overlays with their upper as one more lower directory: nobody writes through it."""
    return [_read_only(mount) for mount in root]


def _read_only(mount: Mount) -> Mount:
    upper = next((o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")), "")
    kept = [o for o in mount.options if not o.startswith(("upperdir=", "workdir="))]
    if upper:
        kept = [f"lowerdir={upper}:{o.partition('=')[2]}" if o.startswith("lowerdir=") else o for o in kept]
    return mount._replace(options=(*kept, *([] if "ro" in kept else ["ro"])))


@contextmanager
def at_rest(house: House, cid: str, *, writable: bool = False) -> Iterator[int]:
    """The root of a container that does not run, as a detached mount that dissolves at the end."""
    from wherry.kernel import mount

    found = mounts(house, cid)
    fd = mount.detached(found if writable else read_only(found))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def live(state: State) -> Iterator[int]:
    """The root of a running container's init, opened while its pidfd says that the pid is still its own."""
    from wherry.kernel import process

    if state.init is None:
        raise WherryError(Kind.CONFLICT, "the container is not running")
    with process.held(state.init) as pidfd:
        if pidfd is None:
            raise WherryError(Kind.CONFLICT, "the container is not running")
        fd = os.open(f"/proc/{state.init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if process.wait_pidfd(pidfd, 0):
                raise WherryError(Kind.CONFLICT, "the container has just ended")
            yield fd
        finally:
            os.close(fd)
