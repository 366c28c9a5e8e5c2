"""What a container says by sd_notify(3) on its way to the service manager."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest

from wherry.cli.notify import Passing


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "manager"))
    made.settimeout(5)
    return made


def test_only_what_is_the_containers_to_say(tmp_path: Path, manager: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "manager"), "WATCHDOG_USEC": "2000000"}
    with manager, Passing(env) as passing, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inside:
        assert passing.offer.env == ("WATCHDOG_USEC=2000000",)
        passing.offer.listener.bind(str(tmp_path / "inside"))
        inside.connect(str(tmp_path / "inside"))
        inside.send(b"MAINPID=1\nREADY=1\nFDSTORE=1\nSTATUS=up\xff")
        assert manager.recv(999).decode() == "READY=1\nSTATUS=up\ufffd"
        inside.send(b"MAINPID=1")
        inside.send(b"WATCHDOG=1")
        assert manager.recv(999) == b"WATCHDOG=1", "nothing is sent of what has nothing"
        reading, writing = os.pipe()
        socket.send_fds(inside, [b"BARRIER=1"], [writing])
        os.close(writing)
        assert select.select([reading], [], [], 5)[0], "the barrier is lifted"
        os.close(reading)


def test_an_abstract_manager_or_none(tmp_path: Path) -> None:
    name = f"wherry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        with Passing({"NOTIFY_SOCKET": f"@{name}"}) as passing:
            assert passing.offer.env == ()
            passing.offer.listener.bind(str(tmp_path / "inside"))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inside:
                inside.connect(str(tmp_path / "inside"))
                inside.send(b"READY=1")
                assert manager.recv(99) == b"READY=1"
                manager.close()
                inside.send(b"READY=1")
    with pytest.raises(OSError):
        passing.offer.listener.getsockname()
