"""Globs of COPY and lines of .dockerignore, as Go's filepath.Match and moby's patternmatcher read them. Pure.

Decides which paths a pattern means. Paths are relative, with "/" between their parts. Reads no directory.
"""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["EVERYTHING", "Ignore", "has_glob", "matcher", "read_ignore"]

_LINES_MAX = 10_000


def has_glob(text: str) -> bool:
    """Whether a path is a pattern."""
    return bool(re.search(r"[*?\[]", text))


def matcher(pattern: str) -> re.Pattern[str]:
    """A regular expression for whole paths: * and ? stay in one part, ** crosses any number of them."""
    out, at = "", 0
    while at < len(pattern):
        piece, at = _next(pattern, at)
        out += piece
    try:
        return re.compile(out + r"\Z", re.DOTALL)
    except re.error as error:
        raise _syntax(pattern) from error


def _next(pattern: str, at: int) -> tuple[str, int]:
    letter = pattern[at]
    if pattern.startswith("**", at):
        after = at + 2
        if pattern.startswith("/", after):
            return "(?:.*/)?", after + 1
        return ".*", after
    if letter == "\\":
        if at + 1 == len(pattern):
            raise _syntax(pattern)
        return re.escape(pattern[at + 1]), at + 2
    if letter == "[":
        return _class(pattern, at)
    return {"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter)), at + 1


def _class(pattern: str, at: int) -> tuple[str, int]:
    """[a-z], [^a-z], with escapes."""
    match = re.compile(r"\[(\^?)((?:\\.|[^\\\]])+)\]", re.DOTALL).match(pattern, at)
    if not match:
        raise _syntax(pattern)
    body = re.sub(r"\\(.)|([\[&~|^])", lambda m: "\\" + (m[1] or m[2]), match[2])
    return f"(?!/)[{match[1]}{body}]", match.end()


def _syntax(pattern: str) -> WherryError:
    return WherryError(Kind.INVALID, f"syntax error in pattern {pattern[:200]!r}", hint="*, ?, [a-z], ** and \\")


class Ignore(NamedTuple):
    """The lines of a .dockerignore, in order: the last that matches a path or a directory above it decides."""

    rules: tuple[tuple[re.Pattern[str], bool], ...] = ()  # and whether it takes back

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


def _rule(line: str) -> tuple[re.Pattern[str], bool] | None:
    if line.startswith("#") or not line.strip():
        return None
    text = line.strip()
    back = text.startswith("!")
    text = text[1:].strip() if back else text
    if not text:
        raise WherryError(Kind.INVALID, 'illegal exclusion pattern in .dockerignore: "!"', hint="! and a pattern")
    clean = posixpath.normpath(text).lstrip("/")
    return None if clean in ("", ".") else (matcher(clean), back)
