"""What all verbs share: the place, the settings, and the lower layers, each opened when first needed.

Decides nothing about containers. Everything here is cheap to make and safe to drop.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from wherry.errors import WherryError
from wherry.model import Place

from .config import Settings, hosts_directory, networking, place, settings

if TYPE_CHECKING:
    from wherry.image.snapshot import Snapshotter
    from wherry.image.store import ImageStore
    from wherry.net.networks import Networks
    from wherry.oci.facts import HostFacts
    from wherry.volume.csi import Client
    from wherry.volume.volumes import Volumes

    from .db import Database
    from .pods.hooks import Hooks

__all__ = ["House"]


class House:
    """One wherry's shared parts. Attributes appear on first use; `prepare` makes the directories."""

    def __init__(
        self, where: Place | None, warn: Callable[[str], None] | None = None, *, answer_first: bool = False
    ) -> None:
        self.place = where or place()
        self.warn: Callable[[str], None] = warn or (lambda _text: None)
        self._answer_first = answer_first
        self._hooks: Hooks | None = None
        self._put_off: deque[Callable[[], object]] = deque()

    def later(self, step: Callable[[], object]) -> None:
        """Something that nobody waits for: done now, or where the answer goes first, with `catch_up`."""
        if self._answer_first:
            self._put_off.append(step)
        else:
            step()

    def catch_up(self) -> None:
        """Do what was put off, in order; also before this process wants a lock, which a step of that may hold. What
        fails is told as a warning, for it is no failure of what is done now, and found by the next sweep."""
        while True:
            try:
                step = self._put_off.popleft()
            except IndexError:  # another thread may have taken the last one
                return
            try:
                step()
            except (WherryError, OSError) as error:
                self.warn(f"what was left of a container could not be removed yet: {error}")

    @property
    def behind(self) -> bool:
        """Whether something was put off."""
        return bool(self._put_off)

    @property
    def hooks(self) -> Hooks:
        """Who has a say in the life of pods."""
        from .pods.hooks import NOBODY

        return self._hooks or NOBODY

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        self._hooks = hooks

    @property
    def hooked(self) -> bool:
        """Whether somebody has."""
        return self._hooks is not None

    @cached_property
    def settings(self) -> Settings:
        """wherry.toml of this place."""
        return settings(self.place.config)

    @cached_property
    def db(self) -> Database:
        """The relations."""
        from .db import Database

        self.prepare()
        return Database(f"{self.place.root}/wherry.db")

    @cached_property
    def facts(self) -> HostFacts:
        """What the host can do."""
        from wherry.kernel import facts

        return facts.measure(self.place)

    @cached_property
    def images(self) -> ImageStore:
        """The image store."""
        from wherry.image.store import ImageStore

        where, how = hosts_directory(self.place), self.settings.snapshot_format
        return ImageStore(self.place.root, hosts=where, snapshot_format=how)

    @cached_property
    def snapshots(self) -> Snapshotter:
        """The snapshotter."""
        from wherry.image.snapshot import Snapshotter

        return Snapshotter(self.place.root)

    @cached_property
    def networks(self) -> Networks:
        """The networks."""
        from wherry.net.networks import Networks

        return Networks(networking(self.place, self.settings))

    @cached_property
    def volumes(self) -> Volumes:
        """The local volumes."""
        from wherry.volume.volumes import Volumes

        return Volumes(self.place.root)

    @cached_property
    def drivers(self) -> dict[str, Client]:
        """The CSI drivers that were talked to, by what a volume's row calls them (served.py)."""
        return {}

    @cached_property
    def walked(self) -> dict[str, tuple[int, int]]:
        """(bytes, inodes) of layers, which do not change, by their paths (imageroom.py)."""
        return {}

    def reload(self) -> None:
        """Read the settings again; if they are wrong, all stays as it was. What is under way keeps what it has."""
        self.__dict__["settings"] = settings(self.place.config)
        for part in ("images", "networks"):
            self.__dict__.pop(part, None)

    @cached_property
    def measured(self) -> dict[str, tuple[float, tuple[int, int] | None]]:
        """Until when (time.monotonic) a walk of a writable layer counts; its bytes and inodes (pods/usage.py)."""
        return {}

    @cached_property
    def unreadable(self) -> set[str]:
        """Ids of rows that cannot be read, and were told (fence.py)."""
        return set()

    def leave_no_traces(self) -> None:
        """Measure the facts without their cache, where it is not written yet: `explain` writes nothing."""
        from wherry.kernel import facts

        if not os.path.exists(f"{self.place.state}/facts.json"):
            self.__dict__["facts"] = facts.measure(self.place._replace(state=os.devnull))

    def prepare(self) -> None:
        """Make the directories of the place with their rights (invariant 10)."""
        state, root = self.place.state, self.place.root
        for path, mode in ((root, 0o700), (f"{root}/containers", 0o700), (state, 0o711), (f"{state}/c", 0o700)):
            if not os.path.isdir(path):
                os.makedirs(path, mode, exist_ok=True)
                os.chmod(path, mode)  # makedirs is subject to the umask

    def container_dir(self, cid: str) -> str:
        """Return the durable directory of a container: bundle, hosts files, log."""
        return f"{self.place.root}/containers/{cid}"

    def state_dir(self, cid: str) -> str:
        """Return the directory of a container's run state."""
        return f"{self.place.state}/c/{cid}"

    def close(self) -> None:
        """Close what is open."""
        for driver in self.__dict__.pop("drivers", {}).values():
            driver.close()
        if "db" in self.__dict__:
            self.db.close()
            del self.__dict__["db"]
