"""`completion`: the script that a shell sources."""

from __future__ import annotations

from wherry.cli.app import App, verb
from wherry.cli.options import Values
from wherry.cli.parse import choice


@verb(
    "completion",
    "SHELL",
    examples="""
wherry completion bash > /etc/bash_completion.d/wherry
wherry completion zsh > "${fpath[1]}/_wherry"
wherry completion fish > ~/.config/fish/completions/wherry.fish""",
)
def completion(app: App, values: Values) -> None:
    """Print the completion script of bash, zsh or fish."""
    from wherry.cli.completion import SHELLS, script
    from wherry.cli.main import root

    app.out(script(choice(*SHELLS)("SHELL", values["shell"]), root()))
