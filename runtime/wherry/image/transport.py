"""HTTP for registries: the only module that knows requests.

Decides origins (which scheme, where credentials may go, which redirects are followed), deadlines and retries. Refuses
to know what a manifest or a blob is.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import random
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urljoin, urlsplit

from wherry.errors import Kind, WherryError
from wherry.image.trust import Origin, context, host_of, origin_of

if TYPE_CHECKING:
    import ssl

    import requests
    from requests.adapters import HTTPAdapter

__all__ = ["Patience", "Response", "Retry", "Transport", "Upload", "is_loopback"]

_REDIRECTS = 8
#: host[:port] and nothing else: of other forms (a user's name, a backslash) two parsers may see two hosts (invariant 8)
_NETLOC = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_CHUNK = 256 << 10
_ERROR_MAX = 64 << 10
_CONNECTIONS = 8
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_CURES = {
    "name or service not known": "is the name right, and does this host reach its name servers?",
    "no address associated with hostname": "is the name right, and does this host reach its name servers?",
    "it does not speak tls": 'if you trust the network: server = "http://HOST" in hosts.d/HOST/hosts.toml',
    "connection refused": "nothing listens there: is the port right, and does the registry run?",
}
_REFUSALS = (
    ("(?i)alert certificate required|alert bad certificate|alert handshake failure|alert unknown ca",
     "it wants a client certificate that it trusts", "name one in hosts.d/HOST/hosts.toml: client = [[CERT, KEY]]"),
    ("CERTIFICATE_VERIFY_FAILED|doesn't match",
     "the TLS certificate is not trusted", "name its authority in hosts.d/HOST/hosts.toml: ca = FILE"),
    ("Tunnel connection failed: 40[37]", "the proxy refuses", "does HTTPS_PROXY name a user and password of it?"),
)  # fmt: skip


class Patience(NamedTuple):
    """Deadlines in seconds, and how often something is tried again."""

    connect: float = 10.0
    read: float = 30.0  # of one read
    document: float = 60.0  # of a whole small answer
    window: float = 60.0  # within which a large one must bring `window_bytes`
    window_bytes: int = 16 << 10
    settle: float = 300.0  # of the answer to an upload's end: the registry reads it all again
    attempts: int = 5
    pause: float = 0.5  # doubled each time
    longest_pause: float = 30.0
    longest_wait: float = 120.0  # that a registry may ask for (Retry-After)


class Upload(NamedTuple):
    """A request's body of `size` bytes; `pieces` begins anew each time: a redirect sends it again."""

    size: int
    pieces: Callable[[], Iterator[bytes]]


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


class Response:
    """One answer; `read` gives raw bytes under a deadline. Close it."""

    def __init__(self, inner: requests.Response, patience: Patience) -> None:
        self._inner = inner
        self._patience = patience
        self.status = inner.status_code
        self.headers = inner.headers
        self.url = inner.url
        self._words: str | None = None

    def chunks(self, stop: threading.Event | None = None) -> Iterator[bytes]:
        """The body. Retry when the connection breaks or brings too little for too long."""
        since, got = time.monotonic(), 0
        while not (stop and stop.is_set()):
            with _translated(self.url):
                data = self._read()
            if not data:
                return
            yield data
            got += len(data)
            if time.monotonic() - since > self._patience.window:
                if got < self._patience.window_bytes:
                    raise Retry(f"{host_of(self.url)} sends too slowly")
                since, got = time.monotonic(), 0
        raise WherryError(Kind.CONFLICT, "cancelled")

    def _read(self) -> bytes:
        raw = self._inner.raw
        read = functools.partial(getattr(raw, "read1", raw.read), _CHUNK, decode_content=False)
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return cast(bytes, read())
        # one read takes in as many bytes of a chunk's size, or of its extensions, as drip in
        return cast(bytes, _in_time(raw.connection, read, self._patience.window))

    def body(self, limit: int, what: str) -> bytes:
        """The whole of a small body; one larger than `limit` is refused, whatever Content-Length says."""
        data, deadline = bytearray(), time.monotonic() + self._patience.document
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise WherryError(Kind.INVALID, f"{what}: {host_of(self.url)} sends more than {limit} bytes")
            if time.monotonic() > deadline:
                raise Retry(f"{host_of(self.url)} takes too long for {what}")
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and len(data) < int(length):
            raise Retry(f"{host_of(self.url)} broke off after {len(data)} of {length} bytes")
        return bytes(data)

    def words(self) -> str:
        """distribution-spec, error codes: what the registry says, made harmless for a terminal."""
        if self._words is None:
            self._words = self._read_words()
        return self._words

    def _read_words(self) -> str:
        try:
            errors = json.loads(self.body(_ERROR_MAX, "error"))["errors"]
            text = "; ".join(f"{error['code']} {error.get('message', '')}".strip() for error in errors[:3])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Retry, WherryError):
            return ""
        return " (" + "".join(c if c.isprintable() else "?" for c in text)[:300] + ")"

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _translated:
    """requests' and urllib3's errors as ours: what may pass as Retry, what cannot as WherryError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        import requests
        import urllib3

        if error is None or isinstance(error, WherryError):
            return
        self._settled(error)
        if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
            raise WherryError(Kind.INVALID, f"cannot ask {self._url[:200]!r}: {error}") from error
        if isinstance(error, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)):
            why = "it does not speak TLS" if "WRONG_VERSION_NUMBER" in str(error) else _short(error)
            raise Retry(f"{host_of(self._url)}: {why}", cure=_CURES.get(why.lower(), "")) from error

    def _settled(self, error: BaseException) -> None:
        """What no second attempt would change."""
        text, host = str(error), host_of(self._url)
        for pattern, words, hint in _REFUSALS:
            if re.search(pattern, text):
                raise WherryError(Kind.DENIED, f"{host}: {words} ({_short(error)})", hint=hint) from error


def _short(error: BaseException) -> str:
    """The innermost reason, without urllib3's object names."""
    text = str(getattr(error, "reason", None) or (error.args[0] if error.args else error))
    reason = r"\[Errno -?\d+\] ([^')\"]+)|(timed out|[Rr]efused|[Nn]ame or service not known)"
    inner = re.search(rf"(?:Caused by \w+\()?.*?(?:{reason})", text)
    return ((inner[1] or inner[2]) if inner else text)[:200]


class _Sized:
    """An upload as requests takes it: pieces under a Content-Length."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    def __iter__(self) -> Iterator[bytes]:
        return self._upload.pieces()

    def __len__(self) -> int:
        return self._upload.size


class Transport:
    """Requests to one registry and to where it redirects, with one pool of connections. Used by many threads.

    `own`: what was set for the registry's origin; nobody else sees its certificate and headers.
    """

    def __init__(
        self, *, insecure: Collection[str] = (), patience: Patience | None = None, own: Origin | None = None
    ) -> None:
        self.patience = patience or Patience()
        self._insecure = frozenset(insecure)
        self._own = own or Origin()
        self._session: requests.Session | None = None
        self._secure = False
        self._answered = False
        self._lock = threading.Lock()
        self._wires = _Wires()

    def plain_allowed(self, url: str) -> bool:
        """Whether plain http may be spoken to the host of `url`."""
        return is_loopback(urlsplit(url).hostname or "") or self.marked_insecure(host_of(url)) or self._is_own(url)

    def marked_insecure(self, netloc: str) -> bool:
        return netloc in self._insecure

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        authorization: str = "",
        form: Mapping[str, str] | None = None,
        upload: Upload | None = None,
        slow: bool = False,
    ) -> Response:
        """One request, redirects followed by hand: Authorization stays with its origin, https never ends in http.

        `slow`: the answer may take long.
        """
        first = origin_of(url)
        for _ in range(_REDIRECTS):
            self._check(url)
            given = {"Authorization": authorization} if authorization and origin_of(url) == first else {}
            own = dict(self._own.headers) if self._is_own(url) else {}
            response = self._once(method, url, {**own, **headers, **given}, form or upload, slow=slow)
            if response.status not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return response
            response.close()
            target = _redirected(url, response)
            if form is not None:
                raise WherryError(Kind.DENIED, f"{host_of(url)} redirects a request that carries a secret")
            if method not in ("GET", "HEAD") and response.status not in (307, 308):
                raise WherryError(Kind.INVALID, f"{host_of(url)} answers {method} with a redirect ({response.status})")
            url = target
        raise WherryError(Kind.UNAVAILABLE, f"{host_of(url)} redirects in a loop")

    def persist(self, what: str, attempt: Callable[[], Any], progressed: Callable[[], int] = lambda: 0) -> Any:
        """Call until it succeeds or patience ends; an attempt that brought enough starts the count again: a server that
        drips must not hold us for ever."""
        tries, seen = 0, progressed()
        while True:
            try:
                return attempt()
            except Retry as error:
                self._wires.check()
                if progressed() >= seen + self.patience.window_bytes:
                    tries, seen = 0, progressed()
                tries += 1
                if error.after > self.patience.longest_wait:
                    hint = f"it asks to wait {error.after:.0f} seconds; a limit may be higher after `wherry login`"
                    raise WherryError(Kind.UNAVAILABLE, f"{what}: {error}", hint=hint) from error
                if error.cure and not self._answered:  # a registry that was there a moment ago may come back
                    raise WherryError(Kind.UNAVAILABLE, f"{what}: {error}", hint=error.cure) from error
                if tries >= self.patience.attempts:
                    raise WherryError(Kind.UNAVAILABLE, f"{what}: {error} (tried {tries} times)",
                                      hint="try again later; what is here already is kept") from error  # fmt: skip
                self._pause(tries, error.after)

    def abort(self) -> None:
        """Nobody waits any more: cut the connections, so that every request in every thread ends now."""
        self._wires.cut()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _pause(self, tries: int, after: float) -> None:
        patience = self.patience
        pause = patience.pause * 2 ** (tries - 1) * (0.5 + random.random())  # noqa: S311 - jitter, no secret
        self._wires.sleep(max(after, min(pause, patience.longest_pause)))

    def _is_own(self, url: str) -> bool:
        return bool(self._own.url) and origin_of(url) == origin_of(self._own.url)

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not re.fullmatch(_NETLOC, parts.netloc):
            raise WherryError(Kind.INVALID, f"cannot fetch {url[:200]!r}: not http or https, or no plain host")
        if parts.scheme == "http" and not self.plain_allowed(url):
            hint = 'if you trust the network: server = "http://HOST" in hosts.d/HOST/hosts.toml'
            raise WherryError(Kind.DENIED, f"{host_of(url)} wants plain http", hint=hint)

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], data: Mapping[str, str] | Upload | None, *, slow: bool
    ) -> Response:
        self._wires.check()
        session = self._open(url)
        body: Any = (_Sized(data) if data.size else b"") if isinstance(data, Upload) else data
        verify = not (self.marked_insecure(host_of(url)) or (self._own.skip_verify and self._is_own(url)))
        read = self.patience.settle if slow else self.patience.read
        with _translated(url):
            inner = session.request(
                method, url, headers=dict(headers), data=body, stream=True, allow_redirects=False, verify=verify,
                timeout=(self._own.connect or self.patience.connect, read), proxies=_proxies(url),
            )  # fmt: skip
        self._answered = True
        response = Response(inner, self.patience)
        if response.status in _TRANSIENT:
            words, after = response.words(), _retry_after(response.headers.get("Retry-After", ""))
            response.close()
            raise Retry(f"{host_of(url)} answers {response.status}{words}", after)
        return response

    def _open(self, url: str) -> requests.Session:
        with self._lock:
            if self._session is None:
                import requests

                self._session = requests.Session()
                self._session.trust_env = False  # ~/.netrc would add credentials behind our back
                self._session.headers.update({"User-Agent": "wherry", "Accept-Encoding": "identity"})
                self._session.mount("http://", _adapter(self._wires))
            if not self._secure and url.startswith("https:"):
                self._secure = True
                self._mount_tls(self._session)
            return self._session

    def _mount_tls(self, session: requests.Session) -> None:
        """An authority that was added for a registry holds for its token server too; nothing else of it does."""
        own = self._own
        session.mount("https://", _adapter(self._wires, context(own, private=False, verify=True)))
        if own.url and (own.client or own.skip_verify):
            tls = context(own, private=True, verify=not own.skip_verify)
            session.mount(f"{own.url}/", _adapter(self._wires, tls))
        for netloc in self._insecure:
            session.mount(f"https://{netloc}/", _adapter(self._wires, context(own, private=False, verify=False)))
        if own.skip_verify or self._insecure:
            import urllib3

            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it was asked for


class _Wires:
    """The connections in use, so that another thread can end what waits for one."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._cut = threading.Event()

    def add(self, connection: Any) -> None:
        with self._lock:
            self._open.add(connection)
        if self._cut.is_set():  # it was being made while the others were cut
            self.cut()

    def cut(self) -> None:
        """End all of them; `check` raises from now on."""
        self._cut.set()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _shut(connection)

    def check(self) -> None:
        if self._cut.is_set():
            raise WherryError(Kind.CONFLICT, "cancelled")

    def sleep(self, seconds: float) -> None:
        self._cut.wait(seconds)
        self.check()


def _adapter(wires: _Wires, tls: ssl.SSLContext | None = None) -> HTTPAdapter:
    """Connections that `wires` knows. requests reads files of certificates at each one; here a context is made once."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *words: Any, **more: Any) -> Any:
            super().init_poolmanager(*words, ssl_context=tls, **more)
            self.poolmanager.pool_classes_by_scheme = _pools(wires)

        def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
            manager = super().proxy_manager_for(proxy, ssl_context=tls, **more)
            if proxy.lower().startswith("http"):  # SOCKS has pools of its own, without which it would be no proxy
                manager.pool_classes_by_scheme = _pools(wires)
            return manager

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
            del url, cert
            conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"

    return Adapter(pool_maxsize=_CONNECTIONS)


def _pools(wires: _Wires) -> dict[str, type]:
    """urllib3's pools with connections that tell `wires` of themselves."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            wires.add(self)

        def getresponse(self) -> Any:
            return _in_time(self, super().getresponse, 2 * cast(float, self.timeout))

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            wires.add(self)

        def getresponse(self) -> Any:
            return _in_time(self, super().getresponse, 2 * cast(float, self.timeout))

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _in_time(connection: Any, read: Callable[[], Any], seconds: float) -> Any:
    """All that a read takes within `seconds`: each byte of a drip would begin the socket's own time anew."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        _shut(connection)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        answer = read()
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError("timed out")
    return answer


def _shut(connection: Any) -> None:
    """End a connection under whoever reads from it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # closed meanwhile
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # of an SSLSocket too, without a word to its peer


def _redirected(url: str, response: Response) -> str:
    target = urljoin(url, response.headers["Location"])
    scheme = urlsplit(target).scheme
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise WherryError(Kind.DENIED, f"{host_of(url)} redirects from https to {scheme or 'nowhere'}")
    return target


def _proxies(url: str) -> dict[str, str]:
    from requests.utils import get_environ_proxies

    return {} if is_loopback(urlsplit(url).hostname or "") else get_environ_proxies(url)


def _retry_after(text: str) -> float:
    """RFC 9110, 10.2.3: seconds, or a date."""
    if text.isdecimal():
        return float(text[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
