"""A bundle read and checked: config.json, and the descriptors that a start is handed beside it.

Decides what a bundle must have. Refuses to know cgroups and plans.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .world import CONFIG_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["activated", "at_home", "connect", "null_streams", "preserved", "read", "rootfs"]

_NULL = os.makedev(1, 3)


def read(bundle: str, config: str = "") -> tuple[Json, bytes]:
    """(config.json checked by runtime-spec 1.3, its bytes). INVALID with the field's path."""
    from wherry.kernel import files
    from wherry.oci import spec

    path = os.path.join(bundle, config or "config.json")
    try:
        text = files.read_capped(path, CONFIG_MAX)
    except FileNotFoundError:
        hint = "--bundle names a directory with config.json; `wherry-oci spec` writes one"
        raise WherryError(Kind.NOT_FOUND, f"{path}: no such file or directory", hint=hint) from None
    except OSError as error:
        raise WherryError(Kind.PRECONDITION, f"cannot read {path}: {error.strerror}") from error
    found = parse(text, path)
    spec.validate(found)
    return found, text


def parse(text: bytes, path: str) -> Json:
    """A JSON object; INVALID with the place of the mistake."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WherryError(Kind.INVALID, f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise WherryError(Kind.INVALID, f"{path}: must be an object")
    return found


def rootfs(config: Json, bundle: str) -> str:
    """The absolute path of the root filesystem; it must be a directory."""
    path = os.path.join(bundle, (config.get("root") or {}).get("path") or "rootfs")
    if not os.path.isdir(path):
        raise WherryError(Kind.NOT_FOUND, f"root.path: {path} is not a directory", hint="unpack the image there")
    return os.path.normpath(path)


def connect(held: ExitStack, path: str, what: str) -> int:
    """A connection to a unix socket that a caller listens on."""
    import socket

    sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        sock.connect(path)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"{what} {path}: {error.strerror or error}") from error
    return sock.fileno()


def listening(env: Mapping[str, str]) -> int:
    """How many sockets a service manager handed to this process (sd_listen_fds(3)): descriptors from 3 on."""
    text = env.get("LISTEN_FDS", "")
    mine = env.get("LISTEN_PID") == str(os.getpid())
    return int(text) if mine and text.isdecimal() and len(text) < 5 else 0


def activated(process: Json, env: Mapping[str, str]) -> Json:
    """The process with the sockets announced to it, as runc does: it is pid 1 where it looks."""
    count = listening(env)
    said = [f"LISTEN_FDS={count}", "LISTEN_PID=1"]
    return {**process, "env": [*(process.get("env") or []), *said]} if count else process


def at_home(process: Json, root: str) -> Json:
    """With HOME where it has none: by the container's own passwd, as runc; callers rely on it."""
    env = process.get("env") or []
    if any(entry.startswith("HOME=") for entry in env):
        return process
    from wherry.engine import users

    home, uid = "/", str((process.get("user") or {}).get("uid", 0))
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        home = users.lookup(fd, uid).home
    except WherryError:  # a passwd that is none
        pass
    finally:
        os.close(fd)
    return {**process, "env": [*env, f"HOME={home}"]}


def preserved(count: str, env: Mapping[str, str]) -> int:
    """--preserve-fds, after the sockets of `listening`; each descriptor must be open."""
    text = count or "0"
    if not (text.isdecimal() and len(text) < 5):
        raise WherryError(Kind.INVALID, f'--preserve-fds "{text}" is not a number of descriptors')
    total = int(text) + listening(env)
    for fd in range(3, 3 + total):
        try:
            os.fstat(fd)
        except OSError:
            raise WherryError(Kind.INVALID, f"--preserve-fds {total}: descriptor {fd} is not open") from None
    return total


def null_streams() -> tuple[str, ...]:
    """Standard streams that are the host's /dev/null: through them root of the container could change its mode."""
    found = []
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            if os.fstat(fd).st_rdev == _NULL:
                found.append(name)
        except OSError:  # closed by the caller
            found.append(name)
    return tuple(found)
