"""A network's keeper as a test sees it, and a DNS server of the distribution."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .wherry import until

__all__ = ["dnsmasq", "keepers", "only_keeper"]


def keepers(network: str = "bridge", state: object = "") -> list[int]:
    """The processes that keep a network of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if words[-4:] == [b"internal", b"network", network.encode(), b""]:
                place = f"WHERRY_STATE={state}".encode()
                if not state or place in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def only_keeper(state: object, network: str = "bridge") -> int:
    """The one that there has to be, once it can be seen."""
    return int(until(lambda: keepers(network, state) if len(keepers(network, state)) == 1 else [])[0])


@contextlib.contextmanager
def dnsmasq(directory: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The distribution's, knowing only what the words say."""
    log = directory / f"dnsmasq-{time.monotonic_ns()}.log"
    command = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root",
               "--pid-file=", "--log-facility=-", *words]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            until(lambda: process.poll() is not None or b"started" in log.read_bytes())
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            process.wait(10)
