"""Who has a say in the life of pods while it happens, in the thread that does it: nobody, unless a face hooks in.

Decides where in a verb that is. Knows nobody who does.
"""

from __future__ import annotations

from typing import Final

from wherry.model import Json

from .values import Member, Pod

__all__ = ["NOBODY", "Hooks"]


class Hooks:
    """All that can be hooked. What a method raises (WherryError) fails the verb, and all is taken back."""

    def run_pod(self, pod: Pod) -> None:
        """A pod holds everything, and nobody can see it yet."""

    def lost_pod(self, pod: Pod) -> None:
        """What `run_pod` was told of will not be, whether that succeeded or not. Raises nothing."""

    def stop_pod(self, pod: Pod) -> None:
        """Its containers have ended; its network and its cgroup are there. Raises nothing."""

    def create_member(self, pod: Pod, member: Member, config: Json) -> tuple[Member, Json]:
        """A container is about to be written down, with this config.json: as it is to be. Of `member` the options may
        change, as far as they are limits."""
        del pod
        return member, config

    def lost_member(self, member: str) -> None:
        """What `create_member` was told of will not be. Raises nothing."""


NOBODY: Final = Hooks()
