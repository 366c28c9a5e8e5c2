"""The commands as click sees them: help, errors, completion, and every spelling that `quick.py` leaves alone.

Decides how flags are spelled (docker's switches take --flag=false), how help looks, and which exit code a failure has
(125 for wrong usage). A command's module is imported when the command is invoked, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from wherry.errors import Kind, WherryError

from . import parse
from .app import App, Command, word_key
from .menu import Entry, load
from .options import Flag


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


COMPLETED = {"CONTAINER": "container", "IMAGE": "image", "NAME[:TAG": "image", "NETWORK": "network",
             "SERVER": "registry", "SNAPSHOT": "snapshot", "VOLUME": "volume"}  # fmt: skip


def argument(word: str) -> click.Argument:
    """The click argument of one word of a usage line: NAME, [NAME], NAME..., [NAME...]."""
    optional, bare = word.startswith("["), word.strip("[]")
    name = bare.removesuffix("...")
    kind = COMPLETED.get(name)

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return ctx.ensure_object(App).engine.complete(kind, incomplete) if kind else []

    return click.Argument(
        [word_key(word)],
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
    """A `Command` as a click command."""

    def __init__(self, made: Command) -> None:
        self.made, self.words, self.aliases, self.examples = made, made.words, made.aliases, made.examples
        params: list[click.Parameter] = [option(flag) for flag in made.flags]
        params += [argument(word) for word in made.words.split()]
        settings = {"help_option_names": ["--help"], "max_content_width": 100}
        settings["allow_interspersed_args"] = made.interspersed
        super().__init__(made.name, params=params, context_settings=settings, help=made.action.__doc__)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell the switches out, then parse as click does."""
        options = [p for p in self.params if isinstance(p, click.Option)]
        return super().parse_args(ctx, switches_spelled_out(args, options, ctx.allow_interspersed_args))

    def invoke(self, ctx: click.Context) -> int:
        """Run the action."""
        return self.made.run(ctx.ensure_object(App), ctx.params)

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
        found = load(entry)
        return Verb(found) if isinstance(found, Command) else found

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


class WithDefault(Lazy):
    """A group whose first command's name may be left out, where the next word is no name of another."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Lazy's, with the first command where none is named."""
        first = next(iter(self.entries))
        named = not args or args[0] in self.entries or args[0].startswith("-")
        return super().resolve_command(ctx, args if named else [first, *args])
