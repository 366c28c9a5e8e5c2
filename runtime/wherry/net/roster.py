"""Who is on a network, as its DNS responder is told: one small file a network, replaced as a whole.

Decides the file's shape (STATE/names/NETWORK.json) and that a network without members has none. Refuses to know who is
a member (the engine says so) and how questions are answered (dns.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import NamedTuple

from wherry.errors import WherryError
from wherry.kernel import files

__all__ = ["Member", "Roster", "directory", "load", "load_all", "networks", "path", "store"]

_ENDING = ".json"
_MAX_BYTES = 1 << 26


class Member(NamedTuple):
    """One container on one network. `names`: the first is what its address is called; addresses without prefix length;
    `upstreams`: the servers that it asked for (--dns), () for the host's."""

    id: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    upstreams: tuple[str, ...] = ()


class Roster(NamedTuple):
    """One network. `gateways`: this host's addresses on it, where DNS is answered, () where nobody does. `table`: the
    instance's nft table. `internal`: nothing is forwarded for it."""

    network: str
    members: tuple[Member, ...] = ()
    gateways: tuple[str, ...] = ()
    table: str = ""
    internal: bool = False


def directory(state: str) -> str:
    """Where the files lie, beside the keepers' locks (0700)."""
    return f"{state}/names"


def path(state: str, network: str) -> str:
    """The file of one network."""
    return f"{directory(state)}/{network}{_ENDING}"


def store(state: str, roster: Roster) -> None:
    """Replace the file; a network without members loses it."""
    where = path(state, roster.network)
    if not roster.members:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(where)
        return
    os.makedirs(directory(state), mode=0o700, exist_ok=True)
    files.atomic_write(where, json.dumps(roster._asdict()).encode(), 0o600)


def load(where: str) -> Roster | None:
    """The roster in a file; None where there is none, or no whole one."""
    try:
        found = json.loads(files.read_capped(where, _MAX_BYTES))
        members = tuple(Member(m[0], tuple(m[1]), tuple(m[2]), tuple(m[3])) for m in found["members"])
        return Roster(found["network"], members, tuple(found["gateways"]), found["table"], found["internal"])
    except (OSError, ValueError, LookupError, TypeError, WherryError):
        return None


def networks(state: str) -> list[str]:
    """Every network that has members."""
    try:
        names = os.listdir(directory(state))
    except FileNotFoundError:
        return []
    return [name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING) and not name.startswith(".")]


def load_all(state: str) -> list[Roster]:
    """All rosters."""
    found = (load(path(state, network)) for network in networks(state))
    return [one for one in found if one is not None]
