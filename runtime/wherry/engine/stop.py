"""`stop`, `restart`, `kill`, `pause`, `unpause`, `wait`.

Decides how a human's stop is told from a crash (`life.stopped` holds the restart policy still), and who settles the
end: a stop claims it from the monitor, so that one process does the work and not two.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, RunOptions

from . import cleanup, codec, events, records
from .house import House
from .status import Seen, folder, look, running
from .undo import container_lock

if TYPE_CHECKING:
    from wherry.container.attach import AttachStream

    from .db import Container

__all__ = ["ended", "kill", "pause", "restart", "stop", "stop_row", "tell_restarted", "unpause", "wait"]

_POLL = 0.02


def stop(house: House, ref: str, timeout: int | None, signal: str) -> None:
    """`stop`."""
    stop_row(house, house.db.find(ref), timeout, signal)


def stop_row(house: House, row: Container, timeout: int | None, signal: str = "") -> None:
    """Ask, wait, kill, settle. One that does not run is fine."""
    with ended(house, row, timeout, signal) as was_running:
        cleanup.settle(house, row)
    if was_running:
        events.container(house, row, "stop")


@contextlib.contextmanager
def ended(house: House, row: Container, timeout: int | None, signal: str = "") -> Iterator[bool]:
    """The container's processes have ended, and whoever asks settles that; whether they ran until now."""
    from wherry.container import lifecycle

    options = codec.decode_options(row.config["options"])
    seen = _mark_stopped(house, row)
    if not seen.running:
        yield False
        return
    grace = _grace(house, options, timeout)
    with claimed(house, row):
        with contextlib.suppress(WherryError):
            events.container(house, row, "kill", signal=str(signal or row.config["stop_signal"]))
            lifecycle.stop(folder(house, row.id), signal or row.config["stop_signal"], grace)
        yield True


def _grace(house: House, options: RunOptions, timeout: int | None) -> float:
    asked = timeout if timeout is not None else options.stop_timeout
    return float(house.settings.stop_timeout if asked is None else asked)


def _mark_stopped(house: House, row: Container) -> Seen:
    """Write down that it was a human, and call off a restart that waits."""
    with container_lock(house, row.id):
        seen = look(house, row.id)
        life = seen.life._replace(stopped=True, restarting=None)
        records.store(house.container_dir(row.id), life)
        return seen


@contextlib.contextmanager
def claimed(house: House, row: Container) -> Iterator[AttachStream | None]:
    """Promise the monitor to do its cleanup; without a monitor to talk to, nothing is promised."""
    from wherry.container import attach

    try:
        stream = attach.connect(folder(house, row.id).attach_path, 1.0)
    except (WherryError, OSError):
        yield None
        return
    try:
        stream.quiet()  # a chatty container must not fill the queue of one that does not read
        stream.claim()
        yield stream
    except BaseException:
        stream.close()
        raise
    house.later(stream.let_go)


def restart(house: House, ref: str, timeout: int | None, signal: str) -> None:
    """`restart`."""
    from . import start

    row = house.db.find(ref)
    stop_row(house, row, timeout, signal)
    start.start(house, row.id, attach=False, interactive=False)
    events.container(house, row, "restart")


def tell_restarted(house: House, ref: str) -> None:
    """Its event alone."""
    events.container(house, house.db.find(ref), "restart")


def kill(house: House, ref: str, signal: str) -> None:
    """`kill`: a signal that ends containers also holds the restart policy still, as docker's."""
    from wherry.container import lifecycle
    from wherry.kernel import process

    row = house.db.find(ref)
    number = process.signal_number(signal)
    running(house, row, paused=True)
    try:
        if number == 9 or number == row.config["stop_signal"]:
            _mark_stopped(house, row)
        lifecycle.kill(folder(house, row.id), number)
    except FileNotFoundError as error:  # it has ended, and its files have gone, since we looked
        raise WherryError(Kind.CONFLICT, f"container {row.name} is not running") from error
    events.container(house, row, "kill", signal=str(number))
    if number == 9:
        with contextlib.suppress(WherryError):
            lifecycle.wait(folder(house, row.id), 10)


def pause(house: House, ref: str) -> None:
    """`pause`."""
    from wherry.container import lifecycle

    row = house.db.find(ref)
    with container_lock(house, row.id):
        seen, _ = running(house, row, paused=True)
        if seen.status == "paused":
            raise WherryError(Kind.CONFLICT, f"container {row.name} is already paused")
        lifecycle.pause(folder(house, row.id))
    events.container(house, row, "pause")


def unpause(house: House, ref: str) -> None:
    """`unpause`."""
    from wherry.container import lifecycle

    row = house.db.find(ref)
    with container_lock(house, row.id):
        seen, _ = running(house, row, paused=True)
        if seen.status != "paused":
            raise WherryError(Kind.CONFLICT, f"container {row.name} is not paused")
        lifecycle.resume(folder(house, row.id))
    events.container(house, row, "unpause")


# ---- wait ----


def wait(house: House, ref: str, condition: str) -> int:
    """`wait`: exit code. "not-running" returns at once for one that does not run; a created one counts as that."""
    if condition not in ("not-running", "next-exit", "removed", ""):
        raise WherryError(Kind.INVALID, f'invalid condition "{condition}"', hint="not-running, next-exit or removed")
    row = house.db.find(ref)
    if condition == "removed":
        return _until_removed(house, row)
    seen = look(house, row.id)
    while condition == "next-exit" and not seen.running:
        time.sleep(_POLL)
        seen = look(house, row.id)
    while True:
        code = _exit_code(house, row) if seen.running else _settled_code(house, row)
        if code is not None:
            return code
        seen = look(house, row.id)


def _exit_code(house: House, row: Container) -> int | None:
    """Follow the monitor's stream to its EXIT frame: it tells the code even when --rm leaves nothing behind."""
    from wherry.container import attach

    try:
        stream = attach.connect(folder(house, row.id).attach_path)
    except (WherryError, OSError):
        time.sleep(_POLL)
        return None
    try:
        for kind, payload in stream.frames():
            if kind == ATTACH_EXIT:
                return attach.decode_exit(payload).code
    finally:
        stream.close()
    return None


def _settled_code(house: House, row: Container) -> int | None:
    seen = look(house, row.id)
    if seen.running:
        return None
    if seen.unsettled:
        status = folder(house, row.id).exit_status()
        if status is not None:
            return status.code
        with contextlib.suppress(WherryError):
            cleanup.settle(house, row)
            if not look(house, row.id).running:  # else: what looked like an end was a start, half written down
                return records.load(house.container_dir(row.id)).code
            return None
    return seen.life.code


def _until_removed(house: House, row: Container) -> int:
    code = 0
    while house.db.container(row.id) is not None:
        seen = look(house, row.id)
        found = _exit_code(house, row) if seen.running else seen.life.code
        code = found if found is not None else code
        time.sleep(_POLL)
    return code
