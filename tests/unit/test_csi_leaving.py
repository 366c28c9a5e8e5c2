"""How a driver on demand leaves: its socket goes aside first, and comes back if somebody still calls."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry_csi import server
from wherry_csi.server import Busy


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A socket that is listened on."""
    found = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(found)
        listener.listen()
        yield found


def leave(path: str, busy: Busy, most: float = 0.05) -> tuple[threading.Thread, threading.Event]:
    """Let one leave, in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=server._until_left, args=(path, stop, most, busy.idle), daemon=True)
    thread.start()
    return thread, stop


def until_gone(path: str) -> None:
    deadline = time.monotonic() + 5
    while os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_nobody_calls(path: str) -> None:
    thread, _ = leave(path, Busy())
    thread.join(5)
    assert not thread.is_alive()
    assert os.listdir(os.path.dirname(path)) == []


def test_who_had_connected_is_served_and_all_others_reach_it_again(path: str) -> None:
    busy = Busy()
    thread, stop = leave(path, busy, 2.0)
    until_gone(path)
    with busy:
        pass
    deadline = time.monotonic() + 1.5  # before it is idle again
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
    assert os.listdir(os.path.dirname(path)) == ["s"]
    assert thread.is_alive()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_place_that_another_took_stays_his(path: str) -> None:
    busy = Busy()
    thread, _ = leave(path, busy)
    until_gone(path)
    Path(path).write_text("another's")
    with busy:
        pass
    thread.join(5)
    assert not thread.is_alive()
    assert Path(path).read_text() == "another's"
    assert os.listdir(os.path.dirname(path)) == ["s"]


def test_told_to_end_it_does_not_wait(path: str) -> None:
    thread, stop = leave(path, Busy(), 1000.0)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert os.path.exists(path)
