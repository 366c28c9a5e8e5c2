"""Rows as docker prints them: aligned tables, --format templates, JSON lines, ids alone.

Decides the layout only; which columns there are and how a cell reads is told by the command. The template evaluator is
imported only when --format is given.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .app import App, harmless
from .options import Flag, Values, many, one, switch, text

PADDING, NARROWEST = 3, 10  # docker's tabwriter


class Look(NamedTuple):
    """How cells are to read."""

    full: bool = False
    now: float = time.time()


class Column(NamedTuple):
    """One field of a row: its name in templates, its header, and its text."""

    name: str
    header: str
    cell: Callable[[Json, Look], str]


class Row(dict[str, Any]):
    """A row for templates; `methods` are what docker's templates call with an argument."""

    __slots__ = ("methods",)

    def __init__(self, cells: Mapping[str, str], labels: Mapping[str, str] | None = None) -> None:
        super().__init__(cells)
        self.methods = {"Label": lambda key: (labels or {}).get(key, "")}


FORMAT = one("--format", text, "TEMPLATE", "'table', 'table TEMPLATE', 'json', or a Go template")
FILTER = many("-f --filter", text, "KEY=VALUE", "show only what matches")
QUIET = switch("-q --quiet", "print ids only")
NO_TRUNC = switch("--no-trunc", "do not shorten anything")
LISTING: tuple[Flag, ...] = (FILTER, FORMAT, NO_TRUNC, QUIET)


def filters(values: Values, known: Sequence[str]) -> dict[str, list[str]]:
    """--filter as the engine takes it; an unknown key is an error that names those there are."""
    found: dict[str, list[str]] = {}
    for item in values["filter"]:
        key, eq, value = item.partition("=")
        if not eq or key not in known:
            why = f'unknown filter "{key}"' if eq else "not KEY=VALUE"
            raise WherryError(
                Kind.INVALID,
                f'invalid value "{item}" for --filter: {why}',
                hint="--filter takes KEY=VALUE with one of " + ", ".join(known),
            )
        found.setdefault(key, []).append(value)
    return found


def show(
    app: App,
    rows: Sequence[Json],
    columns: Sequence[Column],
    default: Sequence[str],
    values: Values,
    *,
    key: str = "ID",
) -> None:
    """Print rows: as --format says, or the `default` columns, or with -q the column `key` alone."""
    look = Look(bool(values.get("no_trunc")))
    form = unescaped(values.get("format") or "table")
    by_name = {column.name: column for column in columns}
    if values.get("quiet") and form == "table":
        lines = [by_name[key].cell(row, look) for row in rows]
    elif form == "table":
        chosen = [by_name[name] for name in default]
        lines = aligned([[c.header for c in chosen], *([c.cell(row, look) for c in chosen] for row in rows)])
    else:
        lines = formatted(rows, columns, form, look)
    app.out("".join(line + "\n" for line in lines), end="")


def unescaped(form: str) -> str:
    """docker reads \\t and \\n in a format, as the shell does not."""
    return form.strip().replace("\\t", "\t").replace("\\n", "\n")


def formatted(rows: Sequence[Json], columns: Sequence[Column], form: str, look: Look) -> list[str]:
    """json, a template, or a table by a template."""
    from .gotemplate import Template

    cells = [Row({c.name: c.cell(row, look) for c in columns}, row.get("Labels")) for row in rows]
    if form == "json":
        form = "{{json .}}"
    if not form.startswith("table"):
        template = Template(form)
        return [template.render(row) for row in cells]
    template = Template(form.removeprefix("table").strip())
    heads = Row({c.name: c.header for c in columns})
    heads.methods = {"Label": lambda key: str(key).rpartition(".")[2].upper()}
    return aligned([template.render(row).split("\t") for row in (heads, *cells)])


def aligned(rows: Sequence[Sequence[str]], narrowest: int = NARROWEST) -> list[str]:
    """Lines with their cells in columns; the last cell of a line is not padded. What an image says moves no cursor."""
    widths: dict[int, int] = {}
    for row in rows:
        for at, cell in enumerate(row[:-1]):
            widths[at] = max(widths.get(at, narrowest), len(cell) + PADDING)
    lines = ["".join([*(cell.ljust(widths[at]) for at, cell in enumerate(row[:-1])), *row[-1:]]) for row in rows]
    return [line if line.isprintable() else harmless(line) for line in lines]


def one_object(app: App, found: Json, form: str | None) -> bool:
    """Print one object by a template or as JSON; False if no format was given."""
    if not form:
        return False
    from .gotemplate import Template

    source = "{{json .}}" if form == "json" else unescaped(form)
    app.out(Template(source).render(found))
    return True
