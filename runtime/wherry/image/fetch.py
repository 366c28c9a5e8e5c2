"""One file by http or https, for ADD: bounded, with a deadline, redirects and certificates as a registry's.

Decides what a server's answer must be. Refuses to know what the file is for.
"""

from __future__ import annotations

import contextlib
import posixpath
import threading
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    from wherry.image.transport import Transport

__all__ = ["Fetched", "fetch", "is_url"]

_MAX = 16 << 30


class Fetched(NamedTuple):
    """The file's name by its address, and its time (unix s; 0 where the server tells none)."""

    name: str
    modified: float


def is_url(text: str) -> bool:
    """Whether ADD takes this from the network."""
    return text.startswith(("http://", "https://"))


def fetch(url: str, file: BinaryIO, stop: threading.Event) -> Fetched:
    """Write what is at `url` to a file; ends early when `stop` is set."""
    from wherry.image.transport import Transport

    parts = urlsplit(url)
    if parts.username or parts.password:
        raise WherryError(Kind.INVALID, f"an address with a password in it is not fetched: {parts.hostname}")
    transport = Transport(insecure=[parts.netloc] if parts.scheme == "http" else [])
    try:
        return transport.persist(f"cannot fetch {url}", lambda: _once(transport, url, file, stop))  # type: ignore[no-any-return]
    finally:
        transport.close()


def _once(transport: Transport, url: str, file: BinaryIO, stop: threading.Event) -> Fetched:
    from wherry.image.transport import Retry

    parts = urlsplit(url)
    file.seek(0)
    file.truncate()
    with transport.send("GET", url, {}) as response:
        if response.status != 200:
            kind = Kind.NOT_FOUND if response.status == 404 else Kind.UNAVAILABLE
            raise WherryError(kind, f"cannot fetch {url}: invalid response status {response.status}")
        for chunk in response.chunks(stop):
            if file.tell() + len(chunk) > _MAX:
                raise WherryError(Kind.EXHAUSTED, f"{url} is larger than {_MAX} bytes")
            file.write(chunk)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and file.tell() < int(length):
            raise Retry(f"{parts.hostname} broke off after {file.tell()} of {length} bytes")
        name = posixpath.basename(unquote(parts.path))
        return Fetched(name, _time(response.headers.get("Last-Modified", "")))


def _time(text: str) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return parsedate_to_datetime(text).timestamp()
    return 0.0
