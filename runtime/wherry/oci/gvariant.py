"""A D-Bus value from GVariant text ("uint64 5", "'a'", "[1, 2]", "@as []"): what annotations give systemd. Pure.

Reads what runc and crun read there: numbers, booleans, strings and lists of them. Refuses tuples and dictionaries.
"""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["parse"]

_TYPES: Final = {
    "boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
    "double": "d", "string": "s",
}  # fmt: skip
_BOUNDS: Final = {
    "y": (0, 2**8 - 1), "n": (-(2**15), 2**15 - 1), "q": (0, 2**16 - 1), "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "t": (0, 2**64 - 1),
}  # fmt: skip
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<word>[a-z]+[0-9]*)|@(?P<sign>a{0,32}[bynqiuxtds])(?![a-z])
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]+)?))(?![0-9a-zA-Z_.])|(?P<mark>[\[\],]))""",
    re.VERBOSE | re.DOTALL,
)
_DEPTH: Final = 32  # of arrays, D-Bus specification, "Valid Signatures"
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


def parse(text: str) -> tuple[str, Any]:
    """(signature, value); ValueError where it is none."""
    text.encode()  # what is no UTF-8 is no D-Bus string; nor is a NUL
    if "\0" in text or text.count("[") > _DEPTH:
        raise ValueError(f"it holds a NUL or more than {_DEPTH} lists")
    reader = _Reader(_tokens(text))
    found = reader.value("")
    if reader.tokens:
        raise ValueError(f"{reader.tokens[0][1]!r} comes after the value")
    return found


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if not match:
            raise ValueError(f"no value begins at {text[at:at + 20]!r}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found


class _Reader:
    """The rest of the tokens (kind, text)."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise ValueError("it ends too early")
        return self.tokens.pop(0)

    def value(self, wanted: str) -> tuple[str, Any]:
        """One value; `wanted` is the signature that was announced, "" for none."""
        kind, text = self.take()
        if kind == "sign":
            return self.value(_agreed(wanted, text))
        if kind == "word" and text in _TYPES:
            return self.value(_agreed(wanted, _TYPES[text]))
        if (kind, text) == ("mark", "["):
            return self.array(wanted)
        if kind == "string" and wanted in ("", "s"):
            return "s", re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text[1:-1], flags=re.DOTALL)
        if kind == "word" and text in ("true", "false") and wanted in ("", "b"):
            return "b", text == "true"
        if kind == "number":
            return _number(text, wanted)
        raise ValueError(f"{text!r} is not expected")

    def array(self, wanted: str) -> tuple[str, Any]:
        """After "[": values of one type; the first one says which unless it was announced."""
        if wanted and wanted[0] != "a":
            raise ValueError("a list is not expected")
        inner, values = wanted[1:], list[Any]()
        while self.tokens[:1] != [("mark", "]")]:
            if values and self.take() != ("mark", ","):
                raise ValueError("a comma is missing in the list")
            inner, value = self.value(inner)
            values.append(value)
        self.take()
        if not inner:
            raise ValueError("the type of an empty list is not known: @as []")
        return f"a{inner}", bytes(values) if inner == "y" else values


def _agreed(wanted: str, found: str) -> str:
    if wanted and wanted != found:
        raise ValueError(f"a value of type {found} where {wanted} is expected")
    return found


def _number(text: str, wanted: str) -> tuple[str, Any]:
    signature = wanted or ("d" if "." in text else "i")
    if signature == "d":
        return "d", float(text)
    low, high = _BOUNDS.get(signature, (1, 0))
    number = int(text, 16 if "x" in text.lower() else 10) if "." not in text else high + 1
    if not low <= number <= high:
        raise ValueError(f"{text} is no value of type {signature}")
    return signature, number
