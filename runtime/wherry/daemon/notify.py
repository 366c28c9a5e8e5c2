"""What the service manager is told: sd_notify(3), and a sign of life from the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

__all__ = ["Notifier"]


class Notifier:
    """Tells systemd, where one listens; elsewhere nothing happens. What says so is taken out of `env`: whom we start,
    it does not concern."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._path = env.pop("NOTIFY_SOCKET", "")
        for_us = env.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = env.pop("WATCHDOG_USEC", "")
        self._every = int(usec) / 2_000_000 if usec.isdigit() and for_us else 0.0

    def tell(self, *assignments: str) -> None:
        """Send assignments in one message ("READY=1", "STATUS=..."). A manager that is gone is no failure of ours."""
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(assignments).encode(), address)

    async def watch(self) -> None:
        """Tell at half the time that the watchdog grants that the loop turns. Ends only by its cancellation."""
        while self._every:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._every)
