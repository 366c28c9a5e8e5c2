"""An image on its way: its config, its layers, its ARGs; and what the instructions without a file do to it. Pure.

Decides docker's meaning of ENV, LABEL, CMD and the like, what history says, and which values a word may refer to.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wherry.image.author import NewLayer
from wherry.image.dockerfile import refuse
from wherry.image.instructions import (
    Arg,
    Cmd,
    Command,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Label,
    Maintainer,
    OnBuild,
    Shell,
    Step,
    StopSignal,
    User,
    Volume,
)
from wherry.model import Json, Platform

from .stages import expanded

__all__ = ["PROXIES", "SETS", "Draft", "Words", "apply", "argv", "empty", "joined", "noted", "with_layer"]

PROXIES = tuple(
    name for word in ("HTTP", "HTTPS", "FTP", "NO", "ALL") for name in (f"{word}_PROXY", f"{word.lower()}_proxy")
)
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


class Draft(NamedTuple):
    """One state of a stage. `document` is the whole config of the image, as image-spec has it."""

    document: Json
    layers: tuple[NewLayer, ...] = ()
    args: Mapping[str, str] = {}
    commanded: bool = False  # CMD was given in this file

    @property
    def config(self) -> Json:
        """What a container starts from."""
        found: Json = self.document.get("config") or {}
        return found

    @property
    def env(self) -> dict[str, str]:
        """ENV, the base's too."""
        pairs = (item.partition("=") for item in self.config.get("Env") or ())
        return {name: value for name, _, value in pairs}

    @property
    def values(self) -> dict[str, str]:
        """What variables stand for: ENV wins over ARG."""
        return {**self.args, **self.env}

    @property
    def diff_ids(self) -> list[str]:
        """Its layers, lowest first."""
        return [layer.diff_id for layer in self.layers]

    @property
    def workdir(self) -> str:
        """Where relative paths begin."""
        return joined("/", str(self.config.get("WorkingDir") or "/"))

    def text(self, key: str) -> str:
        """One text of the config."""
        return str(self.config.get(key) or "")

    def with_config(self, **changes: Any) -> Draft:
        """The same with other members of its config; None takes one away."""
        config = {key: value for key, value in {**self.config, **changes}.items() if value is not None}
        return self._replace(document={**self.document, "config": config})


class Words(NamedTuple):
    """What the file and the caller bring to the expansion of words."""

    escape: str
    given: Mapping[str, str]  # --build-arg
    known: Mapping[str, str]  # ARGs before FROM, and the platform's


def empty(platform: Platform) -> Draft:
    """FROM scratch."""
    config = {"Env": [_PATH], "WorkingDir": "/"}
    document: Json = {"architecture": platform.architecture, "os": platform.os, "config": config}
    return Draft(document | ({"variant": platform.variant} if platform.variant else {}))


def joined(base: str, path: str) -> str:
    """An absolute path without dots; it never leaves the root."""
    return posixpath.normpath(posixpath.join("/", base, path)).replace("//", "/")


def noted(draft: Draft, text: str, created: str, *, layer: bool) -> Draft:
    """One more line of history. `created` "": the time of what was there before."""
    history = list(draft.document.get("history") or ())
    when = created or (history[-1].get("created", "") if history else "") or draft.document.get("created", "")
    line: Json = {**({"created": when} if when else {}), "created_by": text, "comment": "wherry build"}
    history.append(line if layer else line | {"empty_layer": True})
    return draft._replace(document={**draft.document, "history": history, **({"created": when} if when else {})})


def with_layer(draft: Draft, layer: NewLayer | None, text: str, created: str) -> Draft:
    """One step further: its layer (None: it changed nothing) and its line."""
    more = draft._replace(layers=(*draft.layers, layer)) if layer else draft
    return noted(more, text, created, layer=layer is not None)


def argv(draft: Draft, command: Command) -> list[str]:
    """The words of a command: the shell form goes through the image's SHELL."""
    return [*(draft.config.get("Shell") or _SHELL), *command.words] if command.shell else list(command.words)


def apply(draft: Draft, step: Step, words: Words) -> Draft:
    """An instruction that touches no file."""
    return noted(SETS[type(step.says)](draft, step, words), _line(step), "", layer=False)


def _line(step: Step) -> str:
    return f"{step.at.word} {' '.join((*step.at.flags, step.at.text))}".rstrip()


def _word(draft: Draft, step: Step, words: Words, text: str) -> str:
    return expanded(step.at, text, draft.values, words.escape)


def _env(draft: Draft, step: Step, words: Words) -> Draft:
    assert isinstance(step.says, Env)
    pairs = {_word(draft, step, words, key): _word(draft, step, words, value) for key, value in step.says.pairs}
    return draft.with_config(Env=[f"{key}={value}" for key, value in {**draft.env, **pairs}.items()])


def _label(draft: Draft, step: Step, words: Words) -> Draft:
    assert isinstance(step.says, Label)
    pairs = {_word(draft, step, words, key): _word(draft, step, words, value) for key, value in step.says.pairs}
    return draft.with_config(Labels={**(draft.config.get("Labels") or {}), **pairs})


def _arg(draft: Draft, step: Step, words: Words) -> Draft:
    """--build-arg wins over the default, which wins over the ARG of that name before FROM."""
    assert isinstance(step.says, Arg)
    for name, default in step.says.pairs:
        value = words.given.get(name)
        if value is None:
            value = words.known.get(name) if default is None else _word(draft, step, words, default)
        if value is not None:
            draft = draft._replace(args={**draft.args, name: value})
    return draft


def _user(draft: Draft, step: Step, words: Words) -> Draft:
    assert isinstance(step.says, User)
    return draft.with_config(User=_word(draft, step, words, step.says.user))


def _expose(draft: Draft, step: Step, words: Words) -> Draft:
    assert isinstance(step.says, Expose)
    ports = dict(draft.config.get("ExposedPorts") or {})
    for text in step.says.ports:
        for word in _word(draft, step, words, text).split():
            ports |= {port: {} for port in _ports(step, word)}
    return draft.with_config(ExposedPorts=ports)


def _ports(step: Step, text: str) -> list[str]:
    match = _PORT.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if match is None or not first <= last <= 65535:
        refuse(step.at, f"invalid containerPort: {text}", "80, 80/udp or 8000-8010")
    return [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _volume(draft: Draft, step: Step, words: Words) -> Draft:
    assert isinstance(step.says, Volume)
    paths = [_word(draft, step, words, path).strip() for path in step.says.paths]
    if not all(paths):
        refuse(step.at, "VOLUME specified can not be an empty string")
    return draft.with_config(Volumes={**(draft.config.get("Volumes") or {}), **{path: {} for path in paths}})


def _cmd(draft: Draft, step: Step, _words: Words) -> Draft:
    assert isinstance(step.says, Cmd)
    return draft._replace(commanded=True).with_config(Cmd=argv(draft, step.says.command))


def _entrypoint(draft: Draft, step: Step, _words: Words) -> Draft:
    """A new entrypoint has no use for the command of the base's."""
    assert isinstance(step.says, Entrypoint)
    command = draft.config.get("Cmd") if draft.commanded else None
    return draft.with_config(Entrypoint=argv(draft, step.says.command) or None, Cmd=command)


def _shell(draft: Draft, step: Step, _words: Words) -> Draft:
    assert isinstance(step.says, Shell)
    return draft.with_config(Shell=list(step.says.words))


def _stop_signal(draft: Draft, step: Step, words: Words) -> Draft:
    from wherry.errors import WherryError
    from wherry.kernel import process

    assert isinstance(step.says, StopSignal)
    text = _word(draft, step, words, step.says.signal)
    try:
        process.signal_number(text)
    except WherryError:
        refuse(step.at, f"invalid signal: {text}", "such as SIGTERM or 15")
    return draft.with_config(StopSignal=text)


def _healthcheck(draft: Draft, step: Step, _words: Words) -> Draft:
    assert isinstance(step.says, Healthcheck)
    command = step.says.command
    if command is None:
        return draft.with_config(Healthcheck={"Test": ["NONE"]})
    kind = "CMD-SHELL" if command.shell else "CMD"
    return draft.with_config(Healthcheck={"Test": [kind, *command.words], **step.says.timing})


def _onbuild(draft: Draft, step: Step, _words: Words) -> Draft:
    assert isinstance(step.says, OnBuild)
    return draft.with_config(OnBuild=[*(draft.config.get("OnBuild") or ()), step.says.text])


def _maintainer(draft: Draft, step: Step, _words: Words) -> Draft:
    assert isinstance(step.says, Maintainer)
    return draft._replace(document={**draft.document, "author": step.says.name})


SETS: dict[type, Callable[[Draft, Step, Words], Draft]] = {
    Arg: _arg, Cmd: _cmd, Entrypoint: _entrypoint, Env: _env, Expose: _expose, Healthcheck: _healthcheck, Label: _label,
    Maintainer: _maintainer, OnBuild: _onbuild, Shell: _shell, StopSignal: _stop_signal, User: _user, Volume: _volume,
}  # fmt: skip
