"""`events`: what happens in this wherry, as it happens."""

from __future__ import annotations

import time

from wherry.cli.app import App, verb
from wherry.cli.commands.logs import SINCE, UNTIL
from wherry.cli.options import Values
from wherry.cli.table import FILTER, FORMAT, filters, one_object
from wherry.model import Json

FILTERS = ("container", "daemon", "event", "image", "label", "network", "scope", "type", "volume")


@verb(
    "events",
    "",
    FILTER,
    FORMAT,
    SINCE,
    UNTIL,
    aliases="wherry system events, wherry events",
    examples="""
wherry events --filter type=container --filter event=die
wherry events --since 1h --until 0s --format json""",
)
def events(app: App, values: Values) -> None:
    """Show events as they happen; with --until up to that time.

    Filters: container, event, image, label, network, type, volume.
    """
    until = values["until"]
    found = app.engine.events(
        since=values["since"] or 0,
        until=until or 0,
        filters=filters(values, FILTERS),
        follow=until is None or until > time.time(),
    )
    for event in found:
        if not one_object(app, event, values["format"]):
            app.out(line(event))
        app.stdio.stdout.flush()


def line(event: Json) -> str:
    """docker's line: time, type, action, id, attributes."""
    actor = event.get("Actor") or {}
    pairs = ", ".join(f"{k}={v}" for k, v in sorted((actor.get("Attributes") or {}).items()))
    words = (stamp(event.get("timeNano", 0)), event.get("Type", ""), event.get("Action", ""), actor.get("ID", ""))
    return " ".join(map(str, words)) + (f" ({pairs})" if pairs else "")


def stamp(nanoseconds: int) -> str:
    """RFC 3339 with nanoseconds in local time."""
    seconds, rest = divmod(nanoseconds, 10**9)
    zone = time.strftime("%z", time.localtime(seconds))
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds)) + f".{rest:09d}{zone}"
