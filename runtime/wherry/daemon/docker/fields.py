"""A JSON object whose fields are of the types that they have in Go: a wrong one is INVALID and named.

null and absent are the same, as to Go's decoder. Decides no meaning; knows no field's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from wherry.errors import Kind, WherryError
from wherry.model import Json

__all__ = ["Fields"]

_T = TypeVar("_T")
_WORDS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}
_INT_MAX = 1 << 63


class Fields:
    """One object; `path`: how messages call it."""

    def __init__(self, value: Json, path: str = "") -> None:
        self._value, self._path = value, path

    def name(self, key: str) -> str:
        """How a message calls a field."""
        return f"{self._path}.{key}" if self._path else key

    def _get(self, key: str, kind: type[_T]) -> _T | None:
        found = self._value.get(key)
        return None if found is None else _of(kind, found, self.name(key))

    def has(self, key: str) -> bool:
        """Whether it is there, and not null."""
        return self._value.get(key) is not None

    def text(self, key: str) -> str:
        """A text, "" for none."""
        return self._get(key, str) or ""

    def flag(self, key: str) -> bool:
        """A boolean, False for none."""
        return bool(self._get(key, bool))

    def number(self, key: str) -> int:
        """A whole number of 64 bits, 0 for none."""
        return self.maybe(key) or 0

    def maybe(self, key: str) -> int | None:
        """A whole number of 64 bits, None for none."""
        found = self._get(key, int)
        if found is not None and not -_INT_MAX <= found < _INT_MAX:
            raise WherryError(Kind.INVALID, f"{self.name(key)} is no number of 64 bits")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(_of(str, one, self.name(key)) for one in self._get(key, list) or ())

    def words(self, key: str) -> tuple[str, ...] | None:
        """docker's StrSlice: a list of texts, or one; None for none."""
        if not self.has(key):
            return None
        return (self.text(key),) if isinstance(self._value[key], str) else self.texts(key)

    def pairs(self, key: str) -> dict[str, str]:
        """An object of texts; null is ""."""
        found = self._get(key, dict) or {}
        return {name: _of(str, value or "", f"{self.name(key)}.{name}") for name, value in found.items()}

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of an object that is a set."""
        return tuple(self._get(key, dict) or ())

    def part(self, key: str) -> Fields:
        """An object below; an empty one for none."""
        return Fields(self._get(key, dict) or {}, self.name(key))

    def parts(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(_of(dict, one, self.name(key)), self.name(key)) for one in self._get(key, list) or ()]

    def items(self, key: str) -> Iterator[tuple[str, Fields]]:
        """An object of objects."""
        for name, value in (self._get(key, dict) or {}).items():
            yield name, Fields(_of(dict, value or {}, f"{self.name(key)}.{name}"), f"{self.name(key)}.{name}")

    def lists(self, key: str) -> Iterator[tuple[str, list[Fields]]]:
        """An object of lists of objects."""
        inner = self.part(key)
        for name in self.keys(key):
            yield name, inner.parts(name)


def _of(kind: type[_T], value: Any, name: str) -> _T:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise WherryError(Kind.INVALID, f"{name[:200]} must be {_WORDS[kind]}, not {type(value).__name__}")
