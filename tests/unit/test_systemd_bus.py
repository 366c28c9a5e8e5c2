"""The greeting of systemd's D-Bus socket, against a socket of the test's that says what systemd may say."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from wherry.container import systemd


@pytest.mark.parametrize("behind", [b"", b"l\4\1\1a signal's \r\n bytes"])
def test_what_comes_right_behind_the_greeting_is_kept(tmp_path: Path, behind: bytes) -> None:
    """A direct peer is sent signals as soon as it is known."""
    path = str(tmp_path / "private")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(256)
                peer.sendall(b"DATA\r\nOK 0123456789abcdef\r\n" + behind)

        thread = threading.Thread(target=serve)
        thread.start()
        sock, early = systemd._open(path, time.monotonic() + 5)
        thread.join()
    with sock:
        assert early + sock.recv(256) == behind
