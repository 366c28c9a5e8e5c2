"""How registries are reached: containerd's hosts.toml (docs/hosts.md there), mirrors and certificates by registry.

Decides at which endpoints a registry's name is looked for, in which order, and what each may be asked. Sends nothing.

    hosts.d/HOST[:PORT]/hosts.toml   or HOST_PORT_; without the file, *.crt, *.cert and *.key as in docker's certs.d
    hosts.d/_default/hosts.toml      for every registry that has no directory of its own
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from wherry.errors import Kind, WherryError
from wherry.image.auth import Credentials, credentials_for
from wherry.image.transport import Patience, is_loopback
from wherry.image.trust import Origin
from wherry.model import Json

__all__ = ["Endpoint", "Reach", "endpoints"]

_FILE_MAX = 1 << 20
_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"
_ALL = frozenset(("pull", "resolve", "push"))
_KEYS = frozenset(("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"))
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110: what a header's name is made of
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Reach(NamedTuple):
    """How registries are reached by one caller."""

    directory: str = ""  # hosts.d
    insecure: frozenset[str] = frozenset()
    patience: Patience = Patience()
    credentials: Callable[[str], Credentials | None] = credentials_for


class Endpoint(NamedTuple):
    """One place to ask. `base` is its API's address; "" where https is tried before http (loopback, insecure)."""

    host: str
    base: str
    origin: Origin
    account: str  # the name that its credentials are stored by
    capabilities: frozenset[str] = _ALL
    namespace: str = ""  # a mirror is told whose images are asked for


def endpoints(registry: str, reach: Reach) -> tuple[Endpoint, ...]:
    """Where images of `registry` are, mirrors first."""
    directory = _directory(reach.directory, registry)
    path = os.path.join(directory, "hosts.toml")
    if not directory:
        return (_own(registry, reach, Origin()),)
    if not os.path.exists(path):
        return (_own(registry, reach, _certificates(directory)),)
    document = _read(path)
    hosts = document.pop("host", {})
    server = document.pop("server", "")
    if not isinstance(hosts, dict) or not isinstance(server, str):
        raise _bad(path, "server is no text, or host is no table")
    made = [_endpoint(path, registry, reach, url, fields) for url, fields in hosts.items()]
    own = _endpoint(path, registry, reach, server, document)
    return (*made, own._replace(account=registry))  # wherever it is: that is the registry


def _bad(path: str, why: str) -> WherryError:
    return WherryError(Kind.INVALID, f"{path}: {why}", hint="its form is containerd's: docs/hosts.md there")


def _directory(place: str, registry: str) -> str:
    """The directory of a registry's settings, "" where there is none."""
    host, colon, port = registry.rpartition(":")
    names = ([f"{host}_{port}_"] if colon else []) + [registry, "_default"]
    return next((path for name in names if place and os.path.isdir(path := os.path.join(place, name))), "")


def _own(registry: str, reach: Reach, origin: Origin, capabilities: frozenset[str] = _ALL) -> Endpoint:
    """The registry itself, by its name."""
    host = _HUB_HOST if registry == _HUB else registry
    url = f"https://{host}"
    plain = is_loopback(urlsplit(url).hostname or "") or host in reach.insecure
    base = "" if plain else f"{url}/v2"
    return Endpoint(host, base, origin._replace(url=url), registry, capabilities)


def _certificates(directory: str) -> Origin:
    """docker's layout: every .crt is an authority, every .cert has a .key of the same name."""
    names = sorted(os.listdir(directory))
    paths = [os.path.join(directory, name) for name in names]
    pairs = tuple((path, path.removesuffix("cert") + "key") for path in paths if path.endswith(".cert"))
    return Origin(ca=tuple(path for path in paths if path.endswith(".crt")), client=pairs)


def _read(path: str) -> Json:
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MAX + 1)
        if len(data) > _FILE_MAX:
            raise _bad(path, f"larger than {_FILE_MAX} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise WherryError(Kind.DENIED, f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(path, f"not valid TOML: {error}") from error


def _endpoint(path: str, registry: str, reach: Reach, url: str, fields: Any) -> Endpoint:
    if not isinstance(fields, dict) or fields.keys() - _KEYS:
        unknown = ", ".join(sorted(fields.keys() - _KEYS)) if isinstance(fields, dict) else url
        raise _bad(path, f"unknown setting {unknown[:200]}")
    capabilities = frozenset(_texts(path, fields, "capabilities") or _ALL)
    if capabilities - _ALL:
        raise _bad(path, f"capabilities are of {', '.join(sorted(_ALL))}")
    exact = bool(_typed(path, fields, "override_path", bool, False))
    origin = Origin(
        ca=tuple(_beside(path, _texts(path, fields, "ca"))),
        client=_clients(path, fields.get("client", [])),
        skip_verify=bool(_typed(path, fields, "skip_verify", bool, False)),
        headers=_headers(path, fields.get("header", {})),
        connect=_seconds(path, str(_typed(path, fields, "dial_timeout", str, ""))),
    )
    if not url:
        return _own(registry, reach, origin, capabilities)
    return _at(_address(path, url, exact=exact), registry, origin, capabilities)


def _address(path: str, url: str, *, exact: bool) -> str:
    """The API's address; /v2 belongs to it unless override_path says that it is all there."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise _bad(path, f"{url[:200]!r} is no address: http:// or https://, a host, a path")
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return base if exact or base.endswith("/v2") else f"{base}/v2"


def _at(base: str, registry: str, origin: Origin, capabilities: frozenset[str]) -> Endpoint:
    """An endpoint by its address. Another host than the registry's is a mirror, with credentials of its own."""
    parts = urlsplit(base)
    own = _HUB_HOST if registry == _HUB else registry
    account, namespace = (registry, "") if parts.netloc == own else (parts.netloc, registry)
    url = f"{parts.scheme}://{parts.netloc}"
    return Endpoint(parts.netloc, base, origin._replace(url=url), account, capabilities, namespace)


def _typed(path: str, fields: Json, key: str, kind: type, default: object) -> object:
    value = fields.get(key, default)
    if type(value) is not kind:
        raise _bad(path, f"{key} must be of type {kind.__name__}")
    return value


def _texts(path: str, fields: Json, key: str) -> list[str]:
    """A text, or a list of them."""
    value = fields.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _bad(path, f"{key} must be text, or a list of it")
    return value


def _beside(path: str, files: Iterable[str]) -> list[str]:
    return [os.path.join(os.path.dirname(path), name) for name in files if name]


def _clients(path: str, value: Any) -> tuple[tuple[str, str], ...]:
    """A file with both, a list of such, or a list of pairs of certificate and key."""
    found: list[tuple[str, str]] = []
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        pair = [item] if isinstance(item, str) else item
        if not isinstance(pair, list) or not 1 <= len(pair) <= 2 or not all(isinstance(name, str) for name in pair):
            raise _bad(path, "client must be a file, a list of files, or of pairs of certificate and key")
        names = [*_beside(path, pair), ""]
        found.append((names[0], names[1]))
    return tuple(found)


def _headers(path: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise _bad(path, "header must be a table")
    found = [(name, ", ".join(_texts(path, value, name))) for name in value]
    if not all(re.fullmatch(_TOKEN, name) and text.isprintable() for name, text in found):
        raise _bad(path, "header must be a table of names and texts")
    return tuple(found)


def _seconds(path: str, text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)", text)
    if text and not match:
        raise _bad(path, f"dial_timeout is no time such as 10s: {text[:40]!r}")
    return float(match[1]) * _SECONDS[match[2]] if match else 0.0
