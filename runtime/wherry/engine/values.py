"""Values that the engine's verbs take and give beyond those of `model`. Decides nothing, does no I/O."""

from typing import NamedTuple

__all__ = ["Check", "ExecOptions", "LogLine", "RegistryLogin", "Section"]


class ExecOptions(NamedTuple):
    """What `exec` was asked. None and empty: the container's own value."""

    command: tuple[str, ...]
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    privileged: bool = False
    tied: bool = False  # the process is killed when whoever asked for it lets go of it, or dies
    patience: float = 30.0  # seconds for it to become the command: another process in there can hold it up


class LogLine(NamedTuple):
    """One record of a container's log. `data` holds its bytes, newline included where the container wrote one."""

    stream: str  # "stdout" or "stderr"
    time: str  # RFC 3339 with nanoseconds, UTC
    data: bytes


class Section(NamedTuple):
    """One section of `explain`: its title and its lines."""

    title: str
    lines: tuple[str, ...]


class Check(NamedTuple):
    """One finding of `doctor`. `status` is ok, warn or fail; `cure` the command or the sentence that mends it."""

    name: str
    status: str
    detail: str
    cure: str = ""


class RegistryLogin(NamedTuple):
    """What the registry of one image may be told for one pull. `server` "": the image's own, else only if it is that
    one. `kind`: password, identity (a refresh token), bearer (sent as it is)."""

    user: str
    secret: str
    server: str = ""
    kind: str = "password"

    def __repr__(self) -> str:  # secrets do not belong in logs
        return f"RegistryLogin({self.user!r}, ..., {self.server!r}, {self.kind!r})"
