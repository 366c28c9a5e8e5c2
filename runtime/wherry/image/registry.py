"""An image in a registry (distribution-spec 1.1) as a source.

Decides which requests are made, as whom, and how a broken download goes on. Refuses to know where bytes end up.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Collection
from urllib.parse import urlencode, urlsplit

from wherry.errors import Kind, WherryError
from wherry.image.auth import Challenge, Credentials, credentials_for, parse_challenges, realm_trusted
from wherry.image.blobs import Partial
from wherry.image.manifest import INDEX_TYPES, MANIFEST_MAX, MANIFEST_TYPES
from wherry.image.pull import Document
from wherry.image.reference import DIGEST, Reference
from wherry.image.transport import Patience, Response, Retry, Transport, is_loopback
from wherry.model import Descriptor

__all__ = ["RegistrySource"]

_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_HUB_HOST = "registry-1.docker.io"
_ERROR_MAX = 64 << 10
_TOKEN_MAX = 1 << 20
_RANGE = r"bytes (\d+)-(\d+)/(\d+|\*)"


class RegistrySource:
    """One repository of one registry, read by many threads."""

    def __init__(
        self,
        reference: Reference,
        *,
        insecure: Collection[str] = (),
        patience: Patience | None = None,
        credentials: Callable[[str], Credentials | None] = credentials_for,
    ) -> None:
        self._reference = reference
        self._transport = Transport(insecure=insecure, patience=patience)
        self._host = _HUB_HOST if reference.registry == "docker.io" else reference.registry
        self._base = ""
        self._login = _Login(reference, self._transport, credentials)
        self._lock = threading.Lock()
        self.what = reference.familiar()

    def top(self) -> Document:
        """The manifest or index of the tag or digest."""
        return self._manifest(self._reference.digest or self._reference.tag)

    def document(self, descriptor: Descriptor) -> Document:
        """The manifest of a descriptor of an index."""
        return self._manifest(descriptor.digest, descriptor.media_type)

    def fetch(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        """Download a blob; goes on where an earlier attempt ended, also one of another process."""
        digest = partial.descriptor.digest
        resumed = partial.offset > 0
        for last in (not resumed, True):
            self._transport.persist(f"{self.what}: blob {digest}", lambda: self._blob(partial, report, stop),
                                    lambda: partial.offset)  # fmt: skip
            try:
                partial.commit()
            except WherryError:
                if last:
                    raise
                partial.restart()  # perhaps what an earlier attempt left was bad: once from the beginning
                continue
            return

    def close(self) -> None:
        self._transport.close()

    # ---- requests

    def _root(self) -> str:
        """scheme://host of the registry. Loopback and insecure ones may speak plain http; https is tried first."""
        with self._lock:
            if not self._base:
                self._base = f"https://{self._host}"
                host = urlsplit(self._base).hostname or ""
                if is_loopback(host) or self._transport.marked_insecure(self._host):
                    self._base = self._probe()
            return self._base

    def _probe(self) -> str:
        for scheme in ("https", "http"):
            with (
                contextlib.suppress(Retry, WherryError),
                self._transport.send("GET", f"{scheme}://{self._host}/v2/", {}),
            ):
                return f"{scheme}://{self._host}"
        return f"http://{self._host}"  # the real request tells what is wrong

    def _send(self, path: str, headers: dict[str, str]) -> Response:
        """GET of a path of the repository; logs in once when asked to."""
        url = f"{self._root()}/v2/{self._reference.repository}/{path}"
        for attempt in range(3):
            used = self._login.authorization()
            response = self._transport.send("GET", url, headers, authorization=used)
            if response.status != 401 or attempt == 2:
                return response
            challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            final = urlsplit(response.url).netloc != urlsplit(url).netloc
            response.close()
            if final or not self._login.answer(challenges, used, url):
                break
        raise WherryError(Kind.DENIED, f"{self.what}: {self._host} denies access",
                          hint=f"it may not exist, or needs `docker login {self._reference.registry}`")  # fmt: skip

    def _manifest(self, name: str, media_type: str = "") -> Document:
        what = f"{self.what}: manifest {name}"
        document: Document = self._transport.persist(what, lambda: self._manifest_once(name, media_type, what))
        return document

    def _manifest_once(self, name: str, media_type: str, what: str) -> Document:
        with self._send(f"manifests/{name}", {"Accept": _ACCEPT}) as response:
            self._expect(response, 200, what)
            digest = name if re.fullmatch(DIGEST, name) else ""
            document = Document(
                response.body(MANIFEST_MAX, what), [response.headers.get("Content-Type", ""), media_type], digest
            )
            told = response.headers.get("Docker-Content-Digest", "")
        for expected in (digest, told if told.partition(":")[0] == document.digest.partition(":")[0] else ""):
            if expected and expected != document.digest:
                raise WherryError(Kind.INVALID, f"{what}: the registry sent {document.digest} instead of {expected}",
                                  hint="the registry is damaged or lies; nothing of it was used")  # fmt: skip
        return document

    def _blob(self, partial: Partial, report: Callable[[int], None], stop: threading.Event) -> None:
        """One attempt to get the rest of a blob."""
        if partial.complete:
            return
        start = partial.offset
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._send(f"blobs/{partial.descriptor.digest}", headers) as response:
            if response.status == 416:
                partial.restart()
                raise Retry("the registry refuses to go on in the middle")
            self._expect(response, 206 if start and response.status == 206 else 200, f"{self.what}: blob")
            self._align(partial, response, start)
            for chunk in response.chunks(stop):
                partial.write(chunk)
                report(partial.offset)
        if not partial.complete:
            raise Retry(f"{self._host} broke off after {partial.offset} of {partial.descriptor.size} bytes")

    @staticmethod
    def _align(partial: Partial, response: Response, start: int) -> None:
        if response.status != 206:
            if start:
                partial.restart()  # the server knows no ranges
            return
        match = re.fullmatch(_RANGE, response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start or match[3] not in ("*", str(partial.descriptor.size)):
            partial.restart()
            raise Retry("the registry sent another range than asked for")

    def _expect(self, response: Response, status: int, what: str) -> None:
        if response.status == status:
            return
        words = _error_words(response)
        if response.status in (401, 403):
            raise WherryError(Kind.DENIED, f"{what}: {self._host} denies access{words}",
                              hint=f"`docker login {self._reference.registry}`, or check the name")  # fmt: skip
        if response.status == 404:
            raise WherryError(Kind.NOT_FOUND, f"{what} not found at {self._host}{words}", hint="check name and tag")
        raise WherryError(Kind.UNAVAILABLE, f"{what}: {self._host} answers {response.status}{words}")


def _error_words(response: Response) -> str:
    """distribution-spec, error codes: what the registry says, made harmless for a terminal."""
    try:
        errors = json.loads(response.body(_ERROR_MAX, "error"))["errors"]
        text = "; ".join(f"{error['code']} {error.get('message', '')}".strip() for error in errors[:3])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Retry, WherryError):
        return ""
    return " (" + "".join(c if c.isprintable() else "?" for c in text)[:300] + ")"


class _Login:
    """Authorization for one repository: nothing, basic, or a bearer token; renewed when the registry refuses it."""

    def __init__(
        self, reference: Reference, transport: Transport, credentials: Callable[[str], Credentials | None]
    ) -> None:
        self._reference = reference
        self._transport = transport
        self._lookup = credentials
        self._lock = threading.Lock()
        self._value = ""
        self._expires = float("inf")
        self._challenge: tuple[Challenge, str] | None = None

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
        found = self._lookup(self._reference.registry)
        if not found or found.identity or found.basic() == used:
            return False
        self._value = found.basic()
        return True

    def _fetch(self, challenge: Challenge, url: str) -> None:
        self._challenge = (challenge, url)
        realm = challenge.parameters["realm"]
        credentials = self._lookup(self._reference.registry)
        if credentials and not self._may_know(realm, url):
            raise WherryError(
                Kind.DENIED,
                f"{self._reference.registry} sends its users to {urlsplit(realm).netloc[:200]},"
                " which may not see their credentials",
                hint="log out of this registry to pull without credentials",
            )
        what = f"{self._reference.familiar()}: token of {urlsplit(realm).netloc[:200]}"
        started = time.monotonic()
        token, seconds = self._transport.persist(what, lambda: self._token(challenge, realm, credentials, what))
        self._value = f"Bearer {token}"
        self._expires = started + max(seconds - 10, 1)

    @staticmethod
    def _may_know(realm: str, url: str) -> bool:
        asked, registry = urlsplit(realm), urlsplit(url)
        if asked.scheme == "http" and registry.scheme == "https":
            return False
        return realm_trusted(registry.hostname or "", asked.hostname or "")

    def _token(self, challenge: Challenge, realm: str, credentials: Credentials | None, what: str) -> tuple[str, float]:
        scope = f"repository:{self._reference.repository}:pull"
        query = {"service": challenge.parameters.get("service", ""), "scope": scope}
        if credentials and credentials.identity:
            form = {**query, "grant_type": "refresh_token", "client_id": "wherry", "refresh_token": credentials.secret}
            response = self._transport.send("POST", realm, {}, data=form)
        else:
            joined = realm + ("&" if urlsplit(realm).query else "?") + urlencode(query)
            response = self._transport.send("GET", joined, {}, authorization=credentials.basic() if credentials else "")
        with response:
            if response.status in (401, 403):
                raise WherryError(
                    Kind.DENIED,
                    f"{what}: {'wrong credentials' if credentials else 'credentials are needed'}",
                    hint=f"docker login {self._reference.registry}",
                )
            if response.status != 200:
                raise WherryError(Kind.UNAVAILABLE, f"{what}: the answer is {response.status}{_error_words(response)}")
            return _parse_token(response.body(_TOKEN_MAX, what), what)


def _parse_token(data: bytes, what: str) -> tuple[str, float]:
    try:
        answer = json.loads(data)
        token = answer.get("token") or answer.get("access_token")
        seconds = float(answer.get("expires_in") or 60)
    except (ValueError, AttributeError, TypeError, RecursionError):
        token, seconds = None, 0.0
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,65536}", token):
        raise WherryError(Kind.INVALID, f"{what}: no token in the answer")
    return token, seconds
