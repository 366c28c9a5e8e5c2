"""One call of one CNI plugin: how it is run, and what its answer or its refusal is.

Decides what a plugin gets (environment, standard input, a session of its own), how long it may take, how much it may
print, and how its error object reads. Refuses to know lists, networks and what is remembered (cni.py).
"""

from __future__ import annotations

import io
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.net import launchers

__all__ = ["Refused", "answer", "refusal", "run", "within"]

_MAX_OUTPUT = 1 << 20  # bytes of one stream (invariant 3)
_TAIL = 400
_CODES = {  # CNI error codes to kinds; others are a plugin's own
    1: Kind.UNSUPPORTED, 2: Kind.INVALID, 3: Kind.NOT_FOUND, 4: Kind.INVALID, 5: Kind.INTERNAL, 6: Kind.INVALID,
    7: Kind.INVALID, 11: Kind.UNAVAILABLE, 50: Kind.UNAVAILABLE, 51: Kind.EXHAUSTED,
}


def run(path: str, environment: Mapping[str, str], config: bytes, timeout: float,
         inherited: Sequence[int] = ()) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of one plugin in a session of its own; too long or too loud means killed."""
    try:
        child = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env=environment, cwd="/", start_new_session=True, pass_fds=inherited)
    except OSError as problem:
        raise WherryError(Kind.PRECONDITION, f"CNI plugin {path} does not start: {problem.strerror}") from problem
    with child:
        try:
            out, err = _exchange(child, config, time.monotonic() + timeout)
            return child.wait(), out, err
        except _Misbehaved as why:
            raise WherryError(Kind.UNAVAILABLE, f"CNI plugin {path} {why} and was killed") from None
        finally:
            if child.returncode is None:  # not waited for: the group has its name, also when only its children live
                os.killpg(child.pid, signal.SIGKILL)


def within(program: launchers.Program, path: str, environment: Mapping[str, str],
            config: bytes) -> tuple[int, bytes, bytes]:
    """The same call of one of our own plugins without a process (decision 8)."""
    out = io.BytesIO()
    return program([path], environment, io.BytesIO(config), out), out.getvalue(), b""


class _Misbehaved(Exception):
    """Too slow, or prints without end."""


def _exchange(child: subprocess.Popen[bytes], config: bytes, deadline: float) -> tuple[bytes, bytes]:
    """Write the configuration and read both streams to their ends, within the deadline and the byte cap."""
    assert child.stdin is not None
    texts: dict[Any, bytearray] = {child.stdout: bytearray(), child.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ)
        selector.register(child.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _Misbehaved("did not finish in time")
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    config = _feed(key.fd, config)
                    done = not config
                else:
                    done = _drain(key.fd, texts[key.fileobj])
                if done:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
    try:
        child.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _Misbehaved("did not finish in time") from None
    return bytes(texts[child.stdout]), bytes(texts[child.stderr])


def _feed(fd: int, config: bytes) -> bytes:
    """The rest still to be written; a plugin that reads nothing (VERSION) is not an error."""
    try:
        return config[os.write(fd, config[:4096]):]  # PIPE_BUF: a ready pipe never blocks on that much
    except BrokenPipeError:
        return b""


def _drain(fd: int, text: bytearray) -> bool:
    data = os.read(fd, 65536)
    text += data
    if len(text) > _MAX_OUTPUT:
        raise _Misbehaved(f"printed more than {_MAX_OUTPUT} bytes")
    return not data


class Refused(WherryError):
    """What a plugin said, with its own number (0: none)."""

    number = 0


def refusal(what: str, code: int, out: bytes, err: bytes) -> Refused:
    """The plugin's own error object (section 5) in one sentence; without one, the tail of its stderr."""
    try:
        told = json.loads(out)
        number, message = int(told["code"]), str(told["msg"])
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Refused(Kind.UNAVAILABLE, f"{what} failed with {how} and no CNI error", hint=_tail(err or out))
    details = str(told.get("details") or "")
    error = Refused(_CODES.get(number, Kind.CONFLICT if number == 120 else Kind.INTERNAL), f"{what}: {message}",
                     hint="; ".join(part for part in (details, _tail(err)) if part))
    error.number = number
    return error


def answer(what: str, out: bytes, err: bytes) -> Json:
    """What it printed, an object; {} for nothing."""
    try:
        told = json.loads(out) if out.strip() else {}
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise WherryError(Kind.UNAVAILABLE, f"{what} printed no CNI result", hint=_tail(err or out))
    return told


def _tail(data: bytes) -> str:
    return data[-_TAIL:].decode("utf-8", "replace").strip()
