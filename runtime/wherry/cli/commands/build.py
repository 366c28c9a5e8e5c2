"""`build`: the command line of docker's, what is read of the caller's files, and how it looks while it goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wherry.cli import human, parse
from wherry.cli.app import App, fd_of, is_terminal, verb
from wherry.cli.commands.prune import ALL, FILTER, FORCE, sure
from wherry.cli.options import Flag, Surroundings, Values, absolute, labels, many, one, switch, text
from wherry.cli.table import filters
from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    from wherry.cli.buildview import Silent
    from wherry.engine.build.values import BuildOptions, Secret, StepFailed

PROGRESS = ("auto", "plain", "quiet", "rawjson", "tty")
EXAMPLES = """
wherry build -t app .                             the Dockerfile of this directory
wherry build -t app -f build/Dockerfile --build-arg VERSION=2 .
wherry build --target test --progress plain .
wherry build --secret id=token,src=token.txt .    a file that only RUN --mount=type=secret sees
tar c . | wherry build -t app -                   the context on standard input
SOURCE_DATE_EPOCH=0 wherry build -t app .         the same image every time
"""


def tag(flag: str, value: str) -> str:
    """A name of the image to be: checked before anything is built."""
    if "@" in value:
        raise parse.bad(flag, value, "it has a digest", "NAME[:TAG]")
    return value


def secret(flag: str, value: str) -> dict[str, str]:
    """id=NAME[,src=FILE|,env=VARIABLE]."""
    given = {}
    for field in value.split(","):
        key, equals, rest = field.partition("=")
        key = {"source": "src"}.get(key, key)
        if not equals or key not in ("id", "src", "env", "type"):
            raise parse.bad(flag, value, f"unexpected field {field!r}", "id=NAME[,src=FILE] or id=NAME,env=VARIABLE")
        given[key] = rest
    if not given.get("id"):
        raise parse.bad(flag, value, "it has no id", "id=NAME[,src=FILE] or id=NAME,env=VARIABLE")
    return given


def output(flag: str, value: str) -> tuple[str, str]:
    """DIR, - (a tar on standard output), type=local,dest=DIR or type=tar,dest=FILE: the kind, and where."""
    fields = dict(field.partition("=")[::2] for field in value.split(","))
    if "type" not in fields:
        fields = {"type": "tar" if value == "-" else "local", "dest": value}
    kind, place = fields["type"], fields.get("dest", "-" if fields["type"] == "tar" else "")
    if kind not in ("local", "tar") or not place:
        raise parse.bad(flag, value, "unknown output", "DIR, - or type=tar,dest=FILE; for an image: build, then save")
    return kind, place


FLAGS: tuple[Flag, ...] = (
    many("--add-host", parse.add_host, "HOST:IP", "add a line to the hosts file of RUN"),
    many("--build-arg", text, "NAME[=VALUE]", "the value of an ARG; without =, the environment's"),
    many("--cache-from", text, "SOURCE", "taken and not used: what was built here before is found by itself"),
    one("-f --file", text, "FILE", "the Dockerfile (default PATH/Dockerfile; - is standard input)"),
    one("--iidfile", text, "FILE", "write the image's id to a file"),
    many("--label", parse.key_value, "KEY=VALUE", "set a label of the image"),
    switch("--load", "accepted for buildx's sake: an image is always stored here"),
    one("--network", parse.choice("default", "none", "host"), "MODE", "network of RUN: default, none or host"),
    switch("--no-cache", "do every step again"),
    one("-o --output", output, "DIR", "the root file system instead of an image: DIR, - (tar), type=tar,dest=FILE"),
    one("--platform", parse.platform, "OS/ARCH", "the platform to build for"),
    one("--progress", parse.choice(*PROGRESS), "TYPE", "auto, plain, tty, quiet or rawjson"),
    switch("--pull", "ask the registry for newer base images"),
    switch("-q --quiet", "print the image's id only"),
    many("--secret", secret, "id=NAME,src=FILE", "a secret for RUN --mount=type=secret (or id=NAME,env=VARIABLE)"),
    one("--shm-size", parse.size, "SIZE", "size of /dev/shm of RUN"),
    many("-t --tag", tag, "NAME[:TAG]", "a name of the image; repeatable"),
    one("--target", text, "STAGE", "the stage to build"),
    many("--ulimit", parse.ulimit, "NAME=SOFT[:HARD]", "set a resource limit of RUN"),
)


@verb("build", "PATH", *FLAGS, aliases="wherry image build, wherry build", examples=EXAMPLES)
def build(app: App, values: Values) -> int:
    """Build an image from a Dockerfile. PATH is the context: a directory, a tar file, or - (a tar or a Dockerfile)."""
    from wherry.engine.build.values import StepFailed

    for source in values["cache_from"]:
        app.warn(f"--cache-from {source} is not used: steps are found by their contents in this wherry's own cache")
    quiet = values["quiet"] or values["progress"] == "quiet"
    before = signal.signal(signal.SIGTERM, _interrupted)  # as ctrl-c: the steps' containers go too
    view = _view(app, values["progress"] or "auto", quiet)
    try:
        with view, _tar(app, values) as tar:
            built = app.engine.build(options_of(app, values, tar), view)
    except StepFailed as error:
        _show(app, error)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if values["iidfile"] and built.id:
        _write(absolute(values["iidfile"], app.cwd), built.id)
    if quiet and built.id:
        app.out(built.id)
    return 0


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _view(app: App, kind: str, quiet: bool) -> Silent:
    from wherry.cli import buildview

    if quiet:
        return buildview.Silent()
    if kind == "rawjson":
        return buildview.Raw(app.stdio.stderr)
    if kind == "tty" or (kind == "auto" and is_terminal(app.stdio.stderr)):
        return buildview.Live(app.stdio.stderr)
    return buildview.Plain(app.stdio.stderr)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot write {path}: {error.strerror}") from error


# ---- options


def options_of(app: App, values: Values, tar: int = -1) -> BuildOptions:
    """The typed wish that the command line stands for."""
    from wherry.engine.build.values import BuildOptions

    path = _context(app, values["path"])
    file = values["file"] or ""
    args = dict(_arguments(app, values["build_arg"]))
    kind, place = values["output"] or ("", "")
    return BuildOptions(
        context=path,
        file=file if file in ("", "-") else _dockerfile(app, file, path),
        stdin=getattr(app.stdio.stdin, "buffer", None),
        tags=tuple(values["tag"]),
        args=args,
        target=values["target"] or "",
        no_cache=values["no_cache"],
        pull=values["pull"],
        platform=values["platform"] or "",
        secrets=tuple(_secrets(app, values["secret"])),
        labels=labels(values, Surroundings(app.env, app.cwd, app.read_file)),
        network=values["network"] or "default",
        add_host=tuple(values["add_host"]),
        shm_size=values["shm_size"],
        ulimits=tuple(values["ulimit"]),
        epoch=_epoch(args.get("SOURCE_DATE_EPOCH", app.env.get("SOURCE_DATE_EPOCH", ""))),
        output=absolute(place, app.cwd) if kind == "local" else "",
        tar=tar,
    )


def _context(app: App, path: str) -> str:
    if path.startswith(("http://", "https://", "git@", "git://", "github.com/", "ssh://")):
        raise WherryError(Kind.UNSUPPORTED, f"a build context from the network is not supported: {path}",
                          hint="fetch it first: curl URL | wherry build -, or git clone")  # fmt: skip
    return path if path == "-" else absolute(path, app.cwd)


def _dockerfile(app: App, file: str, context: str) -> str:
    """As docker: of the current directory; of the context where it is only there."""
    here = absolute(file, app.cwd)
    there = os.path.join(context, file)
    return there if not os.path.exists(here) and context != "-" and os.path.exists(there) else here


def _arguments(app: App, given: Sequence[str]) -> Iterator[tuple[str, str]]:
    for item in given:
        name, equals, value = item.partition("=")
        if equals or name in app.env:
            yield name, value if equals else app.env[name]


def _secrets(app: App, given: Sequence[dict[str, str]]) -> Iterator[Secret]:
    from wherry.engine.build.values import Secret

    for fields in given:
        name = fields["id"]
        variable = fields.get("env", "" if "src" in fields else name)
        if variable and variable in app.env:
            yield Secret(name, value=os.fsencode(app.env[variable]))
        elif "env" in fields:
            raise WherryError(Kind.INVALID, f"secret {name}: the environment has no {variable}")
        else:
            yield Secret(name, absolute(fields.get("src", name), app.cwd))


def _epoch(value: str) -> int | None:
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 11:
        raise WherryError(Kind.INVALID, f"invalid SOURCE_DATE_EPOCH: {value}", hint="seconds since 1970, such as 0")
    return int(value)


@contextlib.contextmanager
def _tar(app: App, values: Values) -> Iterator[int]:
    """Where a tar goes; -1 where none is asked."""
    kind, place = values["output"] or ("", "")
    if kind != "tar":
        yield -1
    elif place == "-":
        if is_terminal(app.stdio.stdout):
            raise WherryError(Kind.INVALID, "a tar is not written to a terminal", hint="send it to a file or a pipe")
        app.stdio.stdout.flush()
        yield fd_of(app.stdio.stdout)
    else:
        with open(absolute(place, app.cwd), "wb") as file:
            yield file.fileno()


# ---- a failure


def _show(app: App, error: StepFailed) -> None:
    """BuildKit's way: the end of the step's output, and the lines of the Dockerfile around it."""
    if error.tail:
        app.err(f"------\n > {error.title}:\n{error.tail.decode('utf-8', 'replace').rstrip()}\n------")
    if error.lines:
        app.err(f"{error.file}:{error.first}\n--------------------")
        for number in range(max(error.first - 2, 1), min(error.last + 2, len(error.lines)) + 1):
            mark = ">>>" if error.first <= number <= error.last else "   "
            app.err(f"{number:4} | {mark} {error.lines[number - 1]}")
        app.err("--------------------")


# ---- the cache


@verb("prune", "", ALL, FILTER, FORCE, aliases="wherry builder prune", examples="wherry builder prune -a -f")
def prune(app: App, values: Values) -> None:
    """Forget what builds remember; with -a also what images share. Filters: id, type, until."""
    wanted = filters(values, ("id", "type", "until"))
    what = "all build cache" if values["all"] else "all dangling build cache"
    if sure(app, values, [what]):
        done = app.engine.builder_prune(all=values["all"], filters=wanted)
        for cache in done["CachesDeleted"]:
            app.out(cache)
        app.out(f"Total:\t{human.size(done['SpaceReclaimed'])}")
