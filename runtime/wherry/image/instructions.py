"""What each instruction of a Dockerfile says, as values. Pure.

Decides which flags and words an instruction takes and which are wrong, before anything is built. Variables stand as
they are written: their values are known only when the instruction's turn comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from wherry.image.dockerfile import Heredoc, Instruction, inner, json_form, refuse, words

__all__ = [
    "Arg", "Cmd", "Command", "Copy", "Entrypoint", "Env", "Expose", "From", "Healthcheck", "Label", "Maintainer",
    "Meaning", "OnBuild", "Run", "RunMount", "Shell", "Step", "StopSignal", "User", "Volume", "Workdir", "meaning",
    "run_mount",
]  # fmt: skip

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|us|µs|ns|m|s))+")
_UNITS = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1}
Pairs = tuple[tuple[str, str], ...]


class Command(NamedTuple):
    """A command line: words (exec form), or one text for the shell."""

    words: tuple[str, ...]
    shell: bool


class RunMount(NamedTuple):
    """One --mount of RUN. `options` are the rest: mode, uid, gid, size, sharing, ro, required..."""

    type: str
    target: str = ""
    source: str = ""
    origin: str = ""  # from=: a stage or an image
    id: str = ""
    options: Mapping[str, str] = {}


class From(NamedTuple):
    """FROM."""

    image: str
    name: str = ""
    platform: str = ""


class Run(NamedTuple):
    """RUN. `mounts` are the texts of --mount: they may hold variables."""

    command: Command
    mounts: tuple[str, ...] = ()
    network: str = ""
    heredocs: tuple[Heredoc, ...] = ()


class Copy(NamedTuple):
    """COPY and, with `add`, ADD."""

    sources: tuple[str, ...]
    target: str
    add: bool = False
    origin: str = ""
    chown: str = ""
    chmod: str = ""
    checksum: str = ""
    exclude: tuple[str, ...] = ()
    link: bool = False
    parents: bool = False
    unpack: bool | None = None
    heredocs: tuple[Heredoc, ...] = ()


class Env(NamedTuple):
    """ENV."""

    pairs: Pairs


class Label(NamedTuple):
    """LABEL."""

    pairs: Pairs


class Arg(NamedTuple):
    """ARG: names with their defaults, None where there is none."""

    pairs: tuple[tuple[str, str | None], ...]


class Workdir(NamedTuple):
    """WORKDIR."""

    path: str


class User(NamedTuple):
    """USER."""

    user: str


class Expose(NamedTuple):
    """EXPOSE."""

    ports: tuple[str, ...]


class Volume(NamedTuple):
    """VOLUME."""

    paths: tuple[str, ...]


class Cmd(NamedTuple):
    """CMD."""

    command: Command


class Entrypoint(NamedTuple):
    """ENTRYPOINT."""

    command: Command


class Shell(NamedTuple):
    """SHELL."""

    words: tuple[str, ...]


class StopSignal(NamedTuple):
    """STOPSIGNAL."""

    signal: str


class Healthcheck(NamedTuple):
    """HEALTHCHECK: docker's config.Healthcheck, its command apart; None is NONE."""

    command: Command | None
    timing: Mapping[str, int] = {}


class OnBuild(NamedTuple):
    """ONBUILD: the instruction's text, for the child's build."""

    text: str


class Maintainer(NamedTuple):
    """MAINTAINER."""

    name: str


Meaning = (
    From | Run | Copy | Env | Label | Arg | Workdir | User | Expose | Volume | Cmd | Entrypoint | Shell | StopSignal
    | Healthcheck | OnBuild | Maintainer
)  # fmt: skip


class Step(NamedTuple):
    """An instruction with its meaning."""

    at: Instruction
    says: Meaning


Flags = dict[str, list[str]]


def meaning(at: Instruction, escape: str = "\\") -> Step:
    """What an instruction says; what it cannot say is an error with its line."""
    return Step(at, _READERS[at.word](at, escape))


# ---- flags and words


def _given(at: Instruction, *known: str) -> Flags:
    """The flags by name: "--link" is "true"."""
    found: Flags = {}
    for flag in at.flags:
        name, equals, value = flag[2:].partition("=")
        if name not in known:
            allowed = ", ".join(f"--{word}" for word in known) or "none"
            refuse(at, f"{at.word}: unknown flag: --{name}", f"flags of {at.word}: {allowed}")
        found.setdefault(name, []).append(value if equals else "true")
    return found


def _one(at: Instruction, flags: Flags, name: str) -> str:
    values = flags.get(name, [""])
    if len(values) > 1:
        refuse(at, f"{at.word}: duplicate flag specified: --{name}")
    return values[0]


def _switch(at: Instruction, flags: Flags, name: str) -> bool:
    value = _one(at, flags, name) or "false"
    if value.lower() not in ("true", "false", "1", "0"):
        refuse(at, f"{at.word}: expecting boolean value for flag {name}, not: {value}")
    return value.lower() in ("true", "1")


def _some(at: Instruction) -> str:
    if not at.text:
        refuse(at, f"{at.word} requires at least one argument")
    return at.text


def _single(at: Instruction) -> str:
    text = _some(at)
    if len(words(text)) != 1:
        refuse(at, f"{at.word} requires exactly one argument")
    return text


def _command(text: str) -> Command:
    listed = json_form(text)
    return Command((text,), True) if listed is None else Command(tuple(listed), False)


def _list(at: Instruction, escape: str) -> tuple[str, ...]:
    listed = json_form(_some(at))
    return tuple(words(at.text, escape) if listed is None else listed)


def _pairs(at: Instruction, escape: str) -> Pairs:
    """NAME=VALUE..., or docker's old form NAME VALUE, which takes the rest of the line."""
    found = words(_some(at), escape)
    if "=" not in found[0]:
        if len(found) < 2:
            refuse(at, f"{at.word} must have two arguments", f"{at.word} {found[0]}=value")
        return ((found[0], at.text[len(found[0]) :].strip()),)
    pairs = []
    for word in found:
        name, equals, value = word.partition("=")
        if not equals:
            refuse(at, f"can't find = in {word!r}: must be of the form NAME=VALUE", "quote a value that has blanks")
        if not name:
            refuse(at, f"{at.word} names can not be blank")
        pairs.append((name, value))
    return tuple(pairs)


# ---- one reader an instruction


def _from(at: Instruction, escape: str) -> From:
    flags = _given(at, "platform")
    found = words(_some(at), escape)
    if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS"):
        refuse(at, "FROM requires either one or three arguments", "FROM image [AS name]")
    name = found[2].lower() if len(found) == 3 else ""
    if name and not _STAGE_NAME.fullmatch(name):
        refuse(at, f"invalid name for build stage: {found[2]!r}, name can't start with a number or contain symbols")
    if name == "scratch":
        refuse(at, "scratch is reserved and cannot be the name of a stage")
    return From(found[0], name, _one(at, flags, "platform"))


def _run(at: Instruction, _escape: str) -> Run:
    flags = _given(at, "mount", "network", "security")
    network = _one(at, flags, "network")
    if network not in ("", "default", "none", "host"):
        refuse(at, f"invalid network mode {network!r}", "default, none or host")
    if _one(at, flags, "security") not in ("", "sandbox"):
        refuse(at, "--security=insecure is not supported", "every step runs with the default profile")
    return Run(_command(_some(at)), tuple(flags.get("mount", ())), network, at.heredocs)


def _copy(at: Instruction, escape: str) -> Copy:
    add = at.word == "ADD"
    own = ("checksum", "keep-git-dir", "unpack") if add else ("from", "parents")
    flags = _given(at, "chown", "chmod", "link", "exclude", *own)
    found = _list(at, escape)
    if len(found) < 2:
        refuse(at, f"{at.word} requires at least two arguments, but only {len(found)} given", f"{at.word} SOURCE... TO")
    return Copy(
        found[:-1], found[-1], add, _one(at, flags, "from"), _one(at, flags, "chown"), _one(at, flags, "chmod"),
        _one(at, flags, "checksum"), tuple(flags.get("exclude", ())), _switch(at, flags, "link"),
        _switch(at, flags, "parents"), _switch(at, flags, "unpack") if "unpack" in flags else None, at.heredocs,
    )  # fmt: skip


def _arg(at: Instruction, escape: str) -> Arg:
    _given(at)
    found = []
    for word in words(_some(at), escape):
        name, equals, value = word.partition("=")
        if not name:
            refuse(at, "ARG names can not be blank")
        found.append((name, value if equals else None))
    return Arg(tuple(found))


def _healthcheck(at: Instruction, _escape: str) -> Healthcheck:
    flags = _given(at, "interval", "timeout", "start-period", "start-interval", "retries")
    kind, _, rest = _some(at).partition(" ")
    if kind.upper() == "NONE":
        if rest.strip():
            refuse(at, "HEALTHCHECK NONE takes no arguments")
        return Healthcheck(None)
    if kind.upper() != "CMD" or not rest.strip():
        refuse(at, f"unknown type {kind!r} in HEALTHCHECK", "HEALTHCHECK [flags] CMD command, or HEALTHCHECK NONE")
    return Healthcheck(_command(rest.strip()), dict(_timing(at, flags)))


_TIMES = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
          "start-interval": "StartInterval"}  # fmt: skip


def _timing(at: Instruction, flags: Flags) -> Iterator[tuple[str, int]]:
    for name, key in _TIMES.items():
        if name in flags:
            yield key, _nanoseconds(at, name, _one(at, flags, name))
    if "retries" in flags:
        text = _one(at, flags, "retries")
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            refuse(at, f"--retries must be at least 1, not {text!r}")
        yield "Retries", int(text)


def _nanoseconds(at: Instruction, name: str, text: str) -> int:
    if not _DURATION.fullmatch(text):
        refuse(at, f"invalid duration {text!r} for --{name}", "such as 30s, 5m or 1h30m")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)", text)
    total = int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    if 0 < total < 1_000_000:
        refuse(at, f"--{name} cannot be less than 1ms")
    return total


def _onbuild(at: Instruction, escape: str) -> OnBuild:
    _given(at)
    held = inner(at, _some(at), escape)
    if held.word in ("ONBUILD", "FROM", "MAINTAINER"):
        refuse(at, f"{held.word} isn't allowed as an ONBUILD trigger")
    meaning(held, escape)  # what could never be carried out is an error of this file, not of its child's
    documents = "".join(f"\n{one.text}{one.name}" for one in at.heredocs)
    return OnBuild(at.text + documents)


def _shell(at: Instruction, _escape: str) -> Shell:
    _given(at)
    found = json_form(_some(at))
    if not found:
        refuse(at, "SHELL requires the arguments to be in JSON form", 'SHELL ["/bin/bash", "-c"]')
    return Shell(tuple(found))


def _plain(make: Callable[[str], Meaning], take: Callable[[Instruction], str]) -> Callable[[Instruction, str], Meaning]:
    def read(at: Instruction, _escape: str) -> Meaning:
        _given(at)
        return make(take(at))

    return read


def _listed(make: Callable[[tuple[str, ...]], Meaning]) -> Callable[[Instruction, str], Meaning]:
    def read(at: Instruction, escape: str) -> Meaning:
        _given(at)
        return make(_list(at, escape))

    return read


def _paired(make: Callable[[Pairs], Meaning]) -> Callable[[Instruction, str], Meaning]:
    def read(at: Instruction, escape: str) -> Meaning:
        _given(at)
        return make(_pairs(at, escape))

    return read


def _said(make: Callable[[Command], Meaning]) -> Callable[[Instruction, str], Meaning]:
    def read(at: Instruction, _escape: str) -> Meaning:
        _given(at)
        return make(_command(_some(at)))

    return read


_READERS: dict[str, Callable[[Instruction, str], Meaning]] = {
    "ADD": _copy, "ARG": _arg, "CMD": _said(Cmd), "COPY": _copy, "ENTRYPOINT": _said(Entrypoint), "ENV": _paired(Env),
    "EXPOSE": _listed(Expose), "FROM": _from, "HEALTHCHECK": _healthcheck, "LABEL": _paired(Label),
    "MAINTAINER": _plain(Maintainer, _some), "ONBUILD": _onbuild, "RUN": _run, "SHELL": _shell,
    "STOPSIGNAL": _plain(StopSignal, _single), "USER": _plain(User, _single), "VOLUME": _listed(Volume),
    "WORKDIR": _plain(Workdir, _some),
}  # fmt: skip


# ---- --mount of RUN

_ALIASES = {"dst": "target", "destination": "target", "src": "source", "readonly": "ro", "readwrite": "rw"}
_MOUNT_KEYS = {
    "bind": {"target", "source", "from", "rw", "ro"},
    "cache": {"target", "source", "from", "id", "ro", "rw", "sharing", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"target", "id", "required", "mode", "uid", "gid"},
}


def run_mount(at: Instruction, text: str) -> RunMount:
    """One --mount, its variables expanded; the type is bind where none is named."""
    given: dict[str, str] = {}
    for field in text.split(","):
        key, equals, value = field.partition("=")
        key = _ALIASES.get(key.strip().lower(), key.strip().lower())
        given[key] = value if equals else "true"
    kind = given.pop("type", "bind")
    if kind not in _MOUNT_KEYS:
        refuse(at, f"unsupported mount type {kind!r}", f"one of {', '.join(_MOUNT_KEYS)}")
    unknown = sorted(set(given) - _MOUNT_KEYS[kind])
    if unknown:
        known = ", ".join(sorted(_MOUNT_KEYS[kind]))
        refuse(at, f"unexpected key {unknown[0]!r} for mount type {kind}", f"known: {known}")
    taken = {key: given.pop(key, "") for key in ("target", "source", "from", "id")}
    if kind != "secret" and not taken["target"]:
        refuse(at, f"a mount of type {kind} needs a target", "target=/path")
    return RunMount(kind, taken["target"], taken["source"], taken["from"], taken["id"], given)
