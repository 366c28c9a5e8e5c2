"""`run` and `create`: flags to RunOptions, the plan for --explain, the container in the foreground or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wherry.cli.app import App, verb
from wherry.cli.options import ATTACHED_FLAGS, RUN_FLAGS, Surroundings, Values, build

if TYPE_CHECKING:
    from wherry.cli.session import Wish
    from wherry.model import RunOptions

EXPLAIN = ATTACHED_FLAGS[-1]

RUN_EXAMPLES = """
wherry run --rm -it alpine sh                     a shell in a new container, gone when it ends
wherry run -d --name web -p 8080:80 nginx         a server in the background
wherry run --rm -v "$PWD":/src:ro -w /src alpine ls
wherry run --rm -m 256m --cpus 1.5 --read-only --tmpfs /tmp alpine true
wherry run --explain alpine true                  what would be done, step by step
"""


def options_of(app: App, values: Values) -> RunOptions:
    """The typed wish that the command line stands for."""
    around = Surroundings(app.env, app.cwd, app.read_file)
    command = () if values["command"] is None else (values["command"], *values["arg"])
    return build(values["image"], command, values, around)


def explain(app: App, options: RunOptions) -> int:
    """Print what would be done, section by section."""
    for number, section in enumerate(app.engine.explain(options)):
        app.out(("\n" if number else "") + section.title)
        for line in section.lines:
            app.out(f"  {line}")
    return 0


@verb(
    "run",
    "IMAGE [COMMAND] [ARG...]",
    *sorted((*RUN_FLAGS, *ATTACHED_FLAGS), key=lambda flag: flag.key),
    aliases="wherry container run, wherry run",
    examples=RUN_EXAMPLES,
    failure=125,
    interspersed=False,
)
def run(app: App, values: Values) -> int:
    """Create and start a container from an image.

    Output and exit code are the container's; 125: wherry failed, 126: the command cannot be executed, 127: it was not
    found, 128+N: it died of signal N. With -d the id is printed and the container runs on.
    """
    options = options_of(app, values)
    if values["explain"]:
        return explain(app, options)
    if options.detach:
        running = app.engine.run(options, app.progress(values["quiet"]))
        app.out(running.id)
        running.close()
        return 0
    from wherry.cli import session  # what stays in the foreground; a detached start has no use for it

    session.check_terminal(app, options.interactive, options.tty)
    running = app.engine.run(options, app.progress(values["quiet"]))
    return session.foreground(app, running, wish_of(app, running.id, options, values))


def wish_of(app: App, container: str, options: RunOptions, values: Values) -> Wish:
    """Which streams are ours: those of --attach, else the outputs, and the input with -i."""
    from wherry.cli.session import DETACH_KEYS, Wish

    chosen = set(options.attach) or {"stdout", "stderr"}
    stdin = "stdin" in chosen if options.attach else options.interactive
    keys = values["detach_keys"]
    proxy = (lambda name: app.engine.kill(container, name)) if values["sig_proxy"] else None
    return Wish(stdin, frozenset(chosen - {"stdin"}), DETACH_KEYS if keys is None else keys, proxy)


@verb(
    "create",
    "IMAGE [COMMAND] [ARG...]",
    *sorted((*RUN_FLAGS, EXPLAIN), key=lambda flag: flag.key),
    aliases="wherry container create, wherry create",
    examples='wherry create --name job -v data:/data alpine sh -c "echo done > /data/x"\nwherry start -a job',
    interspersed=False,
)
def create(app: App, values: Values) -> int:
    """Create a container without starting it, and print its id."""
    options = options_of(app, values)
    if values["explain"]:
        return explain(app, options)
    app.out(app.engine.create(options, app.progress(values["quiet"])))
    return 0
