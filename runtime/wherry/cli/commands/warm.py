"""The verbs of the warm process, which answers short commands without starting Python."""

from __future__ import annotations

import os

from wherry.cli import human
from wherry.cli.app import App, verb
from wherry.cli.commands.system import OBJECT_FORMAT
from wherry.cli.options import Values
from wherry.cli.table import one_object


@verb("status", "", OBJECT_FORMAT, examples="wherry warm status\nwherry warm status -f '{{.Pid}}'")
def status(app: App, values: Values) -> int:
    """Show the warm process: its pid, age, socket and memory; or why there is none. Ends with 1 without one."""
    from wherry.engine import warm

    found = warm.status(app.engine.place.state, app.env)
    if not one_object(app, found, values["format"]):
        app.out(_text(found))
    return 0 if found["Pid"] else 1


def _text(found: dict[str, object]) -> str:
    if not found["Pid"]:
        return f"no warm process: {found['Why']}"
    memory = human.memory(float(str(found["Memory"])))
    return (
        f"pid {found['Pid']}, {found['Age']} s old, {memory}, {found['Commands']} commands at work\n"
        f"socket {found['Socket']}"
    )


@verb("install", "[DIR]", examples="wherry warm install\nsystemctl enable --now wherry-warm.socket")
def install(app: App, values: Values) -> None:
    """Write units for systemd, which then keeps the socket and starts the process for who calls: wherry-warm.socket and
    wherry-warm.service, into /etc/systemd/system or DIR."""
    from wherry.engine import warm

    directory = os.path.join(app.cwd, values["dir"] or "/etc/systemd/system")
    app.out("\n".join(warm.install(app.engine.place.state, directory)))
    app.err("  hint: systemctl daemon-reload; systemctl enable --now wherry-warm.socket")


@verb("stop", "", examples="wherry warm stop")
def stop(app: App, _values: Values) -> None:
    """End the warm process; commands that it was given go on. A later command leaves a new one."""
    from wherry.engine import warm

    if warm.stop(app.engine.place.state):
        app.out("stopped")
    else:
        app.err("no warm process")
