"""Dockerfile instructions that change an image's config: what `commit --change` and `import --change` take.

Decides what each does to docker's config object. Pure. Refuses those that make layers: they are a build's.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["apply"]

_SHELL = ["/bin/sh", "-c"]
_SIGNAL = r"(SIG)?[A-Za-z]+[12]?([+-]\d{1,2})?|\d{1,2}"
_PORT = r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?"
_TIMES = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
          "start-interval": "StartInterval"}  # fmt: skip
_UNITS = {"h": 3600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}


def apply(config: Json, changes: Sequence[str]) -> Json:
    """docker's config object with these instructions carried out, in order."""
    made = dict(config)
    lines = [line.strip() for change in changes for line in change.splitlines() if line.strip()]
    words = [line.split(None, 1)[0].upper() for line in lines]
    for line, word in zip(lines, words, strict=True):
        rest = line[len(word) :].strip()
        if word not in _ACTIONS:
            hint = f"one of {', '.join(_ACTIONS)}"
            raise WherryError(Kind.INVALID, f'"{line[:200]}" is not a valid change', hint=hint)
        if not rest:
            raise WherryError(Kind.INVALID, f"{word} requires an argument")
        _ACTIONS[word](made, rest)
    if "ENTRYPOINT" in words and "CMD" not in words:  # the old arguments were meant for the old entrypoint
        made.pop("Cmd", None)
    return made


def _command(config: Json, text: str) -> list[str]:
    """The exec form as it is, anything else by the image's shell."""
    found = _json_list(text)
    return found if found is not None else [*(config.get("Shell") or _SHELL), text]


def _json_list(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise WherryError(Kind.INVALID, f'"{text[:200]}": {error}') from None


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    """NAME=VALUE words, or docker's old form NAME REST."""
    name, _, rest = text.partition(" ")
    if "=" not in name:
        if not rest.strip():
            raise WherryError(Kind.INVALID, f"{what} must have two arguments")
        return [(name, rest.strip())]
    found = []
    for word in _words(text):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise WherryError(Kind.INVALID, f'{what}: "{word[:200]}" is not NAME=VALUE')
        found.append((key, value))
    return found


def _cmd(config: Json, text: str) -> None:
    config["Cmd"] = _command(config, text)


def _entrypoint(config: Json, text: str) -> None:
    config["Entrypoint"] = _command(config, text) or None


def _env(config: Json, text: str) -> None:
    merged = {item.partition("=")[0]: item for item in config.get("Env") or ()}
    merged |= {name: f"{name}={value}" for name, value in _pairs(text, "ENV")}
    config["Env"] = list(merged.values())


def _label(config: Json, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(text, "LABEL"))}


def _expose(config: Json, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _words(text):
        match = re.fullmatch(_PORT, word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or not first <= last <= 65535:
            raise WherryError(Kind.INVALID, f'EXPOSE: invalid port "{word[:80]}"', hint="80, 80/udp or 8000-8010")
        ports |= {f"{port}/{match[3] or 'tcp'}": {} for port in range(first, last + 1)}
    config["ExposedPorts"] = ports


def _onbuild(config: Json, text: str) -> None:
    word = text.split(None, 1)[0].upper()
    if word in ("ONBUILD", "FROM", "MAINTAINER"):
        raise WherryError(Kind.INVALID, f"{word} is not allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or ()), text]


def _user(config: Json, text: str) -> None:
    config["User"] = text


def _volume(config: Json, text: str) -> None:
    listed = _json_list(text)
    paths = listed if listed is not None else _words(text)
    if not all(path.strip() for path in paths):
        raise WherryError(Kind.INVALID, "VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _workdir(config: Json, text: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "/", text))


def _stopsignal(config: Json, text: str) -> None:
    if not re.fullmatch(_SIGNAL, text):
        raise WherryError(Kind.INVALID, f'STOPSIGNAL: invalid signal "{text[:80]}"')
    config["StopSignal"] = text


def _duration(text: str) -> int:
    """Go's notation in nanoseconds, as docker's config has it."""
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|us|ns|s))+", text):
        raise WherryError(Kind.INVALID, f'HEALTHCHECK: invalid duration "{text[:80]}"', hint="30s, 1m30s ...")
    return sum(int(float(n) * _UNITS[unit]) for n, unit in re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|us|ns|s)", text))


def _healthcheck(config: Json, text: str) -> None:
    made: Json = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", text):
        text = text[match.end() :]
        if match[1] == "retries" and match[2].isdigit():
            made["Retries"] = int(match[2])
        elif match[1] in _TIMES:
            made[_TIMES[match[1]]] = _duration(match[2])
        else:
            raise WherryError(Kind.INVALID, f'HEALTHCHECK: invalid option "--{match[1]}={match[2][:80]}"')
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE" and not rest.strip() and not made:
        config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind.upper() != "CMD" or not rest.strip():
        raise WherryError(Kind.INVALID, f'HEALTHCHECK: unknown type "{kind[:80]}"', hint="NONE or CMD")
    listed = _json_list(rest.strip())
    config["Healthcheck"] = {"Test": ["CMD", *listed] if listed is not None else ["CMD-SHELL", rest.strip()], **made}


_ACTIONS: dict[str, Callable[[Json, str], None]] = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose, "HEALTHCHECK": _healthcheck,
    "LABEL": _label, "ONBUILD": _onbuild, "STOPSIGNAL": _stopsignal, "USER": _user, "VOLUME": _volume,
    "WORKDIR": _workdir,
}  # fmt: skip
