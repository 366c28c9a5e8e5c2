"""Who is on which network: each member's record, and what its peers are told of it.

Decides that STATE/c/<id>/net.json, written before the launch, says "a member of these networks", and that hosts files
and responders follow it. Refuses to know how a network is joined (joining.py, connect.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.errors import WherryError
from wherry.model import Json

from . import keeping
from .house import House

if TYPE_CHECKING:
    from wherry.net.files import HostEntry

    from .db import Container

__all__ = ["addresses", "forget", "gateways", "load", "refresh", "refresh_all", "store"]

_FACTS_MAX = 1 << 20  # bytes of net.json
_PATIENCE = 30  # seconds for others that change who is on a network


# ---- the record ----


def store(house: House, cid: str, facts: Json) -> None:
    """Write down what a container was given."""
    path = f"{house.state_dir(cid)}/net.json"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(json.dumps(facts))
    os.replace(f"{path}.new", path)


def load(house: House, cid: str) -> Json:
    """What a container was given; {} when it is not joined to anything."""
    from wherry.kernel import files

    try:
        value: Json = json.loads(files.read_capped(f"{house.state_dir(cid)}/net.json", _FACTS_MAX))
        return value
    except (FileNotFoundError, NotADirectoryError, ValueError, WherryError):
        return {}


def forget(house: House, cid: str) -> None:
    """No member any more; absent is success."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(f"{house.state_dir(cid)}/net.json")


def addresses(fact: Json) -> list[str]:
    """The addresses of one attachment, without prefix lengths."""
    return [a[0].partition("/")[0] for interface in fact["interfaces"] for a in interface["addresses"]]


def gateways(fact: Json) -> list[str]:
    """The gateways of one attachment."""
    return [a[1] for interface in fact["interfaces"] for a in interface["addresses"] if a[1]]


# ---- the peers ----


def refresh_all(house: House) -> None:
    """`refresh` of whatever network somebody is told to be on: one that a crash took may be among them."""
    from wherry.net import roster

    refresh(house, roster.networks(house.place.state))


def refresh(house: House, networks: Sequence[str]) -> None:
    """Rewrite the hosts files of every member of these networks, and what their responders know."""
    if not networks:
        return
    with _alone(house):
        known = _Known(house)
        for cid in {cid for network in networks for cid in known.of(network)}:
            _refresh(house, known, *known.member(cid))
        for network in networks:
            keeping.publish(house, network, [known.member(cid) for cid in known.of(network)])


class _Known:
    """Who is on networks, and what peers are told of him; each is looked up once, for a network may have hundreds."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._members: dict[str, tuple[Container, Json]] = {}
        self._networks: dict[str, dict[str, list[HostEntry]]] = {}

    def of(self, network: str) -> dict[str, list[HostEntry]]:
        """The members of a network by their ids."""
        if network not in self._networks:
            users = self._house.db.network_users(network)
            self._networks[network] = {cid: self._entries(cid, network) for cid in users if self._is_member(cid)}
        return self._networks[network]

    def member(self, cid: str) -> tuple[Container, Json]:
        """The row and net.json of a member."""
        return self._members[cid]

    def _is_member(self, cid: str) -> bool:
        if cid not in self._members and (row := self._house.db.container(cid)) and (facts := load(self._house, cid)):
            self._members[cid] = (row, facts)
        return cid in self._members

    def _entries(self, cid: str, network: str) -> list[HostEntry]:
        from wherry.net import files

        row, facts = self._members[cid]
        return [files.HostEntry(tuple(addresses(fact)), keeping.names(row, fact["aliases"]))
                for fact in facts["networks"] if fact["network"] == network]  # fmt: skip


def _refresh(house: House, known: _Known, row: Container, facts: Json) -> None:
    from wherry.net import files

    peers = [entry for fact in facts["networks"] for cid, entries in known.of(fact["network"]).items()
             if cid != row.id for entry in entries]  # fmt: skip
    with contextlib.suppress(OSError, WherryError):  # its container may have made anything of it
        files.update_peers(f"{house.container_dir(row.id)}/hosts", peers)


@contextlib.contextmanager
def _alone(house: House) -> Iterator[None]:
    from wherry.kernel import files

    with files.flock(f"{house.place.state}/peers.lock", _PATIENCE):
        yield
