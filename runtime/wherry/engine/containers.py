"""`rename`. Decides that a name is free or the verb fails; the hosts files of peers follow."""

from __future__ import annotations

from wherry.errors import Kind, WherryError

from . import codec, events, joining, names
from .house import House
from .undo import container_lock

__all__ = ["rename"]


def rename(house: House, ref: str, name: str) -> None:
    """Give a new name."""
    fresh = names.check(name)
    row = house.db.find(ref)
    if row.pod:  # by it a create that is asked again finds what the first one made
        raise WherryError(Kind.CONFLICT, f"container {row.name} is of a pod, whose containers keep their names")
    with container_lock(house, row.id):
        if row.name == fresh:
            raise WherryError(Kind.INVALID, "renaming a container with the same name as its current name")
        house.db.rename(row.id, fresh)
    new = house.db.find(row.id)
    joining.refresh_peers(house, codec.decode_options(new.config["options"]))
    events.container(house, new, "rename", oldName=f"/{row.name}")
