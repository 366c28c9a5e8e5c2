"""One repository at one endpoint (distribution-spec 1.1): requests with the right authorization, answers as kinds.

Decides the scheme, when to log in, and what a status means. Refuses to know what is read or written.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from wherry.errors import Kind, WherryError
from wherry.image.auth import parse_challenges
from wherry.image.bearer import Login
from wherry.image.hosts import Endpoint, Reach
from wherry.image.reference import Reference
from wherry.image.transport import Response, Retry, Transport, Upload, is_loopback
from wherry.image.trust import origin_of

__all__ = ["Remote"]

#: what a status that nobody expected means: the kind, the words, what to do. Others are UNAVAILABLE.
_MEANINGS = {
    400: (Kind.INVALID, "refuses it", ""),
    401: (Kind.DENIED, "denies access", "`wherry login {registry}`, or check the name"),
    403: (Kind.DENIED, "denies access", "`wherry login {registry}`, or check the name"),
    404: (Kind.NOT_FOUND, "does not have it: not found", "check name and tag"),
    405: (Kind.UNSUPPORTED, "does not offer this", "it may be a mirror, which only gives"),
    409: (Kind.CONFLICT, "refuses it: in conflict with what is there", "an immutable tag?"),
    413: (Kind.EXHAUSTED, "takes nothing as large", "raise the limit of the registry, or of the proxy before it"),
    415: (Kind.UNSUPPORTED, "does not take this media type", ""),
    422: (Kind.INVALID, "refuses it", ""),
    507: (Kind.EXHAUSTED, "has no space left", ""),
}


class Remote:
    """Used by many threads. `scopes`: further rights that a token is asked for.

    `login`: ask for none, but for an identity token.
    """

    def __init__(
        self,
        reference: Reference,
        endpoint: Endpoint,
        reach: Reach,
        *,
        actions: str = "pull",
        scopes: Iterable[str] = (),
        attempts: int = 0,
        login: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.host = endpoint.host
        self._registry = reference.registry
        self._repository = reference.repository
        self.what = reference.familiar()
        patience = reach.patience._replace(attempts=attempts) if attempts else reach.patience
        self._transport = Transport(insecure=reach.insecure, patience=patience, own=endpoint.origin)
        wanted = [] if login else [f"repository:{reference.repository}:{actions}", *scopes]
        account = endpoint.account
        self._login = Login(account, self._transport, lambda: reach.credentials(account), wanted, offline=login)
        self._base = endpoint.base
        self._lock = threading.Lock()

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The address of a path of the repository. A mirror is told by `ns` whose it is (containerd's hosts.md)."""
        words = {**(query or {}), **({"ns": self.endpoint.namespace} if self.endpoint.namespace else {})}
        place = f"{quote(self._repository)}/{path}" if self._repository else path
        return f"{self._root()}/{place}" + (f"?{urlencode(words)}" if words else "")

    @property
    def identity(self) -> str:
        """The identity token that came with the last token."""
        return self._login.identity

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, upload: Upload | None = None, slow: bool = False
    ) -> Response:
        """A request; logs in when asked to. Credentials are for the endpoint's own origin."""
        at_home = origin_of(url) == origin_of(self._root())
        for attempt in range(3):
            used = self._login.authorization() if at_home else ""
            response = self._transport.send(method, url, headers, authorization=used, upload=upload, slow=slow)
            if response.status != 401 or attempt == 2 or not at_home:
                return response
            challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            elsewhere = urlsplit(response.url).netloc != urlsplit(url).netloc
            response.close()
            if elsewhere or not self._login.answer(challenges, used, url):
                break
        if not self._repository:
            raise WherryError(Kind.DENIED, f"login to {self._registry}: incorrect username or password")
        raise WherryError(Kind.DENIED, f"{self.what}: {self.host} denies access",
                          hint=f"it may not exist, or needs `wherry login {self._registry}`")  # fmt: skip

    def persist(self, what: str, attempt: Callable[[], Any], progressed: Callable[[], int] = lambda: 0) -> Any:
        """See Transport.persist."""
        return self._transport.persist(what, attempt, progressed)

    def expect(self, response: Response, statuses: Iterable[int], what: str) -> None:
        """One of these, or the error that the status means."""
        if response.status in statuses:
            return
        words = response.words()
        kind, meaning, hint = _MEANINGS.get(response.status, (Kind.UNAVAILABLE, f"answers {response.status}", ""))
        raise WherryError(kind, f"{what}: {self.host} {meaning}{words}", hint=hint.format(registry=self._registry))

    def abort(self) -> None:
        """See Transport.abort."""
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def _root(self) -> str:
        """The API's address. Loopback and insecure registries may speak plain http; who speaks TLS is asked by it."""
        with self._lock:
            self._base = self._base or self._probe()
            return self._base

    def _probe(self) -> str:
        """A plain question without a secret: a server that speaks TLS answers 400, a redirect to https, or not at all.

        Asked in TLS first, each plain registry would cost the loading of all certificate authorities, 20 ms. On a
        network TLS comes first all the same, as docker does: who can answer on port 80 must not get the credentials.
        """
        plain, secure = (f"{scheme}://{self.host}/v2" for scheme in ("http", "https"))
        if not is_loopback(urlsplit(secure).hostname or ""):
            with contextlib.suppress(Retry, WherryError):
                self._transport.send("GET", f"{secure}/", {}).close()
                return secure
        with contextlib.suppress(Retry, WherryError), self._transport.send("GET", f"{plain}/", {}) as response:
            if response.status != 400 and response.url.startswith("http:"):
                return plain
        with contextlib.suppress(Retry):
            self._transport.send("GET", f"{secure}/", {}).close()
            return secure
        return plain  # the real request tells what is wrong
