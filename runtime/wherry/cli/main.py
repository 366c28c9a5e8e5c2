"""The entry of `wherry`: the tree of commands as a table, and failures to sentences and exit codes.

Decides only that. `main` may be called many times in one process: nothing is kept between two calls, and nothing heavy
is imported before the command is known. `internal` (what a container's monitor runs) never needs click at all.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import click

    from .app import App, Stdio
    from .clicks import Lazy

INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT)
GARBAGE = 20_000  # allocations between two collections: imports make no cycles worth 8 ms of looking
PLACES = ("--root", "--state", "--config")
INTERNAL = {"cleanup": "finish", "health": "health", "network": "keep"}  # verb: the engine's method


def entry() -> NoReturn:
    """The console script. Leaves at once: taking 150 modules apart costs a tenth of a short command."""
    gc.set_threshold(GARBAGE)
    code = main(sys.argv[1:])
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


Later = Callable[[Callable[[], None]], object]


def main(
    argv: Sequence[str], env: Mapping[str, str] | None = None, stdio: Stdio | None = None, later: Later | None = None
) -> int:
    """Run one command line and return its exit code. `later` takes what can be done after the answer."""
    env = os.environ if env is None else env
    inner = internal_verb(argv)
    if inner is not None:
        return internal(*inner, env)
    from .app import App, Stdio

    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        cwd = "/"
    app = App(env, stdio or Stdio.process(), cwd, answer_first=later is not None)
    code = guarded(app, list(argv))
    rest = app.behind()
    if later is not None and rest is not None:
        later(rest)
    return code


# ---- what monitors call ----


def internal_verb(argv: Sequence[str]) -> tuple[dict[str, str], str, str] | None:
    """The places, verb and id of `[--root R] [--state S] [--config C] internal VERB ID`; else None."""
    rest, places = list(argv), {}
    while rest and rest[0].partition("=")[0] in PLACES:
        name, eq, value = rest.pop(0).partition("=")
        if not eq and not rest:
            return None
        places[name[2:]] = value if eq else rest.pop(0)
    if len(rest) == 3 and rest[0] == "internal" and rest[1] in INTERNAL:
        return places, rest[1], rest[2]
    return None


def internal(places: dict[str, str], what: str, ref: str, env: Mapping[str, str]) -> int:
    """Settle the end of a container, run its health check, be a network's keeper."""
    from wherry.engine.config import place
    from wherry.engine.engine import Engine
    from wherry.errors import WherryError

    engine = Engine(place(env=env, **places))
    try:
        getattr(engine, INTERNAL[what])(ref)
    except WherryError as error:
        sys.stderr.write(f"wherry: {error.message}\n")
        return 1
    finally:
        engine.close()
    return 0


# ---- what people call ----


def guarded(app: App, argv: list[str]) -> int:
    """Run the command; every failure becomes a sentence and an exit code, nothing becomes a traceback."""
    from wherry.errors import WherryError

    try:
        code = dispatch(app, argv)
        app.stdio.stdout.flush()
        return code
    except WherryError as error:
        if app.debug:
            _traceback(app)
        app.fail(error)
        return app.failure if error.code is None else error.code
    except BrokenPipeError:
        _silence(app)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # the edge: a bug still gets a sentence
        return unexpected(app, error)


def unexpected(app: App, error: Exception) -> int:
    """A failure that nobody foresaw."""
    try:
        app.stdio.stdout.flush()
    except OSError:  # it may be what failed; what it holds would fail again before each sentence
        _silence(app)
    if app.debug:
        _traceback(app)
    if isinstance(error, OSError) and error.strerror:
        app.err(f"wherry: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
    else:
        app.err(f"wherry: internal error: {type(error).__name__}: {error}")
    if isinstance(error, OSError) and error.errno in FULL:
        app.err(f"  hint: {app.engine.place.root}, or what the output goes to, is full; df tells which")
    elif not app.debug:
        app.err("  hint: this is a bug of wherry; the same command with --debug before it shows where")
    return app.failure


def _traceback(app: App) -> None:
    import traceback

    app.err(traceback.format_exc().rstrip())


def _silence(app: App) -> None:
    """Point standard output at nothing, so that the flush at the exit cannot fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, app.stdio.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


def dispatch(app: App, argv: list[str]) -> int:
    """Find the command and run it: the plain line by the tables, any other by click."""
    if "_WHERRY_COMPLETE" in app.env:
        from .completion import answer

        return answer(app, root())
    from . import quick

    line = quick.read(argv)
    return line.run(app) if line is not None else _by_click(app, argv)


def _by_click(app: App, argv: list[str]) -> int:
    import click

    try:
        with root().make_context("wherry", argv, obj=app) as ctx:
            return int(ctx.command.invoke(ctx) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.UsageError as error:
        return misused(app, error)


def misused(app: App, error: click.UsageError) -> int:
    """Wrong usage: click's sentence, and where to read; a bare group shows its help."""
    import click

    from wherry.errors import Kind, WherryError

    from .app import USAGE_ERROR

    no_args = getattr(click.exceptions, "NoArgsIsHelpError", None)
    if no_args is not None and isinstance(error, no_args) and error.ctx is not None:
        app.out(error.ctx.get_help())
        return 0
    where = error.ctx.command_path if error.ctx is not None else "wherry"
    message = error.format_message().rstrip(".")
    app.fail(WherryError(Kind.INVALID, message[:1].lower() + message[1:], hint=f"see {where} --help"))
    return USAGE_ERROR


def root() -> Lazy:
    """The tree of commands."""
    from .tree import ROOT

    return ROOT
