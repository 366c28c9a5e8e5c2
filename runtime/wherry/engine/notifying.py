"""A container that speaks sd_notify(3) in a unit of systemd: it gets a socket of its own, and its caller what it says.

Decides where the socket lies. What of it the service manager hears is the caller's (cli/notify.py): the manager takes
messages only from processes of the unit, and a container is none.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from .devices import Devices
from .house import House

__all__ = ["Notify", "offer"]

_INSIDE = "/run/notify"


class Notify(NamedTuple):
    """A datagram socket without a name yet, and variables that go with it (WATCHDOG_USEC)."""

    listener: socket.socket
    env: tuple[str, ...] = ()


def offer(house: House, cid: str, given: Notify, found: Devices) -> None:
    """Give it a name below the container's run state, which is shown read-only inside; it goes with the run."""
    directory = f"{house.state_dir(cid)}/notify"
    os.mkdir(directory)
    os.chmod(directory, 0o711)  # noqa: S103  # whatever the umask is; above it nobody comes by
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        given.listener.bind(f"/proc/self/fd/{fd}/socket")  # the whole path may be too long for sun_path
    finally:
        os.close(fd)
    os.chmod(f"{directory}/socket", 0o666)  # noqa: S103  # for any user inside
    options = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"]
    found.mounts.append({"destination": _INSIDE, "type": "bind", "source": directory, "options": options})
    found.env += [f"NOTIFY_SOCKET={_INSIDE}/socket", *given.env]
