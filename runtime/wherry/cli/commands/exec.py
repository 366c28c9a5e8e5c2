"""`exec`: a process in a running container."""

from __future__ import annotations

from wherry.cli import parse
from wherry.cli.app import App, verb
from wherry.cli.options import Surroundings, Values, environment, many, one, switch, text
from wherry.cli.session import DETACH_KEYS, Wish, check_terminal, foreground

FLAGS = (
    switch("-d --detach", "run in the background"),
    one("--detach-keys", parse.detach_keys, "KEYS", "the keys that detach (default ctrl-p,ctrl-q)"),
    many("-e --env", parse.env_name, "KEY[=VALUE]", "set an environment variable"),
    many("--env-file", text, "FILE", "read environment variables from a file"),
    switch("-i --interactive", "keep standard input open"),
    switch("--privileged", "give the process all capabilities"),
    switch("-t --tty", "give the process a terminal"),
    one("-u --user", text, "USER[:GROUP]", "user and group, by name or number"),
    one("-w --workdir", parse.workdir, "DIR", "working directory"),
)


@verb(
    "exec",
    "CONTAINER COMMAND [ARG...]",
    *FLAGS,
    aliases="wherry container exec, wherry exec",
    examples="wherry exec -it web sh\nwherry exec -e DEBUG=1 -w /srv web ./task\necho hello | wherry exec -i web cat",
    interspersed=False,
)
def exec_(app: App, values: Values) -> int:
    """Run a command in a running container; its exit code is ours (126: not executable, 127: not found)."""
    from wherry.engine.values import ExecOptions

    around = Surroundings(app.env, app.cwd, app.read_file)
    options = ExecOptions(
        command=(values["command"], *values["arg"]),
        interactive=values["interactive"],
        tty=values["tty"],
        detach=values["detach"],
        env=tuple(environment(values, around)),
        workdir=values["workdir"] or "",
        user=values["user"] or "",
        privileged=values["privileged"],
    )
    if not options.detach:
        check_terminal(app, options.interactive, options.tty)
    running = app.engine.exec(values["container"], options)
    if options.detach:
        running.close()
        return 0
    keys = values["detach_keys"]
    return foreground(app, running, Wish(options.interactive, keys=DETACH_KEYS if keys is None else keys))
