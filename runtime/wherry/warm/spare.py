"""A fork of the warm process that waits for a command. What commands write to is its own already: the copy of each such
page at its first write would cost a command more than its work.

Decides who works: a new process in this one's memory, in the cgroup of who asked; and what is worth a copy: the pages
that earlier commands wrote to, as they tell.
"""

from __future__ import annotations

import os
import resource
import select
import socket
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from wherry.kernel import process, shim

from . import child, peer

__all__ = ["answered", "heard", "serve"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_ENTRY: Final = 8  # bytes of /proc/PID/pagemap for a page
_EXCLUSIVE, _OF_FILE, _PRESENT = 1 << 56, 1 << 61, 1 << 63  # Documentation/admin-guide/mm/pagemap.rst
_WORTH: Final = 100  # faults of a command: fewer are not worth telling
_GLANCE: Final = 128  # pages between two looks for a command
_TOLD_MAX: Final = 1 << 17  # bytes
_ANSWERED: Final = b"."


def serve(channel: socket.socket, own: peer.World, hot: Iterable[int]) -> int:
    """Wait for a connection and the caller's cgroup (none where there is no cgroup v2), then serve; the exit code.
    `hot`: page numbers."""
    process.be_named("wherry-spare")
    before = _writable()
    _populate(hot, channel)
    data, fds, _, _ = socket.recv_fds(channel, 1, 2)
    if not data:  # the warm process is gone
        return 0
    if len(fds) == 2:
        spare = os.getpid()
        shim.go_on_in(fds[1])
        if not process.die_with_parent(spare):
            return 1
        os.close(fds[1])
    process.be_named("wherry-command")
    code = child.handle(socket.socket(fileno=fds[0]), own, lambda: channel.send(_ANSWERED, socket.MSG_DONTWAIT))
    if resource.getrusage(resource.RUSAGE_SELF).ru_minflt > _WORTH:
        with suppress(OSError):
            channel.send(array("Q", _written(before)).tobytes()[:_TOLD_MAX], socket.MSG_DONTWAIT)
    return code


def answered(channel: socket.socket) -> bool:
    """Whether its command has answered, and only does what nobody waits for."""
    with suppress(OSError):
        return channel.recv(len(_ANSWERED), socket.MSG_DONTWAIT | socket.MSG_PEEK) == _ANSWERED
    return False


def heard(channel: socket.socket) -> array[int]:
    """The pages that a command wrote to, if it told."""
    found = array("Q")
    with suppress(OSError):
        while data := channel.recv(_TOLD_MAX, socket.MSG_DONTWAIT):
            found.frombytes(data[: len(data) // _ENTRY * _ENTRY])
    return found


def _populate(pages: Iterable[int], channel: socket.socket) -> None:
    """As far as it goes until there is a command."""
    asked = select.poll()
    asked.register(channel, select.POLLIN)
    done = 0
    for start, end in _runs(pages):
        shim.populate(start * _PAGE, end * _PAGE)
        done += end - start
        if done > _GLANCE:
            done = 0
            if asked.poll(0):
                return


def _writable() -> list[tuple[int, int]]:
    """Page numbers [start, end) of what we may write."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            place, rights, _ = line.split(" ", 2)
            if rights == "rw-p":
                start, _, end = place.partition("-")
                found.append((int(start, 16) // _PAGE, int(end, 16) // _PAGE))
    return found


def _runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together, [start, end)."""
    start = end = -1
    for page in sorted(pages):
        if page != end:
            if end > start:
                yield start, end
            start = page
        end = page + 1
    if end > start:
        yield start, end


def _written(areas: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Those that are ours alone: a fork's pages are shared until they are written to."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in areas:
            entries = array("Q")
            entries.frombytes(os.pread(fd, (end - start) * _ENTRY, start * _ENTRY))
            for number, entry in enumerate(entries):
                if entry & _PRESENT and entry & _EXCLUSIVE and not entry & _OF_FILE:
                    yield start + number
    finally:
        os.close(fd)
