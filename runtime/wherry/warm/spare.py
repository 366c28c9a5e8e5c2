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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from wherry.kernel import process, shim

from . import child, peer

__all__ = ["KEEP", "TELL", "answered", "heard", "serve"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_ENTRY: Final = 8  # bytes of /proc/PID/pagemap for a page
_EXCLUSIVE, _OF_FILE, _PRESENT = 1 << 56, 1 << 61, 1 << 63  # Documentation/admin-guide/mm/pagemap.rst
_WORTH: Final = 100  # faults of a command: fewer are not worth telling
_GLANCE: Final = 256  # pages between two looks for a command
_TOLD_MAX: Final = 1 << 17  # bytes
_ANSWERED: Final = b"."
#: what a connection comes with: whether the pages that its command writes to are asked for, which takes a millisecond
TELL, KEEP = b"?", b"!"


def serve(channel: socket.socket, own: peer.World, hot: Sequence[int]) -> int:
    """Wait for a connection and the caller's cgroup (none where there is no cgroup v2), then serve; the exit code.
    `hot`: page numbers, in order."""
    process.be_named("wherry-spare")
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
    code = child.handle(socket.socket(fileno=fds[0]), own, lambda: _told(channel))
    if data == TELL and resource.getrusage(resource.RUSAGE_SELF).ru_minflt > _WORTH:
        with suppress(OSError):
            channel.send(array("Q", _written(_writable())).tobytes()[:_TOLD_MAX], socket.MSG_DONTWAIT)
    return code


def _told(channel: socket.socket) -> None:
    with suppress(OSError):  # the warm process is gone: nobody will take the end of the front for a reason to stop us
        channel.send(_ANSWERED, socket.MSG_DONTWAIT)


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


def _populate(pages: Sequence[int], channel: socket.socket) -> None:
    """As far as it goes until there is a command."""
    asked = select.poll()
    asked.register(channel, select.POLLIN)
    for at in range(0, len(pages), _GLANCE):
        if asked.poll(0):
            return
        shim.populate(_areas(pages[at : at + _GLANCE]))


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


def _areas(pages: Iterable[int]) -> array[int]:
    """Addresses: start, end of neighbours that are asked for together; `pages` in order."""
    found = array("Q")
    end = -1
    for page in pages:
        if page == end:
            found[-1] += _PAGE
        else:
            found.extend((page * _PAGE, (page + 1) * _PAGE))
        end = page + 1
    return found


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
