"""What wherryd says of itself: one line a record on standard error, as text or as JSON; or the journal's own fields.

Decides the form. A record that carries something of a request cannot write a line of its own: what is not printable is
escaped.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["FORMATS", "LEVELS", "start"]

#: names of levels, and sd-daemon(3)'s priority of each, by which journald files a line
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
}  # fmt: skip
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
FORMATS = ("auto", "text", "json")
_MOST = 4096  # characters of one message
_TRACE_MOST = 1 << 15  # of a traceback: a datagram has its bounds
_JOURNAL = "/run/systemd/journal/socket"


def start(level: str, form: str, env: Mapping[str, str], journal: str = _JOURNAL) -> None:
    """Say what is of `level` and above. `form` auto: to the journal with fields where standard error leads there, else
    text."""
    handler: logging.Handler | None = None
    if form == "auto" and _is_journals(env.get("JOURNAL_STREAM", "")):
        handler = _Journal.of(journal)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Json() if form == "json" else _Text("JOURNAL_STREAM" in env))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("wherryd").setLevel(LEVELS[level])


def _is_journals(stream: str) -> bool:
    """Whether standard error is what systemd connected to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    found = os.fstat(2)
    return stream == f"{found.st_dev}:{found.st_ino}"


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)[:_MOST]


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, "fields", {})
    return found


class _Text(logging.Formatter):
    """LEVEL TIME MESSAGE key=value ..."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback follows it, line by line, each escaped."""
        words = [_plain(record.getMessage()), *(f"{key}={_plain(str(v))}" for key, v in _fields(record).items())]
        if self._journal:
            head = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        else:
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            head = f"{when}.{int(record.msecs):03d}Z {record.levelname.lower()} "
        return head + " ".join(words) + self._trace(record, head)

    def _trace(self, record: logging.LogRecord, head: str) -> str:
        if not record.exc_info:
            return ""
        lines = self.formatException(record.exc_info).splitlines()
        return "".join(f"\n{head}  {_plain(line)}" for line in lines)


class _Json(logging.Formatter):
    """{"time", "level", "msg", ...}"""

    def format(self, record: logging.LogRecord) -> str:
        """One object in one line."""
        told: dict[str, object] = {
            "time": round(record.created, 3), "level": record.levelname.lower(), "msg": record.getMessage()[:_MOST],
            **_fields(record),
        }  # fmt: skip
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class _Journal(logging.Handler):
    """A datagram a record, in the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): `journalctl
    CONTAINER=web` finds what was said of it. A journal that does not read holds nobody up."""

    def __init__(self, journal: socket.socket) -> None:
        super().__init__()
        self._journal = journal

    @classmethod
    def of(cls, path: str) -> _Journal | None:
        """None where nobody listens."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            made.connect(path)
        except OSError:
            made.close()
            return None
        return cls(made)

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        told: dict[str, object] = {
            "MESSAGE": record.getMessage()[:_MOST], "PRIORITY": _PRIORITIES.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": "wherryd", "LOGGER": record.name,
        }  # fmt: skip
        told |= {key.upper(): str(value)[:_MOST] for key, value in _fields(record).items()}
        if record.exc_info:
            told["TRACE"] = logging.Formatter().formatException(record.exc_info)[-_TRACE_MOST:]
        with suppress(OSError):
            self._journal.send(b"".join(_entry(key, str(value)) for key, value in told.items()))


def _entry(key: str, text: str) -> bytes:
    """A value of several lines goes with its length."""
    raw = text.encode("utf-8", "replace")
    if b"\n" in raw:
        return b"%s\n%s%s\n" % (key.encode(), len(raw).to_bytes(8, "little"), raw)
    return b"%s=%s\n" % (key.encode(), raw)
