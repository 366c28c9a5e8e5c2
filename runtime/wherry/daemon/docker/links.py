"""docker's links, as far as they mean something between containers that find each other by name: one more name for
another container, for the one that is made. It is a line of its hosts file, with the address of now.

Decides which address that is. What docker's links shared beside (variables, an open port) is long gone there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.model import Json, RunOptions

from .fields import Fields

__all__ = ["asked", "hosts"]


def asked(body: Json) -> list[str]:
    """All links of a create, each "CONTAINER:ALIAS" once."""
    config = Fields(body)
    found = dict.fromkeys(config.part("HostConfig").texts("Links"))
    for _, end in config.part("NetworkingConfig").items("EndpointsConfig"):
        found |= dict.fromkeys(end.texts("Links"))
    return list(found)


def hosts(engine: Engine, links: Sequence[str], options: RunOptions) -> Iterator[str]:
    """Lines as of --add-host."""
    wanted = {wish.network for wish in options.network} or {"bridge"}
    for link in links:
        ref, _, alias = link.partition(":")
        found = engine.inspect(ref, "container")
        if not found["State"]["Running"]:
            message = f"Cannot link to a non running container: {found['Name']} AS {alias or ref}"
            raise WherryError(Kind.CONFLICT, message, hint="start it first")
        ends: Json = found["NetworkSettings"]["Networks"]
        address = next((end["IPAddress"] for name, end in ends.items() if name in wanted and end["IPAddress"]), "")
        if not address:
            raise WherryError(Kind.CONFLICT, f"Cannot link to {found['Name']}: it is on none of the same networks")
        yield f"{(alias or ref).rpartition('/')[2]}:{address}"
