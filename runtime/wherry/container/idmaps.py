"""User namespaces that only lend their id maps to mounts: slots of a plan named "idmap=C:H:N[/...],C:H:N[/...]".

A namespace lives as long as its descriptor; the process that it was made with is the helper's, and ends at once.
"""

from __future__ import annotations

import os
from contextlib import suppress

from wherry.errors import Kind, WherryError
from wherry.oci.plan import Op, Plan

__all__ = ["PREFIX", "open_map"]

PREFIX = "idmap="
_NEWUSER = 0x10000000  # CLONE_NEWUSER
_CREATED = 1  # WH_CREATED


def open_map(name: str) -> int:
    """A descriptor of a new user namespace with the maps that the slot's name spells out (uids, gids)."""
    from wherry.container import launch
    from wherry.kernel import process

    uids, gids = (part.replace(":", " ").replace("/", "\n") + "\n" for part in name.removeprefix(PREFIX).split(","))
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        holder = launch.start("/", _plan(uids, gids), "launch", {"fifo": read_end}, name="of an id map").init
        try:
            return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WherryError(
                Kind.INTERNAL, f"cannot open the user namespace of an id map: {error.strerror}"
            ) from error
        finally:
            with suppress(WherryError):
                process.signal(holder, 9)
    finally:
        os.close(read_end)
        os.close(write_end)


def _plan(uids: str, gids: str) -> Plan:
    """A child in a user namespace that waits and never goes on."""
    return Plan(
        ops=(
            Op("CLONE", "H", n0=_NEWUSER, s0="user"),
            Op("PROC_WRITE", "H", s0="gid_map", s1=gids),
            Op("PROC_WRITE", "H", s0="uid_map", s1=uids),
            Op("REPORT", "H", n0=_CREATED, s0="created"),
            Op("WAIT_START", "C", fd0=0),
            Op("EXEC", "C", s0="/", s1=("/",), n0=1),
        ),
        inherited=("fifo",),
        slots=1,
    )
