"""nftables by its own library, in this process: the text that `nft -f` takes, without a program to start.

Decides how libnftables(3) is called, and when its sockets are closed. Refuses to know what the text says. The library
is the package nftables's own (soname 1); one call takes half a millisecond where the program takes two and a fork.

Where somebody took something out, the kernel lets who closes a socket wait for an RCU grace period (some 10 ms). So
sockets stay open until others have followed, or the process ends, as a rule after its answer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from contextlib import suppress
from functools import cache

from wherry_cni.errors import FIREWALL, CniError

__all__ = ["load", "run"]

_SONAME = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_NETLINK_NETFILTER = 12
_LOCK = threading.Lock()  # the library's parser and its tables of symbols are the process's
_OPEN = 8  # contexts
_open: list[int] = []


def run(text: str, *, as_json: bool = False) -> tuple[int, str, str]:
    """(0 or not, output, errors) of some commands, all or none of them, in the calling thread's network namespace."""
    library = load()
    with _LOCK:
        free = _refuse_without_kernel()
        context = library.nft_ctx_new(0)
        if not _kept(free):  # another thread opened something meanwhile
            list(map(_kept, map(int, os.listdir("/proc/self/fd"))))
        try:
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            if as_json:
                library.nft_ctx_output_set_flags(context, _OUTPUT_JSON)
            code = library.nft_run_cmd_from_buffer(context, text.encode())
            out, err = (read(context).decode("utf-8", "replace")
                        for read in (library.nft_ctx_get_output_buffer, library.nft_ctx_get_error_buffer))
        finally:
            _close(library, context)
    return code, out, err.strip()


def _kept(fd: int) -> bool:
    """Whether this is the library's new socket, which it would leave to whatever is started from here: no more."""
    with suppress(OSError):
        found = socket.socket(fileno=fd)
        kind = (found.family, found.proto)
        found.detach()
        if kind == (socket.AF_NETLINK, _NETLINK_NETFILTER) and os.get_inheritable(fd):
            os.set_inheritable(fd, False)
            return True
    return False


def _close(library: ctypes.CDLL, context: int) -> None:
    if os.path.samefile("/proc/thread-self/ns/net", "/proc/self/ns/net"):  # else an open one would keep a namespace
        _open.append(context)
        context = _open.pop(0) if len(_open) > _OPEN else 0
    if context:
        library.nft_ctx_free(context)


@cache
def load() -> ctypes.CDLL:
    """The library, with the types of what is called."""
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError as problem:
        raise CniError(FIREWALL, f"{_SONAME} is not to be had", f"install the package nftables: {problem}") from None
    pointer = ctypes.c_void_p
    library.nft_ctx_new.argtypes, library.nft_ctx_new.restype = [ctypes.c_uint32], pointer
    library.nft_ctx_output_set_flags.argtypes = [pointer, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [pointer, ctypes.c_char_p]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [pointer]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes, getattr(library, name).restype = [pointer], ctypes.c_char_p
    return library


def _refuse_without_kernel() -> int:
    """The library ends the process where it gets no socket: ask before it does. The descriptor that it will get."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
            return asked.fileno()
    except OSError as problem:
        raise CniError(FIREWALL, f"the kernel has no nftables: {problem.strerror}") from None
