"""HTTP for registries: the only module that knows requests.

Decides origins (which scheme, where credentials may go, which redirects are followed), deadlines and retries. Refuses
to know what a manifest or a blob is.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    import requests

__all__ = ["Patience", "Response", "Retry", "Transport", "is_loopback", "origin_of"]

_REDIRECTS = 8
_CHUNK = 256 << 10
_SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CURES = {
    "name or service not known": "is the name right, and does this host reach its name servers?",
    "no address associated with hostname": "is the name right, and does this host reach its name servers?",
    "connection refused": "nothing listens there: is the port right, and does the registry run?",
}


class Patience(NamedTuple):
    """Deadlines in seconds, and how often something is tried again."""

    connect: float = 10.0
    read: float = 30.0  # of one read
    document: float = 60.0  # of a whole small answer
    window: float = 60.0  # within which a large one must bring `window_bytes`
    window_bytes: int = 16 << 10
    attempts: int = 5
    pause: float = 0.5  # doubled each time
    longest_pause: float = 30.0


class Retry(Exception):
    """A failure that may pass: the connection broke, the server is busy. With `cure`: one that hardly will."""

    def __init__(self, why: str, after: float = 0.0, cure: str = "") -> None:
        super().__init__(why)
        self.after = after
        self.cure = cure


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1 and localhost: plain http is allowed there, as docker does."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what credentials are bound to."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError:
        port = 0
    return parts.scheme, (parts.hostname or "").lower(), port


class Response:
    """One answer; `read` gives raw bytes under a deadline. Close it."""

    def __init__(self, inner: requests.Response, patience: Patience) -> None:
        self._inner = inner
        self._patience = patience
        self.status = inner.status_code
        self.headers = inner.headers
        self.url = inner.url

    def chunks(self, stop: threading.Event | None = None) -> Iterator[bytes]:
        """The body. Retry when the connection breaks or brings too little for too long."""
        read = getattr(self._inner.raw, "read1", self._inner.raw.read)
        since, got = time.monotonic(), 0
        while not (stop and stop.is_set()):
            with _translated(self.url):
                data: bytes = read(_CHUNK, decode_content=False)
            if not data:
                return
            yield data
            got += len(data)
            if time.monotonic() - since > self._patience.window:
                if got < self._patience.window_bytes:
                    raise Retry(f"{_host(self.url)} sends too slowly")
                since, got = time.monotonic(), 0
        raise WherryError(Kind.CONFLICT, "cancelled")

    def body(self, limit: int, what: str) -> bytes:
        """The whole of a small body; one larger than `limit` is refused, whatever Content-Length says."""
        data, deadline = bytearray(), time.monotonic() + self._patience.document
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise WherryError(Kind.INVALID, f"{what}: {_host(self.url)} sends more than {limit} bytes")
            if time.monotonic() > deadline:
                raise Retry(f"{_host(self.url)} takes too long for {what}")
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and len(data) < int(length):
            raise Retry(f"{_host(self.url)} broke off after {len(data)} of {length} bytes")
        return bytes(data)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


class _translated:
    """requests' and urllib3's errors as ours: what may pass as Retry, what cannot as WherryError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        import requests
        import urllib3

        if isinstance(error, requests.exceptions.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise WherryError(
                Kind.DENIED, f"{_host(self._url)}: the TLS certificate is not trusted ({_short(error)})",
                hint="install its certificate authority, or mark the registry insecure",
            ) from error  # fmt: skip
        if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
            raise WherryError(Kind.INVALID, f"invalid address {self._url[:200]!r}") from error
        if isinstance(error, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)):
            why = _short(error)
            raise Retry(f"{_host(self._url)}: {why}", cure=_CURES.get(why.lower(), "")) from error


def _short(error: BaseException | None) -> str:
    """The innermost reason, without urllib3's object names."""
    text = str(getattr(error, "reason", None) or (error.args[0] if error and error.args else error))
    reason = r"\[Errno -?\d+\] ([^')\"]+)|(timed out|[Rr]efused|[Nn]ame or service not known)"
    inner = re.search(rf"(?:Caused by \w+\()?.*?(?:{reason})", text)
    return ((inner[1] or inner[2]) if inner else text)[:200]


class Transport:
    """Requests to one registry and to where it redirects, with one pool of connections. Used by many threads."""

    def __init__(self, *, insecure: Collection[str] = (), patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._insecure = frozenset(insecure)
        self._session: requests.Session | None = None
        self._answered = False
        self._lock = threading.Lock()

    def plain_allowed(self, url: str) -> bool:
        """Whether plain http may be spoken to the host of `url`."""
        parts = urlsplit(url)
        return is_loopback(parts.hostname or "") or self.marked_insecure(parts.netloc.rpartition("@")[2])

    def marked_insecure(self, netloc: str) -> bool:
        return netloc in self._insecure

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        authorization: str = "",
        data: Mapping[str, str] | None = None,
    ) -> Response:
        """One request, redirects followed by hand: Authorization stays with its origin, https never ends in http."""
        first = origin_of(url)
        for _ in range(_REDIRECTS):
            self._check(url)
            own = {**headers, **({"Authorization": authorization} if authorization and origin_of(url) == first else {})}
            response = self._once(method, url, own, data)
            if response.status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise WherryError(
                    Kind.DENIED, f"{_host(url)} redirects from https to {urlsplit(target).scheme or 'nowhere'}"
                )
            if data is not None:
                raise WherryError(Kind.DENIED, f"{_host(url)} redirects a request that carries a secret")
            url = target
        raise WherryError(Kind.UNAVAILABLE, f"{_host(url)} redirects in a loop")

    def persist(self, what: str, attempt: Callable[[], Any], progressed: Callable[[], int] = lambda: 0) -> Any:
        """Call until it succeeds or patience ends; an attempt that brought something new starts the count again."""
        tries, seen = 0, progressed()
        while True:
            try:
                return attempt()
            except Retry as error:
                if progressed() > seen:
                    tries, seen = 0, progressed()
                tries += 1
                if error.cure and not self._answered:  # a registry that was there a moment ago may come back
                    raise WherryError(Kind.UNAVAILABLE, f"{what}: {error}", hint=error.cure) from error
                if tries >= self.patience.attempts:
                    raise WherryError(Kind.UNAVAILABLE, f"{what}: {error} (tried {tries} times)",
                                      hint="try again later; what is here already is kept") from error  # fmt: skip
                self._pause(tries, error.after)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _pause(self, tries: int, after: float) -> None:
        patience = self.patience
        pause = max(after, patience.pause * 2 ** (tries - 1) * (0.5 + random.random()))  # noqa: S311 - jitter, no secret
        time.sleep(min(pause, patience.longest_pause))

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WherryError(Kind.INVALID, f"cannot fetch {url[:200]!r}: not http or https")
        if parts.scheme == "http" and not self.plain_allowed(url):
            raise WherryError(
                Kind.DENIED, f"{_host(url)} wants plain http", hint="mark it insecure if you trust the network"
            )

    def _once(self, method: str, url: str, headers: Mapping[str, str], data: Mapping[str, str] | None) -> Response:
        session = self._open()
        verify: bool | str = not self.marked_insecure(_host(url)) and _certificates()
        with _translated(url):
            inner = session.request(
                method, url, headers=dict(headers), data=data, stream=True, allow_redirects=False, verify=verify,
                timeout=(self.patience.connect, self.patience.read), proxies=_proxies(url),
            )  # fmt: skip
        self._answered = True
        response = Response(inner, self.patience)
        if response.status in _TRANSIENT:
            response.close()
            raise Retry(
                f"{_host(url)} answers {response.status}", _retry_after(response.headers.get("Retry-After", ""))
            )
        return response

    def _open(self) -> requests.Session:
        with self._lock:
            if self._session is None:
                import requests
                from requests.adapters import HTTPAdapter

                self._session = requests.Session()
                self._session.trust_env = (
                    False  # ~/.netrc would add credentials behind our back; proxies are read below
                )
                self._session.headers.update({"User-Agent": "wherry", "Accept-Encoding": "identity"})
                for scheme in ("http://", "https://"):
                    self._session.mount(scheme, HTTPAdapter(pool_maxsize=8))
            return self._session


def _certificates() -> bool | str:
    for path in (os.environ.get("SSL_CERT_FILE", ""), _SYSTEM_CERTIFICATES):
        if path and os.path.exists(path):
            return path
    return True


def _proxies(url: str) -> dict[str, str]:
    from requests.utils import get_environ_proxies

    return {} if is_loopback(urlsplit(url).hostname or "") else get_environ_proxies(url)


def _retry_after(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
