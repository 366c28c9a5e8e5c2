"""`attach` and `start`: a container that is already there, in the foreground."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from wherry.cli import parse
from wherry.cli.app import App, each, verb
from wherry.cli.options import Flag, Values, one, switch
from wherry.cli.session import DETACH_KEYS, Wish, check_terminal, foreground
from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    from wherry.cli.notify import Passing

KEYS = one("--detach-keys", parse.detach_keys, "KEYS", "the keys that detach (default ctrl-p,ctrl-q)")
PROXY: Flag = switch("--sig-proxy", "send signals on to the process (without a terminal)", default=True)


def wish(app: App, ref: str, stdin: bool, values: Values) -> Wish:
    """Both outputs, the input if asked."""
    keys = values["detach_keys"]
    proxy = (lambda name: app.engine.kill(ref, name)) if values["sig_proxy"] else None
    return Wish(stdin, keys=DETACH_KEYS if keys is None else keys, proxy=proxy)


@verb(
    "attach",
    "CONTAINER",
    KEYS,
    switch("--no-stdin", "leave the container's input alone"),
    PROXY,
    aliases="wherry container attach, wherry attach",
    examples="wherry attach web            detach with ctrl-p ctrl-q\nwherry attach --no-stdin --sig-proxy=false web",
)
def attach(app: App, values: Values) -> int:
    """Attach to a running container's streams; its exit code is ours when it ends."""
    ref = values["container"]
    about = app.engine.inspect(ref, "container")
    stdin = bool(about["Config"].get("OpenStdin")) and not values["no_stdin"]
    check_terminal(app, stdin, bool(about["Config"].get("Tty")))
    return foreground(app, app.engine.attach(ref, stdin=stdin), wish(app, ref, stdin, values))


@verb(
    "start",
    "CONTAINER...",
    switch("-a --attach", "print the container's output, pass signals on, and end with its exit code"),
    KEYS,
    switch("-i --interactive", "attach the container's input too"),
    PROXY,
    aliases="wherry container start, wherry start",
    examples="wherry start web db\nwherry start -ai shell",
)
def start(app: App, values: Values) -> int:
    """Start stopped containers. In a unit of systemd (NOTIFY_SOCKET), --attach passes on what the container says by
    sd_notify(3)."""
    refs, interactive = values["container"], values["interactive"]
    if not (values["attach"] or interactive):
        return each(app, refs, lambda ref: app.engine.start(ref).close())
    if len(refs) > 1:
        raise WherryError(Kind.INVALID, "only one container can be attached to", hint="give one name with -a or -i")
    about = app.engine.inspect(refs[0], "container")
    stdin = interactive and bool(about["Config"].get("OpenStdin"))
    check_terminal(app, stdin, bool(about["Config"].get("Tty")))
    with ExitStack() as stack:
        notify = stack.enter_context(_passing(app)).offer if app.env.get("NOTIFY_SOCKET") else None
        running = app.engine.start(refs[0], attach=True, interactive=stdin, notify=notify)
        return foreground(app, running, wish(app, refs[0], stdin, values))


def _passing(app: App) -> Passing:
    from wherry.cli.notify import Passing

    return Passing(app.env)
