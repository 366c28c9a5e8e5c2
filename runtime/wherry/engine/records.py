"""What outlives a run but is no relation: `life.json` of a container, one writer at a time (its lock's holder).

Decides its fields. Start and finish times, the last exit, the restart count and whether a human stopped it survive a
reboot here; pid and "running" never do.
"""

import json
import os
from typing import NamedTuple

from wherry.errors import WherryError
from wherry.kernel import files

__all__ = ["Life", "Restarting", "load", "lost", "store"]

_MAX = 1 << 20  # bytes


class Restarting(NamedTuple):
    """The process that sleeps through a back-off."""

    pid: int
    start_time: int


class Life(NamedTuple):
    """One container's past. Times are unix seconds, 0: never."""

    started: float = 0
    finished: float = 0
    code: int = 0
    oom: bool = False
    error: str = ""
    stopped: bool = False  # by stop, kill or rm -f: the restart policy holds still
    restarts: int = 0  # by policy, since the last start by hand
    delay: float = 0  # back-off before the latest restart
    restarting: Restarting | None = None
    settled: bool = True  # the latest exit's teardown is done
    told: bool = False  # it is not, but finished, code, oom and error are that exit's


def load(directory: str) -> Life:
    """Read it; absent or torn is a container that never ran."""
    try:
        values = json.loads(files.read_small(f"{directory}/life.json", _MAX).decode())
        again = values.pop("restarting", None)
        return Life(**values, restarting=Restarting(**again) if again else None)
    except (FileNotFoundError, ValueError, TypeError, WherryError):
        return Life()


def lost(life: Life) -> Life:
    """A run of whose end nothing is left: the host went down, or STATE went. When, nobody knows: after its start."""
    return life._replace(finished=life.started, code=137, oom=False, error="the host went down, or its state was lost")


def _plain(life: Life) -> dict[str, object]:
    return {**life._asdict(), "restarting": life.restarting and life.restarting._asdict()}


def store(directory: str, life: Life) -> None:
    """Replace it in one rename. No fsync: after a power cut the older truth is as good."""
    temporary = f"{directory}/life.json.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(_plain(life)))
    os.replace(temporary, f"{directory}/life.json")
