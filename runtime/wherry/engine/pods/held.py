"""What a ready pod holds, for those who put containers into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wherry.engine.house import House
from wherry.errors import Kind, WherryError

from . import records
from .values import Held

__all__ = ["of", "using"]


def of(house: House, pod: str) -> Held:
    """By the pod's whole id. CONFLICT unless the pod is ready, NOT_FOUND without a pod."""
    held = records.load(house, pod)
    if held is not None:
        return held
    if house.db.pod(pod) is None:
        raise WherryError(Kind.NOT_FOUND, f"no such pod: {pod[:80]}")
    hint = "it was stopped, its pause process died, or the host was rebooted: stop and remove it, and run it again"
    raise WherryError(Kind.CONFLICT, f"pod {pod[:12]} is not ready", hint=hint)


@contextlib.contextmanager
def using(house: House, pod: str) -> Iterator[Held]:
    """`of`, and it stays so for the block: a stop of the pod waits. What starts a container does it in here, or a stop
    at the same moment would miss the new one."""
    with records.lock(house, pod, shared=True):
        yield of(house, pod)
