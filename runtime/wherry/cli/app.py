"""What every command of the CLI stands on: the caller's world (`App`), and a command as data (`Command`).

Nothing is kept between two calls: streams and environment come in with `App`, never from `sys` or `os`. Knows nothing
of click: a command is a table of flags, which `quick.py` reads for the plain case and `clicks.py` for all others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TextIO

from wherry.errors import Kind, WherryError

from .options import Flag, Values

if TYPE_CHECKING:
    from wherry.engine.engine import Engine
    from wherry.model import ProgressEvent

USAGE_ERROR = 125


class Stdio(NamedTuple):
    """The caller's three streams. Those of a real process have `fileno`; relays use the descriptors."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @staticmethod
    def process() -> Stdio:
        """The streams of this process."""
        return Stdio(sys.stdin, sys.stdout, sys.stderr)


def fd_of(stream: TextIO) -> int:
    """The stream's descriptor, -1 where it has none (closed, or kept in memory)."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return -1


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal."""
    fd = fd_of(stream)
    return fd >= 0 and os.isatty(fd)


def _write(stream: TextIO, text: str) -> None:
    """What has no bytes in the stream's encoding (JSON of an image may hold half a surrogate pair) is escaped."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode())


def harmless(text: str) -> str:
    """Without what moves a terminal's cursor, or does worse there."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


class App:
    """One call of the CLI."""

    __slots__ = ("_answer_first", "_engine", "cwd", "debug", "env", "failure", "places", "stdio")

    def __init__(self, env: Mapping[str, str], stdio: Stdio, cwd: str, *, answer_first: bool = False) -> None:
        self.env, self.stdio, self.cwd = env, stdio, cwd
        self._answer_first = answer_first
        self.places: dict[str, str] = {}
        self.debug = False
        self.failure = USAGE_ERROR
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, opened at the first use."""
        if self._engine is None:
            from wherry.engine.config import place
            from wherry.engine.engine import Engine

            self._engine = Engine(place(env=self.env, **self.places), self.warn, answer_first=self._answer_first)
        return self._engine

    def behind(self) -> Callable[[], None] | None:
        """What is to be done once the command has answered."""
        return self._engine.catch_up if self._engine is not None and self._engine.behind else None

    def out(self, text: str, end: str = "\n") -> None:
        """Print on standard output."""
        _write(self.stdio.stdout, text + end)

    def err(self, text: str) -> None:
        """Print on standard error, after what standard output holds."""
        self.stdio.stdout.flush()
        _write(self.stdio.stderr, text + "\n")
        self.stdio.stderr.flush()

    def warn(self, text: str) -> None:
        """Print a warning as docker does."""
        self.err(f"WARNING: {text}")

    def fail(self, error: WherryError) -> None:
        """Print one failure: a sentence, and a hint where there is something to do. It may quote what is hostile."""
        self.err(f"wherry: {harmless(error.message)}")
        if error.hint:
            self.err(f"  hint: {harmless(error.hint)}")

    def raw_out(self, data: bytes) -> None:
        """Print bytes as they are, at once."""
        self.stdio.stdout.flush()
        _raw(self.stdio.stdout, data)

    def raw_err(self, data: bytes) -> None:
        """Print bytes on standard error as they are, at once."""
        self.stdio.stderr.flush()
        _raw(self.stdio.stderr, data)

    def read_file(self, path: str) -> str:
        """A file that a flag names, relative to the caller's directory; "-" is standard input."""
        if path == "-":
            return self.stdio.stdin.read()
        full = os.path.join(self.cwd, path)
        try:
            with open(full, encoding="utf-8") as file:
                return file.read(16 << 20)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise WherryError(Kind.INVALID, f"cannot read {path}: {why}", hint="give a readable text file") from error

    def progress(self, quiet: bool = False) -> Callable[[ProgressEvent], None] | None:
        """Where a pull reports: bars on a terminal, lines otherwise. Costs nothing until the first event."""
        if quiet:
            return None
        shown: list[Callable[[ProgressEvent], None]] = []

        def report(event: ProgressEvent) -> None:
            if not shown:
                from .progress import reporter

                shown.append(reporter(self.stdio.stderr, is_terminal(self.stdio.stderr)))
            shown[0](event)

        return report


def _raw(stream: TextIO, data: bytes) -> None:
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(data.decode("utf-8", "replace"))
    else:
        buffer.write(data)
        buffer.flush()


def each(app: App, refs: Iterable[str], act: Callable[[str], object], show: bool = True) -> int:
    """docker's way with several objects: do what can be done, print each done, report each failure, 1 if any."""
    code = 0
    for ref in refs:
        try:
            act(ref)
        except WherryError as error:
            app.fail(error)
            code = 1
        else:
            if show:
                app.out(ref)
    return code


# ---- commands, as data ----

Action = Callable[[App, Values], "int | None"]


class Command(NamedTuple):
    """One command: its usage line, its flags, and what it does.

    `words` as docker's usage: NAME, [NAME], NAME..., [NAME...]. `failure` is the exit code of a failed action;
    `interspersed`: flags may follow the first argument (not for run and exec, whose command has flags of its own).
    """

    name: str
    words: str
    flags: tuple[Flag, ...]
    action: Action
    failure: int = 1
    aliases: str = ""
    examples: str = ""
    interspersed: bool = True

    def run(self, app: App, values: Values) -> int:
        """Do it; from here on a failure has the command's own exit code."""
        app.failure = self.failure
        return self.action(app, values) or 0


def verb(
    name: str,
    words: str,
    *flags: Flag,
    failure: int = 1,
    aliases: str = "",
    examples: str = "",
    interspersed: bool = True,
) -> Callable[[Action], Command]:
    """Make a command of a function, whose docstring is the command's help."""
    return lambda action: Command(name, words, flags, action, failure, aliases, examples, interspersed)


def word_key(word: str) -> str:
    """The key of an argument's value: "[COMMAND]" is command."""
    return re.sub(r"\W+", "_", word.strip("[]").removesuffix("...").lower())
