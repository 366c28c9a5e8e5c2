"""`ports`: what is published on this host, and for whom."""

from __future__ import annotations

import json

from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch, text
from wherry.cli.table import Column, show
from wherry.model import Json


def _binding(row: Json) -> str:
    address = f"[{row['HostIp']}]" if ":" in row["HostIp"] else row["HostIp"]
    return f"{address}:{row['HostPort']}->{row['PrivatePort']}/{row['Type']}"


def _reach(row: Json) -> str:
    """Who, and at which addresses: each of them once."""
    found: dict[str, list[str]] = {}
    for way in row["Reach"]:
        port = f" port {way['Port']}" if "Port" in way else ""
        link = "" if port else f" ({way['Interface']})"
        found.setdefault(way["Who"], []).append(f"{way['Address']}{port}{link}")
    return "; ".join(f"{who}: {', '.join(ways)}" for who, ways in found.items()) or "nobody"


COLUMNS = (
    Column("Name", "CONTAINER", lambda r, _: str(r["Name"])),
    Column("ID", "CONTAINER ID", lambda r, look: str(r["Container"]) if look.full else str(r["Container"])[:12]),
    Column("Network", "NETWORK", lambda r, _: str(r["Network"])),
    Column("Port", "PORT", lambda r, _: _binding(r)),
    Column("Exposure", "REACHED BY", lambda r, _: _reach(r)),
)


@verb(
    "ports",
    "",
    switch("--exposure", "show who can reach each port, and at which addresses"),
    one("--format", text, "TEMPLATE", "'table', 'table TEMPLATE', 'json', or a Go template"),
    switch("--no-trunc", "do not shorten anything"),
    examples="""
wherry ports --exposure
wherry ports --format json""",
)
def ports(app: App, values: Values) -> None:
    """List the published ports of all containers that run.

    Who can reach one is told by the host's addresses, their links and the network's own rules; other firewalls are not
    looked at.
    """
    rows = app.engine.exposure()
    if values["format"] == "json":
        app.out("".join(json.dumps(row) + "\n" for row in rows), end="")
        return
    default = ("Name", "Network", "Port", *(("Exposure",) if values["exposure"] else ()))
    show(app, rows, COLUMNS, default, values, key="ID")
