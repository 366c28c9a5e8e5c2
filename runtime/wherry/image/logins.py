"""Logging in to registries and out again, in docker's config.json and with its credential helpers.

Decides where a secret is kept and that it was tried before. Knows no terminal: who is asked for a password, and how,
is the face's.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.auth import (
    Credentials,
    call_helper,
    config_path,
    helper_of,
    is_of,
    keys_of,
    read_config,
)
from wherry.image.hosts import Reach, endpoints
from wherry.image.reference import Reference
from wherry.image.remote import Remote

__all__ = ["forget", "known", "registry_of", "store", "verify"]

_HUB = "docker.io"


def registry_of(server: str) -> str:
    """The registry that a user means by SERVER: a host, or a URL of it as old configurations have."""
    try:
        host = urlsplit(server if "://" in server else f"//{server}").netloc
    except ValueError:  # brackets that are no IPv6 address
        host = ""
    if not server or is_of(server, keys_of(_HUB)) or is_of(host, keys_of(_HUB)):
        return _HUB
    try:
        good = bool(host) and Reference.parse(f"{host}/x").registry == host
    except WherryError:
        good = False
    if not good:
        raise WherryError(Kind.INVALID, f"invalid registry {server[:200]!r}", hint="HOST[:PORT], such as ghcr.io")
    return host


def verify(registry: str, credentials: Credentials, reach: Reach) -> Credentials:
    """Ask the registry; what is to be stored: these credentials, or an identity token that it gives for them."""
    own = next(endpoint for endpoint in endpoints(registry, reach) if endpoint.account == registry)
    known_to = reach._replace(credentials=lambda _name: credentials)
    remote = Remote(Reference(registry, "", "", ""), own, known_to, login=True)
    with contextlib.closing(remote):
        identity = remote.persist(f"login to {registry}", lambda: _asked(remote, registry))
    return Credentials(credentials.user, identity, identity=True) if identity else credentials


def _asked(remote: Remote, registry: str) -> str:
    with remote.send("GET", remote.url(""), {}) as response:
        remote.expect(response, (200,), f"login to {registry}")
    return remote.identity


# ---- where secrets are kept


def store(registry: str, credentials: Credentials, environment: Mapping[str, str]) -> str:
    """Keep them as docker does; the file, where they are now written unencrypted, else ""."""
    key = keys_of(registry)[0]
    with _changed(environment) as config:
        helper = helper_of(config, keys_of(registry))
        auths = _auths(config)
        for name in [name for name in auths if is_of(name, keys_of(registry))]:
            del auths[name]
        auths[key] = {} if helper else _entry(credentials)
        if helper:
            user = "<token>" if credentials.identity else credentials.user
            told = {"ServerURL": key, "Username": user, "Secret": credentials.secret}
            call_helper(helper, "store", json.dumps(told), environment)
    return "" if helper else config_path(environment)


def _entry(credentials: Credentials) -> dict[str, str]:
    secret = "" if credentials.identity else credentials.secret
    auth = base64.b64encode(f"{credentials.user}:{secret}".encode()).decode("ascii")
    return {"auth": auth, **({"identitytoken": credentials.secret} if credentials.identity else {})}


def forget(registry: str, environment: Mapping[str, str]) -> bool:
    """Remove what is kept for a registry; whether there was anything."""
    keys = keys_of(registry)
    if not os.path.exists(config_path(environment)):
        return False
    with _changed(environment) as config:
        helper = helper_of(config, keys)
        auths = _auths(config)
        names = [name for name in auths if is_of(name, keys)]
        for name in names:
            del auths[name]
        held = bool(helper) and any(is_of(name, keys) for name in _of_helper(helper, environment))
        if held:
            call_helper(helper, "erase", keys[0], environment)
    return bool(names) or held


def known(environment: Mapping[str, str]) -> list[str]:
    """The registries that there are credentials for."""
    config = read_config(config_path(environment))
    names = set(_auths(config))
    helpers = config.get("credHelpers")
    names |= set(helpers) if isinstance(helpers, dict) else set()
    store_name = helper_of(config, ())
    names |= set(_of_helper(store_name, environment)) if store_name else set()
    return sorted({_HUB if is_of(name, keys_of(_HUB)) else urlsplit(f"//{_bare(name)}").netloc for name in names})


def _bare(name: str) -> str:
    return name.rpartition("://")[2]


def _of_helper(helper: str, environment: Mapping[str, str]) -> list[str]:
    """The servers that a helper keeps."""
    output = call_helper(helper, "list", "unused", environment)
    try:
        found = json.loads(output or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WherryError(Kind.INVALID, f"docker-credential-{helper} gave no list that can be read")
    return [str(name) for name in found]


def _auths(config: dict[str, Any]) -> dict[str, Any]:
    found = config.setdefault("auths", {})
    if not isinstance(found, dict):
        raise WherryError(Kind.INVALID, "docker's config.json: auths is no object", hint="mend it, or move it away")
    return found


@contextlib.contextmanager
def _changed(environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """config.json, written again whole when its content has changed: unknown keys stay, a link stays a link."""
    path = os.path.realpath(config_path(environment))
    try:
        disk.make_private(os.path.dirname(path))
        with _alone(os.path.dirname(path)):
            config = read_config(path, closed=False)  # what cannot be read must not be written over
            _auths(config)
            before = json.dumps(config)
            yield config
            if json.dumps(config) != before:
                disk.write_atomic(path, json.dumps(config, indent="\t").encode() + b"\n")
    except OSError as error:
        raise disk.os_failure(f"cannot change {path}", error) from error


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Two logins at once: one after the other."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
