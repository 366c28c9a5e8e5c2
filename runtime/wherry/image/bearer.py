"""Authorization for one repository: nothing, basic, or a bearer token, renewed when the registry refuses it.

Decides what is answered to a challenge and which token server may see a secret (invariant 8). Refuses to know where
secrets are kept and what the requests are about.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlencode, urlsplit

from wherry.errors import Kind, WherryError
from wherry.image.auth import Challenge, Credentials, realm_trusted
from wherry.image.transport import Transport
from wherry.image.trust import host_of

__all__ = ["Login"]

_TOKEN_MAX = 1 << 20
_CLIENT = "wherry"


class Login:
    """Answers challenges of `registry`. `scopes`: what a token is asked for.

    `offline`: also ask for an identity token, which `identity` then is (docker's `login`).
    """

    def __init__(
        self,
        registry: str,
        transport: Transport,
        lookup: Callable[[], Credentials | None],
        scopes: Iterable[str] = (),
        *,
        offline: bool = False,
    ) -> None:
        self._registry = registry
        self._transport = transport
        self._lookup = lookup
        self._scopes = list(scopes)
        self._offline = offline
        self._lock = threading.Lock()
        self._value = ""
        self._expires = float("inf")
        self._challenge: tuple[Challenge, str] | None = None
        self.identity = ""

    def authorization(self) -> str:
        """The header's value, "" for none; a token about to expire is renewed."""
        with self._lock:
            if self._challenge and time.monotonic() > self._expires:
                self._fetch(*self._challenge)
            return self._value

    def answer(self, challenges: list[Challenge], used: str, url: str) -> bool:
        """Answer a 401; False when there is nothing more to offer."""
        with self._lock:
            if self._value != used:  # another thread has logged in meanwhile
                return True
            for challenge in challenges:
                if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                    if used.startswith("Bearer ") and challenge.parameters.get("error") == "insufficient_scope":
                        return False
                    self._fetch(challenge, url)
                    return self._value != used
                if challenge.scheme == "basic":
                    return self._basic(used)
            return False

    def _basic(self, used: str) -> bool:
        found = self._lookup()
        if not found or found.identity or found.bearer or found.basic() == used:
            return False
        self._value = found.basic()
        return True

    def _fetch(self, challenge: Challenge, url: str) -> None:
        self._challenge = (challenge, url)
        realm = challenge.parameters["realm"]
        credentials = self._lookup()
        if credentials and credentials.bearer:
            self._value = f"Bearer {credentials.secret}"
            return
        if credentials and not _may_know(realm, url):
            raise WherryError(
                Kind.DENIED,
                f"{self._registry} sends its users to {host_of(realm)[:200]}, which may not see their credentials",
                hint="log out of this registry to pull without credentials",
            )
        what = f"{self._registry}: token of {host_of(realm)[:200]}"
        started = time.monotonic()
        token, seconds = self._transport.persist(what, lambda: self._token(challenge, realm, credentials, what))
        self._value = f"Bearer {token}"
        self._expires = started + max(seconds - 10, 1)

    def _token(self, challenge: Challenge, realm: str, credentials: Credentials | None, what: str) -> tuple[str, float]:
        send, service = self._transport.send, challenge.parameters.get("service", "")
        if credentials and credentials.identity:
            query = {"service": service, **({"scope": " ".join(self._scopes)} if self._scopes else {})}
            form = {**query, "grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": credentials.secret}
            response = send("POST", realm, {}, form=form)
        else:
            words = [("service", service), *(("scope", scope) for scope in self._scopes)]
            if self._offline and credentials:
                words += [("account", credentials.user), ("client_id", _CLIENT), ("offline_token", "true")]
            joined = realm + ("&" if urlsplit(realm).query else "?") + urlencode(words)
            response = send("GET", joined, {}, authorization=credentials.basic() if credentials else "")
        with response:
            if response.status in (400, 401, 403):  # 400: how OAuth 2 refuses a refresh token
                why = "wrong credentials" if credentials else "credentials are needed"
                raise WherryError(Kind.DENIED, f"{what}: {why}", hint=f"wherry login {self._registry}")
            if response.status != 200:
                raise WherryError(Kind.UNAVAILABLE, f"{what}: the answer is {response.status}{response.words()}")
            return self._taken(response.body(_TOKEN_MAX, what), what)

    def _taken(self, data: bytes, what: str) -> tuple[str, float]:
        try:
            answer = json.loads(data)
            token = answer.get("token") or answer.get("access_token")
            seconds = float(answer.get("expires_in") or 60)
            identity = answer.get("refresh_token") if self._offline else ""
        except (ValueError, AttributeError, TypeError, RecursionError):
            token, seconds, identity = None, 0.0, ""
        if not _is_token(token):
            raise WherryError(Kind.INVALID, f"{what}: no token in the answer")
        self.identity = identity if _is_token(identity) else ""
        return token, seconds


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\x21-\x7e]{1,65536}", value))


def _may_know(realm: str, url: str) -> bool:
    asked, registry = urlsplit(realm), urlsplit(url)
    if asked.scheme == "http" and registry.scheme == "https":
        return False
    return realm_trusted(registry.hostname or "", asked.hostname or "")
