"""What a build is asked, and what it tells while it goes on. Decides nothing, does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from wherry.errors import Kind, WherryError

if TYPE_CHECKING:
    from wherry.image.dockerfile import Instruction

__all__ = ["BuildEvent", "BuildOptions", "Built", "CanceledError", "CommandFailed", "Secret", "StepFailed"]


class Secret(NamedTuple):
    """One --secret: from a file of the caller, or a value that is known already."""

    id: str
    path: str = ""
    value: bytes | None = None


class BuildOptions(NamedTuple):
    """What `build` was asked, as typed values; paths are absolute.

    `context`: a directory, a tar file, or "-": `stdin` gives a tar or a Dockerfile. `file`: the Dockerfile where it is
    not the context's own; "-" is `stdin`. `inside`: its path in the context, of who sees no file of this host.
    `epoch`: no time in the image is later (SOURCE_DATE_EPOCH).
    """

    context: str
    file: str = ""
    stdin: BinaryIO | None = None
    tags: tuple[str, ...] = ()
    args: Mapping[str, str] = {}
    target: str = ""
    no_cache: bool = False
    pull: bool = False
    platform: str = ""
    secrets: tuple[Secret, ...] = ()
    labels: Mapping[str, str] = {}
    network: str = "default"
    add_host: tuple[str, ...] = ()
    shm_size: int | None = None  # bytes
    ulimits: tuple[str, ...] = ()
    epoch: int | None = None
    output: str = ""  # a directory, for the file system in the place of an image
    inside: str = ""
    tar: int = -1  # a descriptor, for the file system's tar in the place of an image


class BuildEvent(NamedTuple):
    """One piece of news of a vertex (a step, as BuildKit numbers them).

    `kind`: started (`text` is its name), output (`data`), note (`text`), cached, done, failed (`text`), canceled.
    `at`: seconds since the vertex began.
    """

    vertex: int
    kind: str
    text: str = ""
    data: bytes = b""
    at: float = 0.0


class Built(NamedTuple):
    """What came of it: the image's id ("" where a directory was asked), and its names."""

    id: str
    names: tuple[str, ...] = ()


class CanceledError(WherryError):
    """What a thread ends with because another failed, or the build was interrupted."""

    def __init__(self) -> None:
        super().__init__(Kind.CONFLICT, "canceled")


class CommandFailed(WherryError):
    """A command of RUN that ended with a code that is not 0."""

    def __init__(self, command: str, status: int, why: str) -> None:
        message = f'process "{command}" did not complete successfully: exit code: {status}{why}'
        super().__init__(Kind.PRECONDITION, message)
        self.command, self.status = command, status


class StepFailed(WherryError):
    """A step that failed: its title, its place in the Dockerfile, and the end of what it wrote."""

    def __init__(
        self, why: WherryError, title: str, at: Instruction, lines: Sequence[str], tail: Iterable[bytes]
    ) -> None:
        super().__init__(why.kind, f"failed to solve: {why.message}", hint=why.hint)
        self.title, self.file, self.lines = title, at.file, tuple(lines)
        self.first, self.last = at.line, at.end
        self.tail = b"".join(tail)
