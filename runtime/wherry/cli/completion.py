"""Answers of the shell completion: what may stand at the cursor. Knows the tree of commands only through click."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete, split_arg_string

from wherry.errors import WherryError

if TYPE_CHECKING:
    from .app import App
    from .clicks import Lazy

VARIABLE = "_WHERRY_COMPLETE"
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def script(shell: str, root: Lazy) -> str:
    """The script that a shell sources."""
    made: Any = SHELLS[shell](root, {}, "wherry", VARIABLE)
    return str(made.source_template % made.source_vars())


def words(app: App, shell: str) -> tuple[list[str], str]:
    """The words before the cursor and the one at it, as click's scripts hand them over."""
    found = split_arg_string(app.env.get("COMP_WORDS", ""))
    if shell == "fish":
        incomplete = app.env.get("COMP_CWORD", "")
        args = found[1:]
        return (args[:-1] if incomplete and args and args[-1] == incomplete else args), incomplete
    at = int(app.env.get("COMP_CWORD", "0") or 0)
    return found[1:at], found[at] if at < len(found) else ""


def answer(app: App, root: Lazy) -> int:
    """Print the completions; a line that cannot be understood has none."""
    shell = app.env[VARIABLE].partition("_")[0]
    if shell not in SHELLS:
        return 1
    complete = SHELLS[shell](root, {"obj": app}, "wherry", VARIABLE)
    try:
        for item in complete.get_completions(*words(app, shell)):
            app.out(complete.format_completion(item))
    except WherryError:
        return 1
    return 0
