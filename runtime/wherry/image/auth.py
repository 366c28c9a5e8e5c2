"""Credentials for registries: docker's config.json, its credential helpers, and whom they may be told to.

Decides which secret belongs to which registry and which token server may get it (invariant 8). Sends nothing itself.
"""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError

__all__ = [
    "Challenge",
    "Credentials",
    "call_helper",
    "config_path",
    "credentials_for",
    "helper_of",
    "is_of",
    "keys_of",
    "parse_challenges",
    "read_config",
    "realm_trusted",
]

_CONFIG_MAX = 1 << 20
_HELPER_MAX = 1 << 20
_HELPER_SECONDS = 30
_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_NOT_FOUND = "credentials not found"  # docker-credential-helpers: the word for "none stored"


class Credentials(NamedTuple):
    """A user's name and secret. `identity`: the secret is a refresh token (docker's <token>); `bearer`: it is what a
    registry wants to see, whatever its token server may be."""

    user: str
    secret: str
    identity: bool = False
    bearer: bool = False

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode("ascii")

    def __repr__(self) -> str:  # secrets do not belong in logs
        return f"Credentials({self.user!r}, ...)"


class Challenge(NamedTuple):
    """One WWW-Authenticate challenge: "bearer" or "basic" and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = rf'\s*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))\s*(?:,|$)'
_SCHEME = rf"\s*,?\s*({_WORD})(?:\s+|(?=,)|$)"


def parse_challenges(header: str) -> list[Challenge]:
    """RFC 9110, 11.6.1: schemes with parameters, separated by commas."""
    found: list[Challenge] = []
    at = 0
    header = header[:8192]
    schemes, pairs = re.compile(_SCHEME), re.compile(_PARAMETER)
    while at < len(header) and (scheme := schemes.match(header, at)):
        at = scheme.end()
        parameters: dict[str, str] = {}
        while match := pairs.match(header, at):
            quoted = match[2]
            parameters[match[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3]
            at = match.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


def credentials_for(registry: str, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """What the user stored for a registry by `docker login`: credHelpers, then credsStore, then auths."""
    environment = os.environ if environment is None else environment
    config = read_config(config_path(environment))
    keys = keys_of(registry)
    helper = helper_of(config, keys)
    if helper:
        found = _ask_helper(helper, keys[0], environment)
        if found:
            return found
    return _from_auths(config.get("auths"), keys)


def config_path(environment: Mapping[str, str]) -> str:
    """docker's config.json of this user."""
    home = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME") or "/root", ".docker")
    return os.path.join(home, "config.json")


def keys_of(registry: str) -> tuple[str, ...]:
    """The names that a registry's credentials may be stored by; the first is the one that docker writes."""
    return _HUB_KEYS if registry == _HUB else (registry,)


def read_config(path: str, *, closed: bool = True) -> dict[str, Any]:
    """docker's config.json; an absent one is empty, and so (`closed`) is one that this user may not read."""
    try:
        with open(path, "rb") as file:
            data = file.read(_CONFIG_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        if not closed:
            raise
        return {}
    try:
        value = json.loads(data) if len(data) <= _CONFIG_MAX else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WherryError(Kind.INVALID, f"{path} is not a JSON object", hint="mend it, or move it away")
    return value


def helper_of(config: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The credential helper that keeps a registry's secret, "" for the file itself."""
    helpers = config.get("credHelpers")
    for key in keys:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return str(helpers[key])
    store = config.get("credsStore")
    return store if isinstance(store, str) else ""


def call_helper(helper: str, verb: str, text: str, environment: Mapping[str, str]) -> bytes | None:
    """docker-credential-HELPER get, store, erase or list; None where it knows nothing of what was asked."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
        raise WherryError(Kind.INVALID, f"invalid credential helper {helper[:80]!r} in docker's config.json")
    program = f"docker-credential-{helper}"
    try:
        result = subprocess.run(
            [program, verb],
            input=text.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            env=dict(environment),
            check=False,
        )
    except FileNotFoundError:
        raise WherryError(Kind.PRECONDITION, f"{program} is not installed",
                          hint="docker's config.json names it (credsStore or credHelpers)") from None  # fmt: skip
    except subprocess.TimeoutExpired:
        raise WherryError(Kind.UNAVAILABLE, f"{program} did not answer within {_HELPER_SECONDS} s") from None
    output = result.stdout[:_HELPER_MAX]
    if result.returncode != 0:
        words = (output or result.stderr).decode("utf-8", "replace").strip()
        if _NOT_FOUND in words:
            return None
        raise WherryError(Kind.DENIED, f"{program} failed: {words[:200]}")
    return output


def _ask_helper(helper: str, server: str, environment: Mapping[str, str]) -> Credentials | None:
    output = call_helper(helper, "get", server, environment)
    return _helper_answer(output, f"docker-credential-{helper}") if output is not None else None


def _helper_answer(output: bytes, program: str) -> Credentials | None:
    try:
        answer = json.loads(output)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise WherryError(Kind.INVALID, f"{program} gave no credentials that can be read") from None
    return Credentials(user, secret, identity=user == "<token>") if secret else None


def _from_auths(auths: object, keys: tuple[str, ...]) -> Credentials | None:
    if not isinstance(auths, dict):
        return None
    for name, entry in auths.items():
        if is_of(str(name), keys) and isinstance(entry, dict):
            found = _auth_entry(entry, str(name))
            if found:
                return found
    return None


def is_of(name: str, keys: tuple[str, ...]) -> bool:
    """Whether an entry of config.json is a registry's. Old ones are URLs, https://host/v1/; a path beyond that names a
    namespace of podman's, not the registry."""
    bare = re.sub(r"/v[12]/?$", "", re.sub(r"^https?://", "", name)).rstrip("/")
    return name in keys or bare in keys


def _auth_entry(entry: Mapping[str, Any], name: str) -> Credentials | None:
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        return Credentials("<token>", entry["identitytoken"], identity=True)
    if isinstance(entry.get("auth"), str) and entry["auth"]:
        try:
            user, colon, secret = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise WherryError(
                Kind.INVALID, f"docker's config.json: the auth of {name} cannot be read", hint="`wherry login` again"
            )
        return Credentials(user, secret.rstrip("\0"))
    if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
        return Credentials(entry["username"], entry["password"])
    return None


def _labels(host: str) -> list[str]:
    return host.lower().rstrip(".").split(".")


def _site(host: str) -> list[str]:
    """The labels that one owner holds: two, or three below a country's second level (example.co.uk)."""
    labels = _labels(host)
    if len(labels) >= 3 and len(labels[-1]) == 2 and len(labels[-2]) <= 3:
        return labels[-3:]
    return labels[-2:]


def realm_trusted(registry_host: str, realm_host: str) -> bool:
    """Whether a registry's token server may get the registry's credentials: the same host, or the same owner's domain.

    registry-1.docker.io may name auth.docker.io; it may not name example.com.
    """
    if registry_host == realm_host:
        return True
    numeric = any(not re.search(r"[a-z]", host.lower()) or ":" in host for host in (registry_host, realm_host))
    if numeric or "." not in registry_host or "." not in realm_host:
        return False
    return _site(registry_host) == _site(realm_host)
