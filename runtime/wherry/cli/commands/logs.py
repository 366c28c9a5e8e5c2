"""`logs`: what a container wrote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wherry.cli import parse
from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch
from wherry.model import Json

if TYPE_CHECKING:
    from wherry.engine.values import LogLine


def tail(flag: str, text: str) -> int:
    """A number of lines, or all of them (-1)."""
    if text == "all":
        return -1
    if text.startswith("-") and text[1:].isdecimal():
        return -1
    return int(parse.integer(0, 2**31 - 1)(flag, text))


def moment(flag: str, text: str) -> float:
    """A time, relative to now."""
    return parse.moment(flag, text, time.time())


SINCE = one("--since", moment, "TIME", "only what came after: 10m, 2026-01-31T10:00:00Z, or Unix seconds")
UNTIL = one("--until", moment, "TIME", "only what came before")


@verb(
    "logs",
    "CONTAINER",
    switch("--details", "print the labels and variables that --log-opt chose"),
    switch("-f --follow", "go on printing until the container ends"),
    SINCE,
    one("-n --tail", tail, "N", "the last N lines (default: all)"),
    switch("-t --timestamps", "print the time of each line"),
    UNTIL,
    aliases="wherry container logs, wherry logs",
    examples="wherry logs -f --tail 20 web\nwherry logs --since 1h -t web 2>&1 | grep error",
)
def logs(app: App, values: Values) -> None:
    """Show the log of a container: its standard output on ours, its standard error on ours."""
    ref, last, follow = values["container"], values["tail"], values["follow"]
    details = _details(app.engine.inspect(ref, "container")) if values["details"] else b""
    lines = app.engine.logs(
        ref,
        since=values["since"] or 0,
        until=values["until"] or 0,
        tail=None if last is None or last < 0 else last,
        follow=follow,
    )
    printer = {"stdout": app.stdio.stdout, "stderr": app.stdio.stderr}
    buffers = {name: getattr(stream, "buffer", None) for name, stream in printer.items()}
    for line in lines:
        data = _prefix(line, values["timestamps"], details) + line.data
        buffer = buffers[line.stream]
        if buffer is None:
            printer[line.stream].write(data.decode("utf-8", "replace"))
            continue
        buffer.write(data)
        if follow or line.stream == "stderr":
            buffer.flush()


def _prefix(line: LogLine, stamped: bool, details: bytes) -> bytes:
    return (line.time.encode() + b" " if stamped else b"") + details


def _details(about: Json) -> bytes:
    """docker's "k=v,k=v " of the labels and variables that the log options name."""
    options = ((about.get("HostConfig") or {}).get("LogConfig") or {}).get("Config") or {}
    config = about.get("Config") or {}
    labels: dict[str, str] = config.get("Labels") or {}
    env = dict(item.partition("=")[::2] for item in config.get("Env") or ())
    chosen = {**_chosen(labels, options.get("labels", "")), **_chosen(env, options.get("env", ""))}
    return (",".join(f"{k}={v}" for k, v in sorted(chosen.items())) + " ").encode()


def _chosen(found: dict[str, str], names: str) -> dict[str, str]:
    wanted: Sequence[str] = [name.strip() for name in names.split(",")]
    return {name: found[name] for name in wanted if name in found}
