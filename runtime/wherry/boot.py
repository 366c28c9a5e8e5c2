"""What the front starts cold, the program's name as first word. A `wherry` leaves a warm process for the next call."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the program that the front was called as."""
    gc.set_threshold(20_000)  # imports make no cycles worth looking for
    program = sys.argv.pop(1)
    sys.argv[0] = program
    front = os.environ.pop("WHERRY_FRONT", "")
    if program.partition("/")[0] == "wherry-cni":
        os._exit(_plugin(program))
    if program == "wherry-oci":
        from wherry.ocicli.main import entry

        entry()
    from wherry.cli.main import main as cli

    code = cli(sys.argv[1:])
    if front and "warm" not in sys.argv[1:2]:  # what ends it does not leave one
        _warm_up()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _plugin(name: str) -> int:
    """A CNI plugin, `wherry-cni/bridge`. Under any other name it is told as the specification wants it, section 5."""
    from wherry.net import launchers

    plugin = launchers.called(name)
    if plugin is not None:
        return plugin(sys.argv, os.environ, sys.stdin.buffer, sys.stdout.buffer)
    from wherry_cni import errors, results, skel

    hint = f"call it by a link named {', '.join(launchers.PLUGINS)}; wherry cni install DIR makes them"
    problem = errors.CniError(errors.BAD_ENV, f"{name} is no CNI plugin", hint)
    return skel.tell(sys.stdout.buffer, results.NEWEST, problem)


def _warm_up() -> None:
    """Start the warm process, unless it is unwanted or there."""
    if os.environ.get("WHERRY_WARM") == "off":
        return
    from wherry.engine.config import place

    state = place().state
    directory = f"{state}/warm"
    if not os.path.isdir(state) or _served(directory):  # no state: it was taken away, by `system reset`
        return
    words = [sys.executable, "-I", "-c", f"from wherry.warm.server import main; main({directory!r})"]
    env = {"PATH": os.defpath, "LANG": "C.UTF-8"}
    with suppress(OSError):
        os.posix_spawn(sys.executable, words, env, file_actions=_nothing_open(), setsid=True)


def _nothing_open() -> list[tuple[int, ...] | tuple[int, int, str, int, int]]:
    """For posix_spawn: who reads our output, or waits for a lock of ours, waits for us alone."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
    ]
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the one that listed them is closed
            if fd > 2 and os.get_inheritable(fd):
                actions.append((os.POSIX_SPAWN_CLOSE, fd))
    return actions


def _served(directory: str) -> bool:
    """Whether a warm process holds the lock; a socket may be there without one."""
    import fcntl

    try:
        fd = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
