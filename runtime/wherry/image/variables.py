"""Variables in a Dockerfile's words, as docker expands them: a small part of a shell's language. Pure.

Decides what $v, ${v:-x}, ${v:+x}, ${v:?x}, ${v#p}, ${v%p}, ${v/p/r}, quotes and escapes mean. Refuses to know which
variables there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["BadVariable", "expand", "expand_text", "used"]

_SPECIAL = "@*#?-$!"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")


class BadVariable(ValueError):
    """What is wrong with the text, without its place."""


def expand(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """One word: variables by their values ("" where there is none), quotes and escapes taken away."""
    return _Words(text, values, escape).until("")


def expand_text(text: str, values: Mapping[str, str], escape: str = "\\") -> str:
    """A here-document: variables only; quotes stay, and so do escapes but those of a dollar."""
    return _Words(text, values, escape, raw=True).until("")


def used(text: str, escape: str = "\\") -> set[str]:
    """The names of the variables that a word's value depends on."""
    seen = _Seen()
    try:
        expand(text, seen, escape)
    except BadVariable:
        return set(seen.names)
    return set(seen.names)


class _Seen(dict[str, str]):
    """Answers every question with nothing, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.names.append(key)
        return default

    def __contains__(self, key: object) -> bool:
        self.names.append(str(key))
        return False


class _Words:
    """A reader of one text; `at` is how far it is."""

    def __init__(self, text: str, values: Mapping[str, str], escape: str, *, raw: bool = False) -> None:
        self.text, self.values, self.escape, self.raw = text, values, escape, raw
        self.at = 0

    def until(self, stop: str) -> str:
        """Up to a letter of `stop` (eaten), or to the end where it is empty."""
        out = ""
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter in stop:
                self.at += 1
                return out
            out += self._piece(letter)
        if stop:
            raise BadVariable(f"unexpected end of statement while looking for {' or '.join(stop)}")
        return out

    def _piece(self, letter: str) -> str:
        if letter == "$":
            return self._dollar()
        if letter == self.escape:
            return self._escaped("$" if self.raw else "")
        if not self.raw and letter == "'":
            return self._single()
        if not self.raw and letter == '"':
            return self._double()
        self.at += 1
        return letter

    def _escaped(self, only: str) -> str:
        """What follows an escape; with `only`, the escape stays before any other letter."""
        following = self.text[self.at + 1 : self.at + 2]
        self.at += 1 + len(following)
        if only and following not in only:
            return self.escape + following
        return following

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise BadVariable("unexpected end of statement while looking for matching single-quote")
        found = self.text[self.at + 1 : end]
        self.at = end + 1
        return found

    def _double(self) -> str:
        self.at += 1
        out = ""
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == '"':
                self.at += 1
                return out
            if letter == "$":
                out += self._dollar()
            elif letter == self.escape:
                out += self._escaped('"$' + self.escape)
            else:
                out += letter
                self.at += 1
        raise BadVariable("unexpected end of statement while looking for matching double-quote")

    def _name(self) -> str:
        match = _NAME.match(self.text, self.at)
        found = match[0] if match else self.text[self.at : self.at + 1]
        if not match and found not in _SPECIAL:
            return ""
        self.at += len(found)
        return found

    def _dollar(self) -> str:
        self.at += 1
        if self.text[self.at : self.at + 1] == "{":
            self.at += 1
            return self._braced()
        name = self._name()
        return self.values.get(name, "") if name else "$"

    def _braced(self) -> str:
        name = self._name()
        if not name:
            raise BadVariable(f"bad substitution in {self.text[:80]!r}")
        operator = self._operator()
        if operator == "}":
            return self.values.get(name, "")
        if operator in ("/", "//"):
            pattern = self.until("/}")
            replacement = self.until("}") if self.text[self.at - 1] == "/" else ""
            return _replaced(self.values.get(name, ""), pattern, replacement, every=operator == "//")
        word = self.until("}")
        if operator in ("#", "##", "%", "%%"):
            return _trimmed(self.values.get(name, ""), word, operator)
        return self._chosen(name, operator, word)

    def _operator(self) -> str:
        for operator in ("}", ":-", ":+", ":?", "-", "+", "?", "##", "#", "%%", "%", "//", "/"):
            if self.text.startswith(operator, self.at):
                self.at += len(operator)
                return operator
        raise BadVariable(f"unsupported modifier in substitution: {self.text[:80]!r}")

    def _chosen(self, name: str, operator: str, word: str) -> str:
        value = self.values.get(name, "")
        there = bool(value) if operator.startswith(":") else name in self.values
        if operator.endswith("+"):
            return word if there else ""
        if operator.endswith("-"):
            return value if there else word
        if not there:
            raise BadVariable(f"{name}: {word or 'not allowed to be unset'}")
        return value


def _pattern(text: str, *, greedy: bool) -> str:
    """A shell's pattern as a regular expression: * and ? match any letters."""
    many = ".*" if greedy else ".*?"
    out, at = "", 0
    while at < len(text):
        letter = text[at]
        if letter == "\\" and at + 1 < len(text):
            at += 1
            out += re.escape(text[at])
        else:
            out += {"*": many, "?": "."}.get(letter, re.escape(letter))
        at += 1
    return out


def _trimmed(value: str, pattern: str, operator: str) -> str:
    greedy = len(operator) == 2
    if operator[0] == "#":
        match = re.match(_pattern(pattern, greedy=greedy), value, re.DOTALL)
        return value[match.end() :] if match else value
    regex = re.compile(_pattern(pattern, greedy=True), re.DOTALL)
    starts = range(len(value) + 1) if greedy else range(len(value), -1, -1)
    return next((value[:at] for at in starts if regex.fullmatch(value, at)), value)


def _replaced(value: str, pattern: str, replacement: str, *, every: bool) -> str:
    if not pattern:
        return value
    regex = re.compile(_pattern(pattern, greedy=True), re.DOTALL)
    return regex.sub(lambda _match: replacement, value, count=0 if every else 1)
