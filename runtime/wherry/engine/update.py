"""`update`: new limits and a new restart policy, for a running container at once. All or nothing."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Limits, RestartPolicy, RunOptions

from . import codec, events, limits, restart
from .house import House
from .status import folder, look
from .undo import container_lock

if TYPE_CHECKING:
    from .db import Container

__all__ = ["update"]


def _merged(old: Limits, new: Limits) -> Limits:
    asked = {name: value for name, value in new._asdict().items() if value is not None}
    return old._replace(**asked)


def update(house: House, ref: str, new: Limits, policy: RestartPolicy | None) -> list[str]:
    """The verb; returns warnings."""
    row = house.db.find(ref)
    with container_lock(house, row.id):
        row = house.db.find(row.id)  # as of now: it may have joined a network meanwhile
        if row.pod:
            message = f"container {row.name} is of a pod: its limits are whoever's who runs that"
            raise WherryError(Kind.CONFLICT, message, hint="change the pod's spec (kubectl), or crictl update")
        options = codec.decode_options(row.config["options"])
        if policy is not None:
            restart.check(policy, options.remove)
        wanted = options._replace(limits=_merged(options.limits, new), restart=policy or options.restart)
        limits.check(wanted.limits, house.facts)
        if wanted.limits != options.limits:
            _apply(house, row, options, wanted)
        house.db.set_config(row.id, {**row.config, "options": codec.encode(wanted)})
    events.container(house, row, "update")
    return []


def _apply(house: House, row: Container, old: RunOptions, new: RunOptions) -> None:
    """Write what changed into the cgroup; on failure write back what was."""
    from wherry.container import lifecycle
    from wherry.kernel import cgroup
    from wherry.oci import cgroup2

    default = house.settings.pids_limit
    before = dict(cgroup2.writes(limits.resources(old.limits, house.facts, default)))
    after = dict(cgroup2.writes(limits.resources(new.limits, house.facts, default)))
    changed = [(name, value) for name, value in after.items() if before.get(name) != value]
    seen = look(house, row.id)
    if seen.running and seen.state is not None:
        if seen.state.cgroup:
            cgroup.prepare(house.facts, seen.state.cgroup)  # the parents may have lost a controller meanwhile
        try:
            lifecycle.set_resources(folder(house, row.id), changed)
        except WherryError:
            with contextlib.suppress(WherryError):
                back = [(name, before.get(name, "max")) for name, _ in changed if name in before or "max" in name]
                lifecycle.set_resources(folder(house, row.id), back)
            raise
    _rewrite(house, row, new)


def _rewrite(house: House, row: Container, new: RunOptions) -> None:
    path = f"{house.container_dir(row.id)}/config.json"
    with contextlib.suppress(FileNotFoundError):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        found = limits.resources(new.limits, house.facts, house.settings.pids_limit)
        config["linux"]["resources"] |= found
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(json.dumps(config))
        os.replace(f"{path}.new", path)
