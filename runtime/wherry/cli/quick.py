"""The plain command line, read straight from the tables, without the 40 ms that importing click takes.

Understands only what is right. Anything else (help, an unknown flag, a missing argument, a value that does not
parse) gives None, and click reads the same line from the same tables, to explain it. So click decides what a line
means, and a test holds both to the same answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import WherryError

from . import parse
from .app import App, Command, word_key
from .menu import GROUPS, TOP, load
from .options import Flag, Values

PLACES = ("--root", "--state", "--config")
DEBUG = ("-D", "--debug")


class Line(NamedTuple):
    """A whole command line, understood."""

    places: Mapping[str, str]
    debug: bool
    command: Command
    values: Values

    def run(self, app: App) -> int:
        """Do it."""
        app.places.update(self.places)
        app.debug = self.debug
        return self.command.run(app, self.values)


class _Odd(Exception):
    """Something that click explains better."""


def read(argv: Sequence[str]) -> Line | None:
    """The line's meaning; None where it is not plain."""
    rest = list(argv)
    try:
        places, debug = _global(rest)
        command = _command(rest)
        given, words = _split(command, rest)
        values = {**_defaults(command), **given, **_arguments(command, words)}
    except (_Odd, WherryError, IndexError):
        return None
    return Line(places, debug, command, values)


def _global(rest: list[str]) -> tuple[dict[str, str], bool]:
    places: dict[str, str] = {}
    debug = False
    while rest[0].startswith("-"):
        name, eq, value = rest.pop(0).partition("=")
        if name in PLACES:
            places[name[2:]] = value if eq else rest.pop(0)
        elif name in DEBUG and not eq and not places:  # click takes it as the first word only
            debug = True
        else:
            raise _Odd
    return {key: value for key, value in places.items() if value}, debug


def _command(rest: list[str]) -> Command:
    table = TOP
    while True:
        word = rest.pop(0)
        if word in GROUPS and table is TOP:
            table = GROUPS[word]
            continue
        found = load(table[word]) if word in table else None
        if not isinstance(found, Command):
            raise _Odd
        return found


def _defaults(command: Command) -> dict[str, Any]:
    return {flag.key: () if flag.many else flag.default for flag in command.flags}


def _split(command: Command, rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Values of the flags that were given, and the words that are none."""
    by_name = {name: flag for flag in command.flags for name in flag.names}
    given: dict[str, Any] = {}
    words: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return given, words + rest
        if not word.startswith("-") or word == "-":
            words.append(word)
            if not command.interspersed:
                return given, words + rest
            continue
        for flag, name, value in _long(word, by_name, rest) if word.startswith("--") else _cluster(word, by_name, rest):
            _take(given, flag, name, value)
    return given, words


def _take(given: dict[str, Any], flag: Flag, name: str, value: str) -> None:
    read_value = flag.parser or parse.boolean
    parsed = read_value(name, value)
    given[flag.key] = (*given.get(flag.key, ()), parsed) if flag.many else parsed


Given = Iterator[tuple[Flag, str, str]]


def _flag(by_name: Mapping[str, Flag], name: str) -> tuple[Flag, str]:
    if name not in by_name:
        raise _Odd
    flag = by_name[name]
    return flag, max(flag.names, key=len)


def _long(word: str, by_name: Mapping[str, Flag], rest: list[str]) -> Given:
    name, eq, value = word.partition("=")
    flag, shown = _flag(by_name, name)
    if not eq:
        value = "true" if flag.parser is None else rest.pop(0)
    yield flag, shown, value


def _cluster(word: str, by_name: Mapping[str, Flag], rest: list[str]) -> Given:
    """-it, -itv SPEC, -dp80:80, -i=false."""
    for at, letter in enumerate(word[1:], 1):
        flag, shown = _flag(by_name, f"-{letter}")
        tail = word[at + 1 :]
        if flag.parser is not None:
            yield flag, shown, tail.removeprefix("=") if tail else rest.pop(0)
            return
        yield flag, shown, tail[1:] if tail.startswith("=") else "true"
        if tail.startswith("="):
            return


def _arguments(command: Command, words: list[str]) -> dict[str, Any]:
    """One value a word of the usage line, from the left; the repeated one, where there is one, takes the rest."""
    values: dict[str, Any] = {}
    usage = command.words.split()
    for at, word in enumerate(usage):
        optional, key = word.startswith("["), word_key(word)
        if word.strip("[]").endswith("..."):
            after = len(usage) - at - 1
            end = max(len(words) - after, 0)
            values[key], words = tuple(words[:end]), words[end:]
        else:
            values[key], words = (words[0], words[1:]) if words else (None, [])
        if not optional and not values[key] and values[key] != "":
            raise _Odd
    if words:
        raise _Odd
    return values
