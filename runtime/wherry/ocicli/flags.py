"""The command line as tables, read in Go's manner: `--name value`, `--name=value`, one dash or two.

Decides how a line is split into flags and words, and how help looks. Knows no verb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["Flag", "Values", "Verb", "read", "usage"]

_TRUE, _FALSE = ("true", "1", "t", "T", "TRUE"), ("false", "0", "f", "F", "FALSE")  # Go's strconv.ParseBool
Values = Mapping[str, Any]


class Flag(NamedTuple):
    """`--name`; with a `metavar` it takes a value, `many` times where that is set. `short` is its letter."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""
    many: bool = False

    @property
    def key(self) -> str:
        """Its name in the values."""
        return self.name.replace("-", "_")

    @property
    def default(self) -> str | bool | tuple[str, ...]:
        """The value of one that is not given."""
        return () if self.many else "" if self.metavar else False


class Verb(NamedTuple):
    """A verb: `words` is the usage of its arguments, of which `least` to `most` may be given (most < 0: any)."""

    name: str
    help: str
    words: str
    least: int
    most: int
    flags: tuple[Flag, ...] = ()
    command: bool = False  # from the second word on, everything is the command's own


def read(flags: Sequence[Flag], argv: Sequence[str], stop_after: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """(values, words). Flags end at `--` or, with `stop_after`, once that many words were read; INVALID on a breach."""
    by_name = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    values: dict[str, Any] = {flag.key: flag.default for flag in flags}
    rest, words = list(argv), list[str]()
    while rest:
        if stop_after is not None and len(words) >= stop_after and (words or not rest[0].startswith("-")):
            break
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("-") and word != "-":
            _take(by_name, word, rest, values)
        else:
            words.append(word)
    return values, words + rest


def _take(by_name: Mapping[str, Flag], word: str, rest: list[str], values: dict[str, Any]) -> None:
    name, given, value = word.lstrip("-").partition("=")
    flag = by_name.get(name)
    if flag is None:
        raise WherryError(Kind.INVALID, f"flag provided but not defined: {word.partition('=')[0]}")
    if not flag.metavar:
        values[flag.key] = _boolean(word, value) if given else True
        return
    if not given:
        if not rest:
            raise WherryError(Kind.INVALID, f"flag needs an argument: {word}")
        value = rest.pop(0)
    values[flag.key] = (*values[flag.key], value) if flag.many else value


def _boolean(word: str, text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise WherryError(Kind.INVALID, f"{word}: neither true nor false")
    return text in _TRUE


def usage(program: str, words: str, text: str, flags: Sequence[Flag], verbs: Sequence[Verb] = ()) -> str:
    """The help of the program or of a verb."""
    lines = [f"Usage: {program} {words}".rstrip(), "", text]
    if verbs:
        wide = max(len(verb.name) for verb in verbs)
        lines += ["", "Verbs:", *(f"  {verb.name:{wide}}  {verb.help}" for verb in verbs)]
    if flags:
        spelled = {flag: _spelled(flag) for flag in flags}
        wide = max(map(len, spelled.values()))
        lines += ["", "Options:", *(f"  {spelled[flag]:{wide}}  {flag.help}" for flag in flags)]
    return "\n".join(lines)


def _spelled(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else ""
    return f"{short}--{flag.name} {flag.metavar}".rstrip()
