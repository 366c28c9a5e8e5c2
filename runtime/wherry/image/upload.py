"""One blob into a repository (distribution-spec 1.1, pushing blobs).

Decides between "it is there", a mount, one request and several, and how a broken upload goes on. Refuses to know what
the blob is. Bytes go from the file to the connection in small pieces; nothing is held in memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urljoin

from wherry.errors import Kind, WherryError
from wherry.image import disk
from wherry.image.remote import Remote
from wherry.image.sessions import Session, held
from wherry.image.transport import Response, Retry, Upload
from wherry.model import Descriptor

__all__ = ["BlobUpload"]

_PIECE = 128 << 10  # each must get through within the time of a connect: the slowest line that works is 13 KiB/s
_SMALL = 4 << 20  # sent by one request
_CHUNK = 64 << 20
_CHUNK_MIN = 1 << 20
_MOUNTS_MAX = 3  # repositories that are tried
_BYTES = {"Content-Type": "application/octet-stream"}


class BlobUpload:
    """Used by one thread, once."""

    def __init__(
        self,
        remote: Remote,
        blob: Descriptor,
        path: str,
        report: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._remote = remote
        self._what = f"{remote.what}: blob {blob.digest}"
        self._blob = blob
        self._path = path
        self._report = report
        self._stop = stop
        self._chunk, self._least = _CHUNK, _CHUNK_MIN
        self._session = Session()
        self._offset = 0  # that the registry has acknowledged
        self._sent = False
        self._taken_over = False  # what an earlier attempt left is a part of the upload

    def run(self, sources: Sequence[str] = (), ingest: str = "") -> str:
        """Bring the blob there; docker's word for how. `sources`: repositories of this registry that may have it.

        `ingest`: the directory where what a large upload goes on by is remembered.
        """
        if not ingest or self._blob.size <= _SMALL:
            return self._persist(sources)
        with held(ingest, self._blob.digest, self._remote.url("")) as self._session:
            return self._persist(sources)

    def _persist(self, sources: Sequence[str]) -> str:
        word: str = self._remote.persist(self._what, lambda: self._once(sources), lambda: self._offset)
        self._session.location = ""
        return word

    def _once(self, sources: Sequence[str]) -> str:
        if self._stop.is_set():
            raise WherryError(Kind.CONFLICT, "cancelled")
        if not self._resumed():
            if self._is_there():
                return "Pushed" if self._sent else "Layer already exists"
            mounted = self._begin(sources)
            if mounted:
                return f"Mounted from {mounted}"
        self._sent = True
        if self._blob.size <= _SMALL and not self._offset:
            self._finish(whole=True)
            return "Pushed"
        while self._offset < self._blob.size:
            self._patch()
        self._finish(whole=False)
        return "Pushed"

    # ---- before the bytes

    def _is_there(self) -> bool:
        with self._remote.send("HEAD", self._remote.url(f"blobs/{self._blob.digest}"), {}) as response:
            if response.status == 404:
                return False
            self._remote.expect(response, (200,), self._what)
            length = response.headers.get("Content-Length", "")
            return not length.isdecimal() or int(length) == self._blob.size

    def _begin(self, sources: Sequence[str]) -> str:
        """A session, or the repository that the blob was mounted from."""
        for source in sources[:_MOUNTS_MAX]:
            with contextlib.suppress(WherryError):  # no right to read there, or no such thing: then it is sent
                if self._open({"mount": self._blob.digest, "from": source}):
                    return source
                self._cancel()
        self._open({})
        return ""

    def _open(self, query: dict[str, str]) -> bool:
        with self._remote.send("POST", self._remote.url("blobs/uploads/", query), {}) as response:
            self._remote.expect(response, (201, 202) if query else (202,), self._what)
            if response.status == 201:
                return True
            self._offset = 0
            self._follow(response)
            least = response.headers.get("OCI-Chunk-Min-Length", "")
            self._least = max(_CHUNK_MIN, int(least[:12]) if least.isdecimal() else 0)
            self._chunk = max(self._chunk, self._least)
            return False

    def _cancel(self) -> None:
        location, self._session.location = self._session.location, ""
        with contextlib.suppress(WherryError, Retry):
            self._remote.send("DELETE", location, {}).close()

    def _follow(self, response: Response) -> None:
        """Each answer says where the next request goes."""
        location = response.headers.get("Location", "")
        if not location and not self._session.location:
            raise WherryError(Kind.INVALID, f"{self._what}: {self._remote.host} names no place to upload to")
        if location:
            self._session.location = urljoin(response.url, location)

    def _resumed(self) -> bool:
        """Ask how far a session of an earlier attempt is; without one, or when it is lost, begin anew."""
        if not self._session.location:
            return False
        with contextlib.suppress(WherryError):  # refused: as good as lost
            if self._asked():
                self._chunk = max(self._chunk // 4, self._least)  # on a bad line less is lost with each break
                return True
        self._offset = 0
        self._cancel()
        return False

    def _asked(self) -> bool:
        with self._remote.send("GET", self._session.location, {}) as response:
            have = _acknowledged(response) if response.status in (202, 204) else 0
            # "0-0" is said of one byte and of none: not worth going on with
            if not 0 < have <= self._blob.size:
                return False
            self._follow(response)
            self._offset, self._taken_over = have, True
        return True

    # ---- the bytes

    def _patch(self) -> None:
        start = self._offset
        end = min(start + self._chunk, self._blob.size)
        headers = {**_BYTES, "Content-Range": f"{start}-{end - 1}"}
        upload = Upload(end - start, lambda: self._pieces(start, end))
        with self._remote.send("PATCH", self._session.location, headers, upload=upload, slow=True) as response:
            if response.status == 413 and self._chunk > self._least:
                self._chunk = max(self._chunk // 4, self._least)
                return
            self._lost(response)
            self._remote.expect(response, (202, 204), self._what)
            self._follow(response)
            have = _acknowledged(response)
        if have > end and self._taken_over:
            raise self._anew("")
        if have > end:
            raise WherryError(Kind.INVALID, f"{self._what}: {self._remote.host} has {have} bytes of {end}")
        self._offset = have if have > start else end

    def _finish(self, *, whole: bool) -> None:
        digest = self._blob.digest
        place = self._session.location
        address = place + ("&" if "?" in place else "?") + f"digest={digest}"
        size = self._blob.size if whole else 0
        upload = Upload(size, lambda: self._pieces(0, size))
        with self._remote.send("PUT", address, _BYTES, upload=upload, slow=True) as response:
            self._lost(response)
            self._remote.expect(response, (201, 204), self._what)
            told = response.headers.get("Docker-Content-Digest", digest)
        if told != digest:
            raise WherryError(Kind.INVALID, f"{self._what}: the registry has {told[:140]} instead",
                              hint="the registry is damaged, or something between changes what is sent")  # fmt: skip

    def _lost(self, response: Response) -> None:
        """404: the session is gone; 416: the registry has another number of bytes than we believe."""
        if response.status == 400 and self._taken_over:
            raise self._anew(response.words())
        if response.status in (404, 416):
            raise self._anew(response.words(), keep=response.status == 416)

    def _anew(self, words: str, *, keep: bool = False) -> Retry:
        """Begin anew, or with `keep` ask again how far it is. Once also where we went on with what an earlier attempt
        left: its last bytes may have come after we asked how far it was."""
        if not keep:
            self._cancel()
        self._offset, self._taken_over = 0, False
        return Retry(f"{self._remote.host} lost the upload{words}")

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The file's bytes; what was sent is told before it is acknowledged."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:  # the connection's are another matter
            raise disk.os_failure(f"stored blob {self._blob.digest}", error) from error
        try:
            while start < end:
                if self._stop.is_set():
                    raise WherryError(Kind.CONFLICT, "cancelled")
                data = os.pread(fd, min(_PIECE, end - start), start)
                if not data:
                    raise WherryError(Kind.INVALID, f"stored blob {self._blob.digest} is truncated",
                                      hint="remove the image and pull it again")  # fmt: skip
                yield data
                start += len(data)
                self._report(start)
        finally:
            os.close(fd)


def _acknowledged(response: Response) -> int:
    """Range: 0-N, N included; 0 where it says nothing, or "0-0"."""
    match = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", response.headers.get("Range", ""))
    return int(match[1]) + 1 if match and match[1] != "0" else 0
