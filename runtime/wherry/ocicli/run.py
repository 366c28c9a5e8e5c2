"""`run`: create and start at once, then stay until the end and delete; or leave it with --detach."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from wherry.errors import WherryError

from . import create, life
from .world import World

if TYPE_CHECKING:
    from wherry.container.launch import Launched
    from wherry.container.state import ContainerDir

    from .flags import Values

__all__ = ["do_run", "end"]


def do_run(world: World, words: Sequence[str], values: Values) -> int:
    """The process's exit code; 0 with --detach."""
    asked = create.wish(world, values)._replace(waits=False)
    if values["detach"]:
        _launch(world, words[0], asked)
        return 0
    from . import foreground

    with ExitStack() as held:
        front = foreground.Foreground(held)
        console = foreground.Console(held)
        if not asked.console_socket:
            asked = asked._replace(console=console.theirs.fileno())
        folder, launched = _launch(world, words[0], asked)
        held.callback(end, world, folder, keep=values["keep"])
        return front.stay(launched.init, console.master())


def _launch(world: World, cid: str, asked: create.Wish) -> tuple[ContainerDir, Launched]:
    """A running container; a hook that fails now ends it (runtime.md, lifecycle)."""
    folder, launched = create.launch(world, cid, asked)
    try:
        life.poststart(folder)
    except WherryError:
        end(world, folder, keep=False)
        raise
    return folder, launched


def end(world: World, folder: ContainerDir, *, keep: bool) -> None:
    """Also when we leave by an error: nobody else would ever delete it."""
    if not keep:
        with suppress(WherryError), folder.lock():
            life.destroy(world, folder, force=True)
