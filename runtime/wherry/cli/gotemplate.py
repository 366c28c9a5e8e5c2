"""The subset of Go's text/template that docker's --format needs, as a small evaluator. Pure.

Text with actions {{...}}: fields, variables, literals, pipelines, calls, if/else if/else, range/else, with/else.
Decides what a value is true, equal or printed as by Go's rules. Knows no docker object: the data is what JSON has, and
mappings with `methods` (`{{.Label "key"}}`). A field that does not exist is an error that names those that do; inside
the condition of `if` and `with` it is nil, so that a field that only some objects have can be asked for there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError


def wrong(source: str, why: str) -> WherryError:
    """A template that cannot be used."""
    return WherryError(
        Kind.INVALID,
        f'template "{source}": {why}',
        hint='like --format "{{.ID}} {{.Names}}", --format "{{json .}}", --format "table {{.ID}}\\t{{.Names}}"',
    )


class Wrong(Exception):
    """What is wrong, before the template's source is known."""


# ---- words ----


class Word(NamedTuple):
    """One token of an action."""

    kind: str  # field, var, name, number, string, punct
    text: str
    value: Any = None
    spaced: bool = False  # white space before it: ".A .B" is two operands, ".A.B" one


WORDS = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[+-]?\d[\w.]*)|(?P<field>\.[^\W\d]\w*)|(?P<var>\$\w*)"""
    r"""|(?P<name>[^\W\d]\w*)|(?P<punct>:=|[().|,=])|(?P<space>\s+)"""
)


def _words(text: str) -> list[Word]:
    out: list[Word] = []
    at, spaced = 0, False
    while at < len(text):
        found = WORDS.match(text, at)
        if found is None:
            raise Wrong(f"unexpected {text[at : at + 10]!r} in {{{{{text}}}}}")
        at, kind = found.end(), found.lastgroup or ""
        if kind != "space":
            out.append(Word(kind, found[0], _literal(kind, found[0]), spaced))
        spaced = kind == "space"
    return out


def _literal(kind: str, text: str) -> Any:
    if kind == "string":
        return text[1:-1] if text[0] == "`" else unquoted(text)
    if kind == "number":
        try:
            return int(text, 0)
        except ValueError:
            pass
        try:
            return float(text)
        except ValueError:
            raise Wrong(f"{text} is no number") from None
    return None


def unquoted(text: str) -> str:
    """A Go string literal's value: its escapes are JSON's, and a few more."""
    inner = re.sub(r"\\x([0-9a-fA-F]{2})", r"\\u00\1", text).replace("\\a", "\\u0007").replace("\\v", "\\u000b")
    try:
        return str(json.loads(inner.replace("\t", "\\t").replace("\\'", "'")))
    except ValueError:
        raise Wrong(f"{text} is no string") from None


# ---- tree ----

Scope = dict[str, Any]


class Operand(NamedTuple):
    """A value: where it starts, and the fields after it."""

    start: Any  # Word (name, var, string, number, "."), or a nested Pipe
    fields: tuple[str, ...] = ()


class Pipe(NamedTuple):
    """Commands, each fed with the value of the one before; `names` are the variables that it sets."""

    commands: tuple[tuple[Operand, ...], ...]
    names: tuple[str, ...] = ()
    declares: bool = True


class Block(NamedTuple):
    """if, range or with."""

    kind: str
    pipe: Pipe
    body: tuple[Node, ...]
    other: tuple[Node, ...] = ()


Node = str | Pipe | Block

ACTION = re.compile(r"\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:[^\"\\\n]|\\.)*\"|`[^`]*`|(?!\}\}).)*?)\s*(\s-)?\}\}", re.DOTALL)


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """(is an action, text) in order, trimmed as {{- and -}} ask."""
    at, trim = 0, False
    for found in ACTION.finditer(source):
        text = source[at : found.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if found[1] else text
        if not found[2].startswith("/*"):
            yield True, found[2]
        at, trim = found.end(), bool(found[3])
    rest = source[at:]
    if "{{" in rest:
        raise Wrong("{{ without }}")
    yield False, rest.lstrip() if trim else rest


class _Parser:
    """Recursive descent over the pieces of a template."""

    def __init__(self, source: str) -> None:
        self._pieces = [piece for piece in _pieces(source) if piece[1] or piece[0]]
        self._at = 0
        self._words: list[Word] = []

    def nodes(self, stops: tuple[str, ...]) -> tuple[tuple[Node, ...], str]:
        """Nodes up to one of the `stops`, and the rest of that action."""
        out: list[Node] = []
        while self._at < len(self._pieces):
            action, text = self._pieces[self._at]
            self._at += 1
            if not action:
                out.append(text)
                continue
            head = (text.split(None, 1) or [""])[0]
            if head in ("end", "else"):
                if head not in stops:
                    raise Wrong(f"unexpected {{{{{head}}}}}")
                return tuple(out), text
            out.append(self._block(head, text) if head in ("if", "range", "with") else self._pipe_of(text))
        if stops:
            raise Wrong("{{end}} is missing")
        return tuple(out), ""

    def _block(self, kind: str, text: str) -> Block:
        pipe = self._pipe_of(text[len(kind) :])
        body, stop = self.nodes(("end", "else"))
        other: tuple[Node, ...] = ()
        words = stop.split(None, 2)
        if words[0] == "else" and len(words) > 1:
            if words[1] != kind or kind == "range":
                raise Wrong(f"unexpected {{{{{stop}}}}}")
            other = (self._block(kind, kind + " " + (words[2] if len(words) > 2 else "")),)
        elif words[0] == "else":
            other, _ = self.nodes(("end",))
        return Block(kind, pipe, body, other)

    def _pipe_of(self, text: str) -> Pipe:
        self._words = _words(text)
        if not self._words:
            raise Wrong("an action is empty")
        pipe = self._pipe()
        if self._words:
            raise Wrong(f"unexpected {self._words[0].text!r} in {{{{{text}}}}}")
        return pipe

    def _pipe(self) -> Pipe:
        names, declares = self._names()
        commands = [self._command()]
        while self._next("|"):
            commands.append(self._command())
        return Pipe(tuple(commands), names, declares)

    def _next(self, text: str) -> bool:
        if self._words and self._words[0].kind == "punct" and self._words[0].text == text:
            self._words.pop(0)
            return True
        return False

    def _names(self) -> tuple[tuple[str, ...], bool]:
        """`$x :=`, `$i, $x :=` or `$x =` at the start."""
        texts = [word.text for word in self._words[:4]]
        for length, mark in ((1, ":="), (1, "="), (3, ":=")):
            fits = len(texts) > length and texts[length] == mark and texts[0].startswith("$")
            if fits and (length == 1 or (texts[1] == "," and texts[2].startswith("$"))):
                del self._words[: length + 1]
                return tuple(texts[0:length:2]), mark == ":="
        return (), True

    def _command(self) -> tuple[Operand, ...]:
        operands = []
        while self._words and not (self._words[0].kind == "punct" and self._words[0].text in ("|", ")")):
            operands.append(self._operand())
        if not operands:
            raise Wrong("a value is missing")
        return tuple(operands)

    def _operand(self) -> Operand:
        word = self._words.pop(0)
        if word.kind == "field":
            return Operand(Word("punct", "."), (word.text[1:], *self._fields()))
        if word.kind == "punct" and word.text == "(":
            inner = self._pipe()
            if not self._next(")"):
                raise Wrong("a ) is missing")
            return Operand(inner, self._fields())
        if word.kind == "punct" and word.text != ".":
            raise Wrong(f"unexpected {word.text!r}")
        return Operand(word, self._fields() if word.kind in ("var", "punct") else ())

    def _fields(self) -> tuple[str, ...]:
        out = []
        while self._words and self._words[0].kind == "field" and not self._words[0].spaced:
            out.append(self._words.pop(0).text[1:])
        return tuple(out)


# ---- values ----


def truth(value: Any) -> bool:
    """Go's: false are false, 0, nil and what is empty."""
    return bool(value)


def shown(value: Any) -> str:
    """Go's %v."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{shown(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(shown(v) for v in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value)


def _spaced(*values: Any) -> str:
    """Go's Sprint: a space between two operands when neither is a string."""
    out = ""
    for n, value in enumerate(values):
        gap = n > 0 and not isinstance(value, str) and not isinstance(values[n - 1], str)
        out += (" " if gap else "") + shown(value)
    return out


FORMAT = re.compile(r"%([-+ 0#]*)(\d+)?(?:\.(\d+))?([a-zA-Z%])")


def printf(form: Any, *values: Any) -> str:
    """Go's Sprintf for %v %s %d %f %g %e %q %t %x %c %T-less, with flags, width and precision."""
    rest = list(values)

    def one(found: re.Match[str]) -> str:
        flags, width, precision, letter = found[1], found[2] or "", found[3], found[4]
        if letter == "%":
            return "%"
        if not rest:
            return f"%!{letter}(MISSING)"
        return _directive(letter, flags, width, precision, rest.pop(0))

    text = FORMAT.sub(one, _text("printf", form))
    return text + (f"%!(EXTRA {', '.join(shown(v) for v in rest)})" if rest else "")


def _directive(letter: str, flags: str, width: str, precision: str | None, value: Any) -> str:
    exact = "" if precision is None else "." + precision
    try:
        if letter in "sv":
            cut = None if precision is None or letter == "v" else int(precision)
            return ("%" + flags.replace("0", "").replace("#", "") + width + "s") % shown(value)[:cut]
        if letter in "dxXocbU" and isinstance(value, int):
            number = format(value, "b") if letter == "b" else ("%" + flags + width + exact + letter) % value
            return number.rjust(int(width or 0)) if letter == "b" else number
        if letter in "feEgG" and isinstance(value, (int, float)):
            return ("%" + flags + width + exact + letter) % float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    others: dict[str, Callable[[], str]] = {
        "q": lambda: json.dumps(shown(value), ensure_ascii=False),
        "t": lambda: shown(value),
        "x": lambda: shown(value).encode().hex(),
    }
    return others[letter]().rjust(int(width or 0)) if letter in others else f"%!{letter}({shown(value)})"


def index(value: Any, *keys: Any) -> Any:
    """value[k1][k2]...; a key that a map lacks gives the zero value of its elements."""
    for key in keys:
        if isinstance(value, Mapping):
            texts = bool(value) and all(isinstance(v, str) for v in value.values())
            value = value.get(key, "" if texts else None)
        elif isinstance(value, (list, tuple, str)):
            if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(value):
                raise Wrong(f"index {shown(key)} is outside of {len(value)} elements")
            value = value[key] if not isinstance(value, str) else ord(value[key])
        else:
            raise Wrong("index of something that is no map and no list")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    low, high = (*bounds, *(0, len(value))[len(bounds) :])[:2] if isinstance(value, (str, list, tuple)) else (1, 0)
    if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high <= len(value)):
        raise Wrong("slice outside of the value")
    return value[low:high]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{name} takes text, not {shown(value)}")
    return value


def _length(value: Any) -> int:
    if not isinstance(value, (str, list, tuple, Mapping)):
        raise Wrong(f"len of {shown(value)}")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _join(items: Any, separator: Any = "") -> str:
    # docker writes both {{join .List ","}} and {{.List | join ","}}: the text is the separator
    if isinstance(items, str) and isinstance(separator, (list, tuple)):
        items, separator = separator, items
    if items is None:
        return ""
    if not isinstance(items, (list, tuple)):
        raise Wrong("join takes a list")
    return _text("join", separator).join(shown(v) for v in items)


def _same(left: Any, right: Any) -> bool:
    numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
    if isinstance(left, bool) is not isinstance(right, bool):
        numbers = False
    if not numbers and type(left) is not type(right) and None not in (left, right):
        raise Wrong(f"incompatible types for comparison: {shown(left)} and {shown(right)}")
    return bool(left == right)


def _less(left: Any, right: Any) -> bool:
    if isinstance(left, str) is not isinstance(right, str) or not isinstance(left, (str, int, float)):
        raise Wrong(f"incompatible types for comparison: {shown(left)} and {shown(right)}")
    return bool(left < right)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Go's encoder escapes these three for the sake of HTML
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _truncate(value: Any, width: Any) -> str:
    return _text("truncate", value)[: max(int(width), 0)]


def _pad(value: Any, before: Any, after: Any) -> str:
    text = _text("pad", value)
    return " " * int(before) + text + " " * int(after) if text else ""


Function = Callable[..., Any]
FUNCTIONS: Mapping[str, Function] = {
    "index": index,
    "slice": _slice,
    "len": _length,
    "json": _json,
    "join": _join,
    "split": lambda text, by: _text("split", text).split(by) if by else list(text),
    "lower": lambda text: _text("lower", text).lower(),
    "upper": lambda text: _text("upper", text).upper(),
    "title": lambda text: re.sub(r"(^|\s)(\S)", lambda m: m[1] + m[2].upper(), _text("title", text)),
    "truncate": _truncate,
    "pad": _pad,
    "print": _spaced,
    "println": lambda *values: " ".join(shown(v) for v in values) + "\n",
    "printf": printf,
    "eq": lambda left, *rights: any(_same(left, r) for r in rights),
    "ne": lambda left, right: not _same(left, right),
    "lt": _less,
    "le": lambda left, right: not _less(right, left),
    "gt": lambda left, right: _less(right, left),
    "ge": lambda left, right: not _less(left, right),
    "not": lambda value: not truth(value),
}
CONSTANTS: Mapping[str, Any] = {"true": True, "false": False, "nil": None}


class _Run:
    """One evaluation: the root object is `$`."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._lenient = 0  # inside a condition, where a missing field is nil

    def nodes(self, nodes: Sequence[Node], dot: Any, scope: Scope) -> str:
        out = []
        for node in nodes:
            if isinstance(node, str):
                out.append(node)
            elif isinstance(node, Pipe):
                value = self.pipe(node, dot, scope)
                out.append("" if node.names else shown(value))
            else:
                out.append(getattr(self, f"_{node.kind}")(node, dot, dict(scope)))
        return "".join(out)

    def _condition(self, pipe: Pipe, dot: Any, scope: Scope) -> Any:
        self._lenient += 1
        try:
            return self.pipe(pipe, dot, scope)
        finally:
            self._lenient -= 1

    def _if(self, block: Block, dot: Any, scope: Scope) -> str:
        chosen = block.body if truth(self._condition(block.pipe, dot, scope)) else block.other
        return self.nodes(chosen, dot, scope)

    def _with(self, block: Block, dot: Any, scope: Scope) -> str:
        value = self._condition(block.pipe, dot, scope)
        return self.nodes(block.body, value, scope) if truth(value) else self.nodes(block.other, dot, scope)

    def _range(self, block: Block, dot: Any, scope: Scope) -> str:
        value = self.pipe(Pipe(block.pipe.commands), dot, scope)
        names = block.pipe.names
        out = []
        for key, item in _items(value):
            bound = dict(zip(names, (key, item), strict=True)) if len(names) == 2 else dict.fromkeys(names, item)
            out.append(self.nodes(block.body, item, scope | bound))
        return "".join(out) if out else self.nodes(block.other, dot, scope)

    def pipe(self, pipe: Pipe, dot: Any, scope: Scope) -> Any:
        piped: list[Any] = []
        for command in pipe.commands:
            piped = [self._command(command, piped, dot, scope)]
        for name in pipe.names:
            if not pipe.declares and name not in scope:
                raise Wrong(f"variable {name} is not set")
            scope[name] = piped[0]
        return piped[0]

    def _command(self, command: Sequence[Operand], piped: list[Any], dot: Any, scope: Scope) -> Any:
        head = command[0].start
        if isinstance(head, Word) and head.kind == "name" and head.text not in CONSTANTS:
            return self._call(head.text, command[1:], piped, dot, scope)
        value = self._value(command[0], dot, scope)
        if callable(value):
            return self._apply(command[0].fields[-1], value, self._arguments(command[1:], dot, scope) + piped)
        if len(command) > 1 or piped:
            raise Wrong("a value that is no function is given arguments")
        return value

    def _call(self, name: str, rest: Sequence[Operand], piped: list[Any], dot: Any, scope: Scope) -> Any:
        if name in ("and", "or"):
            return self._shortcut(name, rest, piped, dot, scope)
        function = self._functions.get(name)
        if function is None:
            raise Wrong(f'function "{name}" is not defined; there are and, or, {", ".join(sorted(self._functions))}')
        return self._apply(name, function, self._arguments(rest, dot, scope) + piped)

    def _arguments(self, rest: Sequence[Operand], dot: Any, scope: Scope) -> list[Any]:
        return [self._value(operand, dot, scope) for operand in rest]

    def _apply(self, name: str, function: Function, arguments: list[Any]) -> Any:
        try:
            return function(*arguments)
        except (TypeError, ValueError) as error:
            raise Wrong(f"wrong arguments for {name}: {', '.join(shown(a) for a in arguments)}") from error

    def _shortcut(self, name: str, rest: Sequence[Operand], piped: list[Any], dot: Any, scope: Scope) -> Any:
        """`and` and `or` evaluate only as far as they must."""
        value: Any = None
        for operand in rest:
            value = self._value(operand, dot, scope)
            if truth(value) is (name == "or"):
                return value
        if not rest and not piped:
            raise Wrong(f"wrong arguments for {name}")
        return piped[0] if piped else value

    def _value(self, operand: Operand, dot: Any, scope: Scope) -> Any:
        start = operand.start
        if isinstance(start, Pipe):
            value = self.pipe(start, dot, scope)
        elif start.kind == "punct":
            value = dot
        elif start.kind == "var":
            if start.text not in scope:
                raise Wrong(f"variable {start.text} is not set")
            value = scope[start.text]
        elif start.kind == "name":
            value = CONSTANTS[start.text] if start.text in CONSTANTS else self._call(start.text, (), [], dot, scope)
        else:
            value = start.value
        for field in operand.fields:
            value = self._field(value, field)
        return value

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            methods: Mapping[str, Function] = getattr(value, "methods", {})
            if name in methods:
                return methods[name]
            if name in value or self._lenient or name[:1].islower():  # Go's fields are capitals: this is a map's key
                return value.get(name)
            raise Wrong(f"there is no field .{name}; there are {', '.join('.' + str(k) for k in sorted(value))}")
        if value is None and self._lenient:
            return None
        raise Wrong(f"{shown(value)} has no field .{name}")


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return [(n, n) for n in range(min(value, 10_000))]
    if value is None:
        return []
    raise Wrong(f"range over {shown(value)}")


class Template:
    """A parsed template; `render` may be called many times, also from several threads."""

    def __init__(self, source: str, functions: Mapping[str, Function] | None = None) -> None:
        """Parse; a mistake is a WherryError (invalid)."""
        self.source = source
        self._functions = {**FUNCTIONS, **(functions or {})}
        try:
            self._nodes, _ = _Parser(source).nodes(())
        except (Wrong, RecursionError) as error:
            raise wrong(source, str(error)) from error

    def render(self, data: Any) -> str:
        """Evaluate with `data` as the dot."""
        try:
            return _Run(self._functions).nodes(self._nodes, data, {"$": data})
        except Wrong as error:
            raise wrong(self.source, str(error)) from error
