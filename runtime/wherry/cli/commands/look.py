"""What can be seen of one container: its processes, its ports, what it changed."""

from __future__ import annotations

from wherry.cli.app import App, verb
from wherry.cli.options import Values
from wherry.cli.table import aligned
from wherry.errors import Kind, WherryError

KINDS = {0: "C", 1: "A", 2: "D"}


@verb(
    "top",
    "CONTAINER [PS-OPTION...]",
    aliases="wherry container top, wherry top",
    examples="wherry top web\nwherry top web -eo pid,comm",
    interspersed=False,
)
def top(app: App, values: Values) -> None:
    """List the processes of a container; ps(1) options choose the columns."""
    found = app.engine.top(values["container"], values["ps_option"])
    app.out("\n".join(aligned([found["Titles"], *found["Processes"]], 20)))


@verb("diff", "CONTAINER", aliases="wherry container diff, wherry diff", examples="wherry diff web")
def diff(app: App, values: Values) -> None:
    """Show what a container changed in its filesystem: A added, C changed, D deleted."""
    for change in app.engine.diff(values["container"]):
        app.out(f"{KINDS[change['Kind']]} {change['Path']}")


@verb(
    "port",
    "CONTAINER [PRIVATE-PORT]",
    aliases="wherry container port, wherry port",
    examples="wherry port web\nwherry port web 80/tcp",
)
def port(app: App, values: Values) -> None:
    """List the published ports of a container, or where one of them is published."""
    found, one = app.engine.port(values["container"]), values["private_port"]
    if one is None:
        for inside in sorted(found, key=lambda text: (int(text.partition("/")[0]), text)):
            for host in found[inside] or ():
                app.out(f"{inside} -> {_at(host)}")
        return
    key = one if "/" in one else f"{one}/tcp"
    if not found.get(key):
        hint = f"published are {', '.join(sorted(found))}" if found else "publish ports with run -p"
        raise WherryError(Kind.NOT_FOUND, f"port {key} of {values['container']} is not published", hint=hint)
    for host in found[key]:
        app.out(_at(host))


def _at(host: dict[str, str]) -> str:
    address = host["HostIp"]
    return f"[{address}]:{host['HostPort']}" if ":" in address else f"{address}:{host['HostPort']}"
