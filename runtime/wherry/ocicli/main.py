"""The entry of `wherry-oci`: global options, the verb, and failures as callers expect them.

Decides only that. `main` may be called many times in one process: nothing is kept between two calls.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from wherry.errors import Kind, WherryError

from . import flags
from .verbs import GLOBAL, MODULES, VERBS

if TYPE_CHECKING:
    from .flags import Values, Verb
    from .world import Log, World

__all__ = ["entry", "main"]

PROGRAM, FAILED, EXEC_FAILED = "wherry-oci", 1, 255  # runc's codes


def entry() -> NoReturn:
    """The console script. Leaves at once: nothing here needs taking apart."""
    gc.disable()
    _open_streams()
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = code or FAILED
    os._exit(code)


def _open_streams() -> None:
    """Streams that the caller closed are /dev/null: else a file of ours would take their place in the container."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process


def main(argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run one command line and return its exit code."""
    env = os.environ if env is None else env
    log: Log | None = None
    verb = ""
    try:
        given, rest = flags.read(GLOBAL, argv, stop_after=0)
        if given["version"] or given["help"] or not rest:
            return _about(given)
        verb = rest[0]
        world = _world(given, env)
        log = world.log
        return _call(world, _find(verb), rest[1:])
    except WherryError as error:
        return _fail(log, verb, error.message + (f" ({error.hint})" if error.hint else ""), debug="--debug" in argv)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the edge: a bug still gets a sentence
        return _fail(log, verb, f"{type(error).__name__}: {error}", debug="--debug" in argv)


def _about(given: Values) -> int:
    if given["version"]:
        from importlib.metadata import version

        sys.stdout.write(f"{PROGRAM} version {version('wherry')}\nspec: 1.3.0\n")
    else:
        text = "Runs OCI bundles: the command line of runc and crun."
        sys.stdout.write(flags.usage(PROGRAM, "[OPTIONS] VERB [...]", text, GLOBAL, VERBS) + "\n")
    return 0


def _world(given: Values, env: Mapping[str, str]) -> World:
    from wherry.engine.config import place

    from .world import Log, World

    where = place(env=env)
    level = given["log_level"] or ("debug" if given["debug"] else "warning")
    root = os.path.abspath(given["root"] or f"{where.state}/oci")
    rootless = given["rootless"] or "auto"
    if rootless not in ("auto", "true", "false"):
        raise WherryError(Kind.INVALID, f'--rootless "{rootless}": not true, false or auto')
    driver = given["cgroup_manager"] or ("systemd" if given["systemd_cgroup"] else "cgroupfs")
    if driver not in ("cgroupfs", "systemd", "disabled"):
        raise WherryError(Kind.INVALID, f'--cgroup-manager "{driver}": not cgroupfs, systemd or disabled')
    return World(
        root, where.state, f"{where.root}/cache", where.config, driver,
        os.geteuid() != 0 if rootless == "auto" else rootless == "true",
        Log(given["log"], given["log_format"], level), env, given["debug"],
    )  # fmt: skip


def _find(name: str) -> Verb:
    for verb in VERBS:
        if verb.name == name:
            return verb
    raise WherryError(Kind.INVALID, f'no verb "{name}"', hint=f"there are: {' '.join(verb.name for verb in VERBS)}")


def _call(world: World, verb: Verb, argv: Sequence[str]) -> int:
    if argv and argv[0] in ("--help", "-help", "-h"):
        text = f"{verb.name} {'[OPTIONS] ' if verb.flags else ''}{verb.words}"
        sys.stdout.write(flags.usage(PROGRAM, text, verb.help, verb.flags) + "\n")
        return 0
    values, words = flags.read(verb.flags, argv, stop_after=1 if verb.command else None)
    if len(words) < verb.least or -1 < verb.most < len(words):
        raise WherryError(Kind.INVALID, f"{verb.name} takes: {verb.words or 'no argument'}")
    module = importlib.import_module(f"{__package__}.{MODULES[verb.name]}")
    code: int | None = getattr(module, f"do_{verb.name}")(world, words, values)
    return code or 0


def _fail(log: Log | None, verb: str, text: str, *, debug: bool) -> int:
    """The sentence goes to the log that the caller reads, and to people on standard error."""
    if debug:
        import traceback

        traceback.print_exc()
    if log is not None and log.path:
        log.write("error", text)
    sys.stderr.write(f"{PROGRAM}: {text}\n")
    return EXEC_FAILED if verb == "exec" else FAILED


if __name__ == "__main__":
    entry()
