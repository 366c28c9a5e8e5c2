"""What the front starts cold, with the program's name as first word. A `wherry` leaves a warm process for the next call."""

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
    code = _run(program)
    if program == "wherry" and front:
        _warm_up()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(program: str) -> int:
    if program == "wherry-oci":
        from wherry.ocicli.main import main as oci

        return oci(sys.argv[1:])
    from wherry.cli.main import main as cli

    return cli(sys.argv[1:])


def _warm_up() -> None:
    """Start the warm process, unless it is unwanted or there."""
    if os.environ.get("WHERRY_WARM") == "off":
        return
    from wherry.engine.config import place

    directory = f"{place().state}/warm"
    if os.path.exists(f"{directory}/socket"):
        return
    words = [sys.executable, "-I", "-c", f"from wherry.warm.server import main; main({directory!r})"]
    with suppress(OSError):
        os.posix_spawn(sys.executable, words, {"PATH": os.defpath, "LANG": "C.UTF-8"})
