"""The prune verbs: what would go, a question, what went."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.cli import human
from wherry.cli.app import App, is_terminal, verb
from wherry.cli.options import Values, many, switch, text
from wherry.cli.table import filters
from wherry.errors import Kind, WherryError
from wherry.model import Json

FORCE = switch("-f --force", "do not ask")
FILTER = many("--filter", text, "KEY=VALUE", "remove only what matches")  # -f is --force here
ALL = switch("-a --all", "remove all that is unused, not only what has no name")
KNOWN = ("label", "until")
TITLES = {
    "ContainersDeleted": "Deleted Containers:",
    "NetworksDeleted": "Deleted Networks:",
    "VolumesDeleted": "Deleted Volumes:",
    "ImagesDeleted": "Deleted Images:",
    "CachesDeleted": "Deleted build cache objects:",
}


def sure(app: App, values: Values, what: Sequence[str]) -> bool:
    """docker's question. Without a terminal to ask on, -f must be given."""
    if values["force"]:
        return True
    lines = what if len(what) == 1 else ["", *(f"  - {line}" for line in what)]
    app.err("WARNING! This will remove " + "\n".join(lines) + ".")
    if not is_terminal(app.stdio.stdin):
        raise WherryError(Kind.INVALID, "nobody can be asked: the input is no terminal", hint="give -f to go ahead")
    app.stdio.stderr.write("Are you sure you want to continue? [y/N] ")
    app.stdio.stderr.flush()
    return app.stdio.stdin.readline().strip().lower() in ("y", "yes")


def report(app: App, done: Json) -> None:
    """What went, and the space that it gave back."""
    for key, title in TITLES.items():
        items = done.get(key) or []
        if items:
            app.out(title)
            for item in items:
                app.out(
                    "\n".join(f"{k.lower()}: {v}" for k, v in item.items()) if isinstance(item, dict) else str(item)
                )
            app.out("")
    if "SpaceReclaimed" in done:
        app.out(f"Total reclaimed space: {human.size(done['SpaceReclaimed'])}")


@verb("prune", "", FILTER, FORCE, aliases="wherry container prune", examples="wherry container prune -f")
def container(app: App, values: Values) -> None:
    """Remove all stopped containers. Filters: label, until."""
    wanted = filters(values, KNOWN)
    if sure(app, values, ["all stopped containers"]):
        report(app, app.engine.container_prune(wanted))


@verb("prune", "", ALL, FILTER, FORCE, aliases="wherry image prune", examples="wherry image prune -a -f")
def image(app: App, values: Values) -> None:
    """Remove images without a name, or with -a all that no container uses. Filters: label, until."""
    wanted = filters(values, KNOWN)
    what = "all images that no container uses" if values["all"] else "all images without a name"
    if sure(app, values, [what]):
        report(app, app.engine.image_prune(all=values["all"], filters=wanted))


@verb("prune", "", ALL, FILTER, FORCE, aliases="wherry volume prune", examples="wherry volume prune -a -f")
def volume(app: App, values: Values) -> None:
    """Remove anonymous volumes, or with -a all that no container uses. Filters: label."""
    wanted = filters(values, ("label",))
    what = "all volumes that no container uses" if values["all"] else "all anonymous volumes that no container uses"
    if sure(app, values, [what]):
        report(app, app.engine.volume_prune(all=values["all"], filters=wanted))


@verb("prune", "", FILTER, FORCE, aliases="wherry network prune", examples="wherry network prune -f")
def network(app: App, values: Values) -> None:
    """Remove the networks that no container uses. Filters: label, until."""
    wanted = filters(values, KNOWN)
    if sure(app, values, ["all networks that no container uses"]):
        report(app, app.engine.network_prune(wanted))


@verb(
    "prune",
    "",
    ALL,
    FILTER,
    FORCE,
    switch("--volumes", "anonymous volumes too"),
    aliases="wherry system prune",
    examples="wherry system prune -af --volumes",
)
def system(app: App, values: Values) -> None:
    """Remove stopped containers and the networks and images that nothing uses. Filters: label, until."""
    wanted = filters(values, KNOWN)
    what = ["all stopped containers", "all networks that no container uses"]
    what += ["all anonymous volumes that no container uses"] if values["volumes"] else []
    what.append("all images that no container uses" if values["all"] else "all images without a name")
    what.append("all build cache" if values["all"] else "all dangling build cache")
    if sure(app, values, what):
        report(app, app.engine.system_prune(all=values["all"], volumes=values["volumes"], filters=wanted))


@verb("reset", "", FORCE, aliases="wherry system reset", examples="wherry system reset -f")
def reset(app: App, values: Values) -> None:
    """Remove everything of this wherry: containers (running ones too), images, volumes, networks, bridges, rules.

    Another wherry (its own --root and --state) is not concerned. The settings stay.
    """
    what = ["all containers, running ones too", "all images", "all volumes with what is in them"]
    what += ["all networks, their bridges and firewall rules", f"all else below {app.engine.place.root}"]
    if sure(app, values, what):
        report(app, app.engine.system_reset())
