"""What monitors and commands call, when it comes through click (with --debug); `main.internal` is the usual way."""

from __future__ import annotations

from wherry.cli.app import App, verb
from wherry.cli.options import Values


@verb("cleanup", "ID")
def cleanup(app: App, values: Values) -> None:
    """Settle a container that has ended: its cleanup, its restart policy, --rm."""
    app.engine.finish(values["id"])


@verb("health", "ID")
def health(app: App, values: Values) -> None:
    """Run one health check."""
    app.engine.health(values["id"])


@verb("network", "NAME")
def network(app: App, values: Values) -> None:
    """Be the keeper of a network: answer DNS on it, put back what is flushed of its rules."""
    app.engine.keep(values["name"])
