"""The MAC spoof check of a bridge's port (key macspoofchk): what comes in there has the container's MAC, or is dropped.

Decides the layout: a table of the family bridge, under the instance's name, with one rule and two sets: guarded ports,
and which MAC each may send from. Elements carry their owner as a comment, as in the table of nft.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wherry_cni import nft
from wherry_cni.config import table_name
from wherry_cni.errors import FIREWALL, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.libnft import run
from wherry_cni.skel import Call

__all__ = ["check", "forget", "forget_others", "guard"]

_LAYOUT = (
    "add table bridge {table}",
    "add set bridge {table} guarded {{ type ifname; }}",
    "add set bridge {table} allowed {{ type ifname . ether_addr; }}",
    "add chain bridge {table} antispoof {{ type filter hook prerouting priority -300; }}",
    "flush chain bridge {table} antispoof",
    "add rule bridge {table} antispoof iifname @guarded iifname . ether saddr != @allowed drop",
)


class _Held(NamedTuple):
    """One element: its set, its key as nft writes it, its owner."""

    where: str
    key: str
    owner: str


def guard(call: Call, port: str, mac: str) -> None:
    """From now on the port sends from this MAC only. One batch."""
    table, owner = table_name(call.config), nft.owner(call.network, call.container_id, call.ifname)
    wanted = [f'add element bridge {table} guarded {{ {port} comment "{owner}" }}',
              f'add element bridge {table} allowed {{ {port} . {mac} comment "{owner}" }}']
    code, _, err = run("\n".join(wanted))
    if code and "No such file" in err:
        code, _, err = run("\n".join([*(line.format(table=table) for line in _LAYOUT), *wanted]))
    if code:
        raise CniError(FIREWALL, "nft refuses the MAC spoof check", err)


def forget(call: Call) -> None:
    """Drop what the attachment has; none is success, and a configuration that ADD refused has none."""
    try:
        table = table_name(call.config) if call.config.get("macspoofchk") is True else ""
    except CniError:
        return
    if table:
        owner = nft.owner(call.network, call.container_id, call.ifname)
        _remove(table, lambda held: held.owner == owner)


def forget_others(call: Call, valid: Iterable[tuple[str, str]]) -> None:
    """GC: drop what attachments of the network have that are not valid."""
    kept, tail = {nft.owner(call.network, *pair) for pair in valid}, nft.owner_of_network(call.network)
    _remove(table_name(call.config), lambda held: held.owner.endswith(tail) and held.owner not in kept)


def check(call: Call, port: str, mac: str) -> None:
    """The port is guarded still."""
    found = {(held.where, held.key) for held in _elements(table_name(call.config))}
    if not {("guarded", port), ("allowed", f"{port} . {mac}")} <= found:
        raise CniError(IO_ERROR, f"{port} has lost its MAC spoof check")


def _remove(table: str, chosen: Callable[[_Held], bool]) -> None:
    for _ in range(nft.TRIES):
        gone = [f"delete element bridge {table} {held.where} {{ {held.key} }}"
                for held in filter(chosen, _elements(table))]
        code, _, err = run("\n".join(gone)) if gone else (0, "", "")
        if not code:
            return
        if "No such file" not in err:  # somebody else removed one between listing and batch: list again
            break
    raise CniError(FIREWALL, "nft refuses to end the MAC spoof check", err)


def _elements(table: str) -> list[_Held]:
    code, out, err = run(f"list table bridge {table}", as_json=True)
    if code and "No such file" not in err:
        raise CniError(FIREWALL, "nft cannot list the table", err)
    found = []
    for body in (item["set"] for item in json.loads(out)["nftables"] if "set" in item) if not code else ():
        for part in (entry["elem"] for entry in body.get("elem", ()) if isinstance(entry, dict) and "elem" in entry):
            key = part["val"]["concat"] if isinstance(part["val"], dict) else [part["val"]]
            found.append(_Held(body["name"], " . ".join(key), part.get("comment", "")))
    return found
