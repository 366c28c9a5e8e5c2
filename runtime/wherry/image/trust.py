"""Whom a registry's connection trusts, and what is shown to one origin alone.

Decides certificates: the system's authorities and added ones, a client's own. Sends nothing, knows no requests.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    import ssl

__all__ = ["Origin", "context", "host_of", "origin_of"]

_SYSTEM = "/etc/ssl/certs/ca-certificates.crt"


class Origin(NamedTuple):
    """What was set for one origin. All but `ca` and `connect` is for this origin alone (invariant 8)."""

    url: str = ""  # scheme://host[:port]; "": nothing was set
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()  # files of certificate and key; no key: both are in the first
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    connect: float = 0.0  # seconds to connect in, 0: as all


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what credentials are bound to."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        port = 0
    return parts.scheme, (parts.hostname or "").lower(), port


def host_of(url: str) -> str:
    """host[:port], without a user's name."""
    return urlsplit(url).netloc.rpartition("@")[2]


def context(own: Origin, *, private: bool, verify: bool) -> ssl.SSLContext:
    """A client's TLS. `private`: with the certificate that is for the origin alone."""
    import ssl

    made = ssl.create_default_context(cafile=_system())
    for path in own.ca:
        _load(path, "the certificate authority", functools.partial(made.load_verify_locations, path))
    for certificate, key in own.client if private else ():
        load = functools.partial(made.load_cert_chain, certificate, key or None, password=_no_password)
        _load(certificate, "the client certificate", load)
    if not verify:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def _system() -> str | None:
    """The file of trusted authorities; None: where OpenSSL looks."""
    return next((path for path in (os.environ.get("SSL_CERT_FILE", ""), _SYSTEM) if os.path.exists(path)), None)


def _load(path: str, what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = error.strerror if isinstance(error, FileNotFoundError) else error
        raise WherryError(Kind.PRECONDITION, f"cannot use {what} {path}: {why}",
                          hint="a file in PEM form, named in hosts.d/HOST/hosts.toml") from error  # fmt: skip


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("its key is encrypted")
