"""One file by http or https, for ADD: bounded, with a deadline, redirects and certificates as a registry's.

Decides what a server's answer must be. Refuses to know what the file is for.
"""

from __future__ import annotations

import contextlib
import posixpath
from email.utils import parsedate_to_datetime
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from wherry.errors import Kind, WherryError

__all__ = ["Fetched", "fetch", "is_url"]

_MAX = 16 << 30


class Fetched(NamedTuple):
    """The file's name by its address, and its time (unix s; 0 where the server tells none)."""

    name: str
    modified: float


def is_url(text: str) -> bool:
    """Whether ADD takes this from the network."""
    return text.startswith(("http://", "https://"))


def fetch(url: str, file: BinaryIO) -> Fetched:
    """Write what is at `url` to a file."""
    from wherry.image.transport import Transport

    parts = urlsplit(url)
    if parts.username or parts.password:
        raise WherryError(Kind.INVALID, f"an address with a password in it is not fetched: {parts.hostname}")
    transport = Transport(insecure=[parts.netloc] if parts.scheme == "http" else [])
    try:
        return transport.persist(f"cannot fetch {url}", lambda: _once(transport, url, file))  # type: ignore[no-any-return]
    finally:
        transport.close()


def _once(transport: object, url: str, file: BinaryIO) -> Fetched:
    from wherry.image.transport import Transport

    assert isinstance(transport, Transport)
    file.seek(0)
    file.truncate()
    with transport.send("GET", url, {}) as response:
        if response.status != 200:
            kind = Kind.NOT_FOUND if response.status == 404 else Kind.UNAVAILABLE
            raise WherryError(kind, f"cannot fetch {url}: invalid response status {response.status}")
        for chunk in response.chunks():
            if file.tell() + len(chunk) > _MAX:
                raise WherryError(Kind.EXHAUSTED, f"{url} is larger than {_MAX} bytes")
            file.write(chunk)
        name = posixpath.basename(unquote(urlsplit(url).path))
        return Fetched(name, _time(response.headers.get("Last-Modified", "")))


def _time(text: str) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return parsedate_to_datetime(text).timestamp()
    return 0.0
