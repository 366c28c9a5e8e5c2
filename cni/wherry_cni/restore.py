"""Puts the elements of attachments back into their tables: what `nft flush ruleset` or a reload of a firewall took.

Decides which plugins of a record have elements, and that each table is rendered in one batch whatever of it is left.
The elements are those of ADD: each plugin's `rules(call)` tells them, for the record's configuration and result. One
record that cannot be read keeps no other from coming back. Refuses to know when to restore, and touches no table that
no record names. An attachment whose namespace is gone gets nothing: nobody is behind its addresses.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import IO, Any

from wherry_cni import nft, skel
from wherry_cni.config import table_name
from wherry_cni.errors import BAD_CONFIG, UNDECODABLE, CniError
from wherry_cni.results import NEWEST, Json
from wherry_cni.skel import Call

__all__ = ["entry", "main"]

_WITH_RULES = {name: name for name in ("bridge", "firewall", "overlay", "portmap", "ptp")}  # they have rules(call)
Rules = Callable[[Call], list[nft.Element]]


def main(_argv: Sequence[str], _env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Restore {"attachments": [RECORD, ...]}; a RECORD has conflist, containerId, netns, ifname, args, capabilities and
    result. Prints {"elements": N, "tables": [NAME, ...]}; 1 with a CNI error object where a table cannot be written."""
    try:
        parts = _parts(_read(stdin))
        tables = _tables(parts)
        problems = [problem for name, wanted in tables.items() if (problem := _put_back(name, wanted))]
        for call, _ in parts:
            _guard(call)
        if problems:
            raise problems[0]
    except CniError as problem:
        return skel.tell(stdout, NEWEST, problem)
    told = {"elements": sum(map(len, tables.values())), "tables": sorted(tables)}
    stdout.write(json.dumps(told).encode() + b"\n")
    stdout.flush()
    return 0


def _put_back(table: str, wanted: Mapping[nft.Element, None]) -> CniError | None:
    """The failure of one table, which keeps no other from coming back."""
    try:
        nft.restore(table, list(wanted))
    except CniError as problem:
        return problem
    return None


def _read(stdin: IO[bytes]) -> list[Any]:
    try:
        given = json.load(stdin)
    except ValueError as problem:
        raise CniError(UNDECODABLE, f"the records are not JSON: {problem}") from None
    listed = given.get("attachments") if isinstance(given, dict) else None
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, "no list of attachments")
    return listed


def _parts(records: Sequence[Any]) -> list[tuple[Call, list[nft.Element]]]:
    """What each plugin of each record wants."""
    found: list[tuple[Call, list[nft.Element]]] = []
    for record in records:
        try:
            found += [(call, rules(call)) for call, rules in _calls(record)]
        except (CniError, AttributeError, KeyError, TypeError, ValueError) as problem:
            skel.note(f"restore: a record is passed over: {problem!r}")
    return found


def _tables(parts: Sequence[tuple[Call, list[nft.Element]]]) -> dict[str, dict[nft.Element, None]]:
    """Table name to elements, each once and in order: those of a network are the same for all that are on it."""
    tables: dict[str, dict[nft.Element, None]] = {}
    for call, wanted in parts:
        if wanted:
            tables.setdefault(table_name(call.config), {}).update(dict.fromkeys(wanted))
    return tables


def _guard(call: Call) -> None:
    """bridge's MAC spoof check has a table of the family bridge for itself; few ask for it."""
    if call.config["type"] == "bridge" and call.config.get("macspoofchk") is True:
        from wherry_cni import antispoof
        from wherry_cni.interface import host_ifname, told_macs

        macs = told_macs(call)
        if macs:
            antispoof.guard(call, host_ifname(call), macs[0])


def _calls(record: Json) -> Iterator[tuple[Call, Rules]]:
    """The call that each of our own plugins in the record's list would get, with what tells its elements."""
    if not record["result"] or not os.path.exists(record["netns"]):
        return
    for plugin in record["conflist"]["plugins"]:
        module = _WITH_RULES.get(plugin["type"])
        if module:
            rules: Rules = import_module(f"wherry_cni.{module}").rules
            yield _call(record, plugin), rules


def _call(record: Json, plugin: Json) -> Call:
    """Specification, section 3, "Deriving execution configuration from plugin configuration"."""
    declared = plugin.get("capabilities") or {}
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config |= {"name": record["conflist"]["name"], "prevResult": record["result"],
               "cniVersion": record["conflist"].get("cniVersion", NEWEST),
               "runtimeConfig": {key: value for key, value in record["capabilities"].items() if declared.get(key)}}
    return Call("ADD", record["containerId"], record["netns"], record["ifname"], record.get("args") or {}, (), config,
                {}, "")


def entry() -> int:
    """The process's own streams."""
    return main(sys.argv, os.environ, sys.stdin.buffer, sys.stdout.buffer)
