"""What every command of the CLI stands on: the caller's world (`App`), and click commands made from tables of flags.

Decides how flags are spelled (docker's switches take --flag=false), how help looks, and which exit code a failure has
(125 for wrong usage). A command's module is imported when the command is invoked, not before. Nothing is kept between
two calls: streams and environment come in with `App`, never from `sys` or `os`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from wherry.errors import Kind, WherryError

from . import parse
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


class App:
    """One call of the CLI."""

    __slots__ = ("_engine", "cwd", "debug", "env", "failure", "places", "stdio")

    def __init__(self, env: Mapping[str, str], stdio: Stdio, cwd: str) -> None:
        self.env, self.stdio, self.cwd = env, stdio, cwd
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

            self._engine = Engine(place(env=self.env, **self.places), self.warn)
        return self._engine

    def close(self) -> None:
        """Let the engine go."""
        if self._engine is not None:
            self._engine.close()

    def out(self, text: str, end: str = "\n") -> None:
        """Print on standard output."""
        self.stdio.stdout.write(text + end)

    def err(self, text: str) -> None:
        """Print on standard error, after what standard output holds."""
        self.stdio.stdout.flush()
        self.stdio.stderr.write(text + "\n")
        self.stdio.stderr.flush()

    def warn(self, text: str) -> None:
        """Print a warning as docker does."""
        self.err(f"WARNING: {text}")

    def fail(self, error: WherryError) -> None:
        """Print one failure: a sentence, and a hint where there is something to do."""
        self.err(f"wherry: {error.message}")
        if error.hint:
            self.err(f"  hint: {error.hint}")

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


# ---- click, from tables ----

Action = Callable[[App, Values], "int | None"]


class Typed(click.ParamType[Any]):
    """A parser of `parse.py` as a click type; its error is the WherryError that teaches."""

    def __init__(self, parser: Callable[[str, str], Any]) -> None:
        self.parser = parser
        self.name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Parse text; click also calls it with defaults, which are values already."""
        if not isinstance(value, str):
            return value
        flag = max(param.opts, key=len) if param is not None else "value"
        return self.parser(flag, value)


class Switch(click.Option):
    """An option that takes a boolean; `switches_spelled_out` supplies the value that a bare switch stands for."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The switch alone, without the value."""
        record = super().get_help_record(ctx)
        return None if record is None else (", ".join(self.opts), record[1])


def option(flag: Flag) -> click.Option:
    """The click option of one row."""
    names, text = [*flag.names, flag.key], flag.help
    if flag.parser is None:
        return Switch(names, type=Typed(parse.boolean), default=flag.default, help=text, metavar=" ")
    default = () if flag.many else flag.default
    return click.Option(
        names, type=Typed(flag.parser), multiple=flag.many, metavar=flag.metavar, help=text, default=default
    )


COMPLETED = {"CONTAINER": "container", "IMAGE": "image", "VOLUME": "volume", "NETWORK": "network"}


def argument(word: str) -> click.Argument:
    """The click argument of one word of a usage line: NAME, [NAME], NAME..., [NAME...]."""
    optional, bare = word.startswith("["), word.strip("[]")
    name = bare.removesuffix("...")
    kind = COMPLETED.get(name)

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return ctx.ensure_object(App).engine.complete(kind, incomplete) if kind else []

    return click.Argument(
        [re.sub(r"\W+", "_", name.lower())],
        nargs=-1 if bare.endswith("...") else 1,
        required=not optional,
        type=click.UNPROCESSED,
        metavar=word,
        shell_complete=complete if kind else None,
    )


def switches_spelled_out(args: Sequence[str], options: Iterable[click.Option], interspersed: bool) -> list[str]:
    """Give each bare switch the value that it stands for: --rm is --rm=true, -it is --interactive=true --tty=true."""
    by_name = {name: o for o in options for name in o.opts}
    out: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--" or (not interspersed and (not word.startswith("-") or word == "-")):
            return [*out, word, *rest]
        if word.startswith("--"):
            out += _long(word, by_name, rest)
        elif len(word) > 1 and word.startswith("-"):
            out += _cluster(word, by_name, rest)
        else:
            out.append(word)
    return out


def _long(word: str, by_name: Mapping[str, click.Option], rest: list[str]) -> list[str]:
    name, eq, _ = word.partition("=")
    known = by_name.get(name)
    if isinstance(known, Switch) and not eq:
        return [f"{name}=true"]
    takes_next = known is not None and not eq and not known.is_flag and bool(rest)
    return [word, rest.pop(0)] if takes_next else [word]


def _cluster(word: str, by_name: Mapping[str, click.Option], rest: list[str]) -> list[str]:
    """-it, -itv SPEC, -dp80:80, -i=false."""
    out: list[str] = []
    for at, letter in enumerate(word[1:], 1):
        known, tail = by_name.get(f"-{letter}"), word[at + 1 :]
        if not isinstance(known, Switch):
            text = f"-{letter}{tail.removeprefix('=') if known else tail}"
            return [*out, text, rest.pop(0)] if known and not tail and rest else [*out, text]
        if tail.startswith("="):
            return [*out, f"{known.opts[-1]}{tail}"]
        out.append(f"{known.opts[-1]}=true")
    return out


class Verb(click.Command):
    """One command: its flags and arguments from tables, its action a function of (App, values)."""

    def __init__(self, name: str, action: Action, params: list[click.Parameter], **more: Any) -> None:
        self.action, self.failure, self.examples = action, more.pop("failure", 1), more.pop("examples", "")
        self.aliases, self.words = more.pop("aliases", ""), more.pop("words", "")
        settings = {"help_option_names": ["--help"], "max_content_width": 100}
        settings["allow_interspersed_args"] = more.pop("interspersed", True)
        super().__init__(name, params=params, context_settings=settings, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell the switches out, then parse as click does."""
        options = [p for p in self.params if isinstance(p, click.Option)]
        return super().parse_args(ctx, switches_spelled_out(args, options, ctx.allow_interspersed_args))

    def invoke(self, ctx: click.Context) -> int:
        """Run the action; from here on a failure has the command's own exit code."""
        app = ctx.ensure_object(App)
        app.failure = self.failure
        return self.action(app, ctx.params) or 0

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """--help on the caller's stream, not on sys.stdout."""
        return help_option(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """docker's usage line."""
        pieces = ["[OPTIONS]"] if len(self.get_params(ctx)) > len(self.words.split()) else []
        return [*pieces, *self.words.split()]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Aliases and examples, their lines kept."""
        if self.aliases:
            formatter.write(f"\nAliases:\n  {self.aliases}\n")
        if self.examples:
            lines = "".join(f"  {line}\n" if line else "\n" for line in self.examples.strip().splitlines())
            formatter.write(f"\nExamples:\n{lines}")


def help_option(found: click.Option | None) -> click.Option | None:
    """Make click's help option print on the stream of the App."""

    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.ensure_object(App).out(ctx.get_help())
            ctx.exit()

    if found is not None:
        found.callback = show
    return found


def verb(name: str, words: str, *flags: Flag, **more: Any) -> Callable[[Action], Verb]:
    """Make a command of a function: `words` is its usage line, the function's docstring its help."""

    def make(action: Action) -> Verb:
        params: list[click.Parameter] = [option(flag) for flag in flags]
        params += [argument(word) for word in words.split()]
        return Verb(name, action, params, words=words, help=action.__doc__, **more)

    return make


class Entry(NamedTuple):
    """One row of a group: where the command lives (module:attribute) and what it does, in one line."""

    where: str
    help: str
    section: str = "Commands"
    hidden: bool = False


class Lazy(click.Group):
    """A group whose commands are imported when they are invoked."""

    def __init__(self, name: str, entries: Mapping[str, Entry], **more: Any) -> None:
        self.entries, self.examples = entries, more.pop("examples", "")
        settings = {"help_option_names": ["--help"], "max_content_width": 100}
        super().__init__(name, context_settings=settings, no_args_is_help=True, **more)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, as the table orders them."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.where.partition(":")
        command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """click's, with the nearest name as a hint."""
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            raise self.unknown(ctx, args[0])
        return super().resolve_command(ctx, args)

    def unknown(self, ctx: click.Context, name: str) -> WherryError:
        """The error for a command that does not exist."""
        from difflib import get_close_matches

        near = get_close_matches(name, self.entries, 1)
        hint = f"did you mean {ctx.command_path} {near[0]}?" if near else f"see {ctx.command_path} --help"
        return WherryError(Kind.INVALID, f'"{name}" is not a command of {ctx.command_path}', hint=hint)

    def invoke(self, ctx: click.Context) -> Any:
        """click's, which gives the command's exit code back."""
        return super().invoke(ctx)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """--help on the caller's stream."""
        return help_option(super().get_help_option(ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table's one-liners by section; no command's module is imported for it."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.entries.items():
            if not entry.hidden:
                sections.setdefault(entry.section, []).append((name, entry.help))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where to read on."""
        formatter.write(f"\nRun '{ctx.command_path} COMMAND --help' for more on a command.\n")
