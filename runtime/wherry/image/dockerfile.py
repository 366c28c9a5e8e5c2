"""A Dockerfile's lines as instructions: directives, comments, continuations, here-documents and flags. Pure.

Decides where an instruction begins and ends, what its word and its flags are, and which line is wrong. Refuses to know
what an instruction means (instructions.py) and what a variable holds (variables.py).
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, NoReturn

from wherry.errors import Kind, WherryError

__all__ = ["WORDS", "Dockerfile", "Heredoc", "Instruction", "inner", "json_form", "parse", "refuse", "words"]

WORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_WITH_HEREDOC = ("ADD", "COPY", "RUN")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")
_SHELL_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:\\.|[^"\\])*"|'[^']*'|["'\\])+""")


class Heredoc(NamedTuple):
    """One here-document: its name, its text, and whether variables in it are expanded (its name was not quoted)."""

    name: str
    text: str
    expand: bool


class Instruction(NamedTuple):
    """One instruction. `text` is what follows word and flags, `raw` the logical line without its here-documents."""

    file: str
    line: int
    end: int
    word: str
    flags: tuple[str, ...]
    text: str
    raw: str
    heredocs: tuple[Heredoc, ...] = ()


class Dockerfile(NamedTuple):
    """A whole file. `lines` are kept for showing where something failed."""

    name: str
    escape: str
    instructions: tuple[Instruction, ...]
    lines: tuple[str, ...]


def refuse(at: Instruction, why: str, hint: str = "") -> NoReturn:
    """The one shape of a Dockerfile's error: file, line, reason; and the line itself."""
    raise WherryError(Kind.INVALID, f"{at.file}:{at.line}: {why}\n  {at.line} | {at.raw[:200]}", hint=hint)


def parse(text: str, name: str = "Dockerfile") -> Dockerfile:
    """The instructions of a file, in order."""
    reader = _Reader(text, name)
    reader.directives()
    found = []
    while (one := reader.instruction()) is not None:
        found.append(one)
    if not found:
        raise WherryError(Kind.INVALID, f"{name}: the file has no instructions", hint="it starts with FROM")
    return Dockerfile(name, reader.escape, tuple(found), tuple(reader.lines))


def inner(at: Instruction, text: str, escape: str) -> Instruction:
    """The instruction that ONBUILD carries, or that a base image's OnBuild holds."""
    word, flags, rest = _split(at, text, escape)
    return at._replace(word=word, flags=flags, text=rest, raw=text.strip())


def json_form(text: str) -> list[str] | None:
    """The words of the exec form, None where this is not a JSON list of strings: then it is the shell form."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if fits else None


def words(text: str, escape: str = "\\") -> list[str]:
    """Split at blanks outside of quotes; quotes and escapes stay, they are the expansion's (NAME="a b" is one word)."""
    found: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        letter = text[at]
        size = 2 if letter == escape and quote != "'" else 1
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        if letter.isspace() and not quote:
            found += [word] if word else []
            word = ""
        else:
            word += text[at : at + size]
        at += size
    return found + ([word] if word else [])


class _Reader:
    """Goes through the lines once."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
        self.escape = "\\"
        self._at = 0

    def directives(self) -> None:
        """`# escape=` and the like, which only the first lines can be."""
        seen: dict[str, str] = {}
        for line in self.lines:
            match = _DIRECTIVE.match(line.strip())
            if not match or match[1].lower() not in _DIRECTIVES:
                break
            key = match[1].lower()
            if key in seen:
                self._refuse(len(seen) + 1, f"only one {key} parser directive can be used")
            seen[key] = match[2]
            if key == "escape" and match[2] not in ("\\", "`"):
                self._refuse(len(seen), f"invalid ESCAPE '{match[2]}': must be ` or \\")
        self.escape = seen.get("escape", "\\")
        self._at = len(seen)

    def instruction(self) -> Instruction | None:
        """The next one, with its here-documents; None at the end."""
        logical = self._logical()
        if logical is None:
            return None
        line, raw = logical
        at = Instruction(self.name, line, self._at, "", (), "", raw)
        word, flags, text = _split(at, raw, self.escape)
        at = at._replace(word=word, flags=flags, text=text)
        heredocs = tuple(self._heredoc(at, *found) for found in _heredocs(at, self.escape))
        return at._replace(heredocs=heredocs, end=self._at)

    def _logical(self) -> tuple[int, str] | None:
        """A line with all that continues it. Comments and empty lines between are none of it."""
        ends = re.compile(rf"(^|[^{re.escape(self.escape)}]){re.escape(self.escape)}[ \t]*$")
        parts: list[str] = []
        first = 0
        while self._at < len(self.lines):
            line = self.lines[self._at]
            self._at += 1
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            first = first or self._at
            body, goes_on = ends.subn(r"\1", line)
            parts.append(body if parts else body.lstrip())
            if not goes_on:
                break
        return (first, "".join(parts).rstrip()) if parts else None

    def _heredoc(self, at: Instruction, name: str, expand: bool, chomp: bool) -> Heredoc:
        text = ""
        while self._at < len(self.lines):
            line = self.lines[self._at]
            self._at += 1
            line = line.lstrip("\t") if chomp else line
            if line == name:
                return Heredoc(name, text, expand)
            text += line + "\n"
        refuse(at, f"unterminated heredoc {name}", f"end it with a line that holds only {name}")

    def _refuse(self, line: int, why: str) -> NoReturn:
        refuse(Instruction(self.name, line, line, "", (), "", self.lines[line - 1]), why)


def _split(at: Instruction, raw: str, escape: str) -> tuple[str, tuple[str, ...], str]:
    word, rest = [*raw.split(None, 1), "", ""][:2]
    if word.upper() not in WORDS:
        refuse(at, f"unknown instruction: {word}{_suggestion(word)}")
    flags, rest = _flags(rest, escape)
    return word.upper(), flags, rest


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word.upper(), WORDS, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The words at the beginning that start with "--"; quotes in them are taken away."""
    found: list[str] = []
    while text.startswith("--"):
        word, text = _flag(text, escape)
        if word == "--":
            break
        found.append(word)
    return tuple(found), text


def _flag(text: str, escape: str) -> tuple[str, str]:
    word, quote, at = "", "", 0
    while at < len(text) and (quote or not text[at].isspace()):
        letter = text[at]
        if letter == escape and at + 1 < len(text):
            at += 1
            word += text[at]
        elif letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        else:
            word += letter
        at += 1
    return word, text[at:].lstrip()


def _heredocs(at: Instruction, escape: str) -> list[tuple[str, bool, bool]]:
    """(name, expand, strip leading tabs) of each here-document that the line announces."""
    word, text = at.word, at.text
    if word == "ONBUILD" and text.split(None, 1)[0:1]:
        word, _, text = _split(at, text, escape)
    if word not in _WITH_HEREDOC or json_form(text) is not None:
        return []
    found = []
    for piece in _SHELL_WORD.findall(text):
        match = _HEREDOC.fullmatch(piece)
        if match:
            name = re.sub(r"[\"'\\]", "", match[2])
            found.append((name, name == match[2], bool(match[1])))
    return found
