"""Globs of COPY and lines of .dockerignore, as Go's filepath.Match and moby's patternmatcher read them. Pure.

Decides which paths a pattern means. Paths are relative, with "/" between their parts. Reads no directory.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from wherry.errors import Kind, WherryError

__all__ = ["EVERYTHING", "Ignore", "Matcher", "has_glob", "matcher", "read_ignore"]

_LINES_MAX = 10_000
_ANY = re.compile(".", re.DOTALL)
_W = TypeVar("_W")


def has_glob(text: str) -> bool:
    """Whether a path is a pattern."""
    return bool(re.search(r"[*?\[]", text))


class Matcher(NamedTuple):
    """A pattern, part by part; ** alone is any number of parts. Takes no longer than pattern times path: a hostile file
    cannot make it go back and forth."""

    parts: tuple[_Part | None, ...]  # None: **

    def match(self, path: str) -> bool:
        """Whether the whole path is meant."""
        return _walk(self.parts, path.split("/"), None, lambda part, name: part is not None and part.match(name))


def matcher(pattern: str) -> Matcher:
    """Read a pattern: * and ? stay in one part, ** crosses any number of them, also as the beginning or end of one."""
    found: list[_Part | None] = []
    for text in pattern.split("/"):
        deep = text.startswith("**"), text.endswith("**")
        if text == "**":
            found.append(None)
        else:
            found += [*[None] * deep[0], _part(text, pattern), *[None] * deep[1]]
    return Matcher(tuple(found))


class _Part(NamedTuple):
    """One part of a pattern. None: *; else a letter, or a class as a compiled expression."""

    letters: tuple[str | re.Pattern[str] | None, ...]

    def match(self, name: str) -> bool:
        return _walk(self.letters, name, None, _letter)


def _letter(wanted: str | re.Pattern[str] | None, letter: str) -> bool:
    if isinstance(wanted, re.Pattern):
        return bool(wanted.fullmatch(letter))
    return wanted == letter


def _walk(wanted: Sequence[_W], found: Sequence[str], many: object, fits: Callable[[_W, str], bool]) -> bool:
    """Wildcards without going back further than to the last one, which is enough."""
    at = here = 0
    star, after = -1, 0
    while here < len(found):
        if at < len(wanted) and wanted[at] is not many and fits(wanted[at], found[here]):
            at, here = at + 1, here + 1
        elif at < len(wanted) and wanted[at] is many:
            star, after = at, here
            at += 1
        elif star >= 0:
            after += 1
            at, here = star + 1, after
        else:
            return False
    return all(one is many for one in wanted[at:])


def _part(text: str, pattern: str) -> _Part:
    letters: list[str | re.Pattern[str] | None] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            if at + 1 == len(text):
                raise _syntax(pattern)
            at += 1
            letters.append(text[at])
        elif letter == "[":
            made, at = _class(text, at, pattern)
            letters.append(made)
            continue
        else:
            letters.append({"*": None, "?": _ANY}.get(letter, letter))
        at += 1
    return _Part(tuple(letters))


def _class(text: str, at: int, pattern: str) -> tuple[re.Pattern[str], int]:
    """[a-z], [^a-z], with escapes."""
    match = re.compile(r"\[(\^?)((?:\\.|[^\\\]])+)\]", re.DOTALL).match(text, at)
    if not match:
        raise _syntax(pattern)
    body = re.sub(r"\\(.)|([\[&~|^])", lambda m: "\\" + (m[1] or m[2]), match[2])
    try:
        return re.compile(f"[{match[1]}{body}]", re.DOTALL), match.end()
    except re.error as error:
        raise _syntax(pattern) from error


def _syntax(pattern: str) -> WherryError:
    return WherryError(Kind.INVALID, f"syntax error in pattern {pattern[:200]!r}", hint="*, ?, [a-z], ** and \\")


class Ignore(NamedTuple):
    """The lines of a .dockerignore, in order: the last that matches a path or a directory above it decides."""

    rules: tuple[tuple[Matcher, bool], ...] = ()  # and whether it takes back

    @property
    def takes_back(self) -> bool:
        """Whether something below an ignored directory may be wanted."""
        return any(back for _, back in self.rules)

    def ignores(self, path: str) -> bool:
        """Whether this path stays out of the context."""
        above = [path]
        while "/" in above[-1]:
            above.append(above[-1].rpartition("/")[0])
        out = False
        for pattern, back in self.rules:
            if out == back and any(pattern.match(one) for one in above):
                out = not back
        return out


EVERYTHING = Ignore()


def read_ignore(text: str) -> Ignore:
    """The rules of a .dockerignore; lines that start with # are comments."""
    rules = []
    for line in text.removeprefix("\ufeff").splitlines()[:_LINES_MAX]:
        rule = _rule(line)
        if rule is not None:
            rules.append(rule)
    return Ignore(tuple(rules))


def _rule(line: str) -> tuple[Matcher, bool] | None:
    if line.startswith("#") or not line.strip():
        return None
    text = line.strip()
    back = text.startswith("!")
    text = text[1:].strip() if back else text
    if not text:
        raise WherryError(Kind.INVALID, 'illegal exclusion pattern in .dockerignore: "!"', hint="! and a pattern")
    clean = posixpath.normpath(text).lstrip("/")
    return None if clean in ("", ".") else (matcher(clean), back)
