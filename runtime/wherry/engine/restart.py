"""Restart policies: whether a container that has ended starts again, and after how long. Pure."""

from __future__ import annotations

from wherry.errors import Kind, WherryError
from wherry.model import RestartPolicy

from .records import Life

__all__ = ["FIRST_DELAY", "check", "delay", "wanted"]

FIRST_DELAY, _LAST_DELAY = 0.1, 60.0
_LONG_RUN = 10.0  # seconds up after which the back-off begins anew
_NAMES = ("no", "on-failure", "always", "unless-stopped")


def check(policy: RestartPolicy, remove: bool) -> None:
    """Refuse what docker refuses."""
    if policy.name not in _NAMES:
        raise WherryError(Kind.INVALID, f'invalid restart policy "{policy.name}"', hint=f"one of {', '.join(_NAMES)}")
    if policy.max_retries and policy.name != "on-failure":
        raise WherryError(Kind.INVALID, f"maximum retry count cannot be used with restart policy '{policy.name}'")
    if policy.max_retries < 0:
        raise WherryError(Kind.INVALID, "maximum retry count cannot be negative")
    if remove and policy.name != "no":
        raise WherryError(Kind.INVALID, "conflicting options: cannot specify both --restart and --rm")


def wanted(policy: RestartPolicy, life: Life) -> bool:
    """Whether the policy starts a container again whose latest run ended as `life` says."""
    if life.stopped:
        return False
    if policy.name == "on-failure":
        return life.code != 0 and (policy.max_retries == 0 or life.restarts < policy.max_retries)
    return policy.name in ("always", "unless-stopped")


def delay(life: Life) -> float:
    """Seconds to wait before the next start: 100 ms, doubled each time, at most a minute; anew after a long run."""
    if life.delay == 0 or life.finished - life.started >= _LONG_RUN:
        return FIRST_DELAY
    return min(life.delay * 2, _LAST_DELAY)
