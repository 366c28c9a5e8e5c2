"""The short verbs of a container's life: they print the name of what they have done."""

from __future__ import annotations

from wherry.cli import parse
from wherry.cli.app import App, each, verb
from wherry.cli.options import LIMITS, RUN_FLAGS, Flag, Values, limits, one, switch
from wherry.errors import Kind, WherryError

SIGNAL = one("-s --signal", parse.signal_name, "SIGNAL", "the signal to send")
GRACE = one("-t --timeout --time", parse.integer(-1, 2**31 - 1), "SECONDS", "grace before SIGKILL; -1: for ever")


def grace(values: Values) -> int | None:
    """The seconds of grace that were asked for."""
    found = values["timeout"]
    return None if found is None else int(found)


@verb(
    "stop",
    "CONTAINER...",
    SIGNAL,
    GRACE,
    aliases="wherry container stop, wherry stop",
    examples="wherry stop web\nwherry stop -t 30 db",
)
def stop(app: App, values: Values) -> int:
    """Stop containers: the stop signal, some seconds of grace, then SIGKILL."""
    seconds, signal = grace(values), values["signal"] or ""
    return each(app, values["container"], lambda ref: app.engine.stop(ref, seconds, signal))


@verb(
    "restart",
    "CONTAINER...",
    SIGNAL,
    GRACE,
    aliases="wherry container restart, wherry restart",
    examples="wherry restart -t 2 web",
)
def restart(app: App, values: Values) -> int:
    """Stop containers if they run, and start them."""
    seconds, signal = grace(values), values["signal"] or ""
    return each(app, values["container"], lambda ref: app.engine.restart(ref, seconds, signal))


@verb(
    "kill",
    "CONTAINER...",
    one("-s --signal", parse.signal_name, "SIGNAL", "the signal to send (KILL)"),
    aliases="wherry container kill, wherry kill",
    examples="wherry kill web\nwherry kill -s HUP web",
)
def kill(app: App, values: Values) -> int:
    """Send a signal to the first process of containers."""
    return each(app, values["container"], lambda ref: app.engine.kill(ref, values["signal"] or "KILL"))


@verb("pause", "CONTAINER...", aliases="wherry container pause, wherry pause", examples="wherry pause web")
def pause(app: App, values: Values) -> int:
    """Freeze every process of containers."""
    return each(app, values["container"], app.engine.pause)


@verb("unpause", "CONTAINER...", aliases="wherry container unpause, wherry unpause", examples="wherry unpause web")
def unpause(app: App, values: Values) -> int:
    """Thaw paused containers."""
    return each(app, values["container"], app.engine.unpause)


@verb(
    "rm",
    "CONTAINER...",
    switch("-f --force", "kill running containers; a missing one is no failure"),
    switch("-v --volumes", "remove the anonymous volumes too"),
    aliases="wherry container rm, wherry container remove, wherry rm",
    examples="wherry rm -fv web\nwherry rm $(wherry ps -aq)",
)
def rm(app: App, values: Values) -> int:
    """Remove containers."""
    force = values["force"]
    code = 0
    for ref in values["container"]:
        try:
            app.engine.remove(ref, force=force, volumes=values["volumes"])
        except WherryError as error:
            app.fail(error)
            code = code if force and error.kind is Kind.NOT_FOUND else 1
        else:
            app.out(ref)
    return code


@verb(
    "rename",
    "CONTAINER NEW-NAME",
    aliases="wherry container rename, wherry rename",
    examples="wherry rename web old-web",
)
def rename(app: App, values: Values) -> None:
    """Rename a container."""
    app.engine.rename(values["container"], parse.name("NEW-NAME", values["new_name"]))


CONDITION = one("--condition", parse.choice("not-running", "next-exit", "removed"), "WHEN", "not-running, next-exit or removed")  # noqa: E501  # fmt: skip


@verb("wait", "CONTAINER...", CONDITION, aliases="wherry container wait, wherry wait", examples="wherry wait job")
def wait(app: App, values: Values) -> int:
    """Wait for containers to end, one after another, and print their exit codes."""
    condition = values["condition"] or "not-running"
    refs = values["container"]
    return each(app, refs, lambda ref: app.out(str(app.engine.wait(ref, condition))), show=False)


UPDATE: tuple[Flag, ...] = tuple(flag for flag in RUN_FLAGS if flag.key in LIMITS or flag.key == "restart")


@verb(
    "update",
    "CONTAINER...",
    *UPDATE,
    aliases="wherry container update, wherry update",
    examples="wherry update -m 512m --cpus 2 web\nwherry update --restart unless-stopped web",
)
def update(app: App, values: Values) -> int:
    """Change the limits and the restart policy of containers, running ones at once."""
    wanted, policy = limits(values), values["restart"]
    if policy is None and all(values[key] is None for key in LIMITS):
        raise WherryError(Kind.INVALID, "nothing to change", hint="give at least one flag, see wherry update --help")

    def change(ref: str) -> None:
        for warning in app.engine.update(ref, wanted, policy):
            app.warn(warning)

    return each(app, values["container"], change)
