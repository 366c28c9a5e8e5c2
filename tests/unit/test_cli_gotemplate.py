"""The template evaluator against what Go's text/template prints for the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli.gotemplate import Template, printf, shown
from wherry.cli.table import Row
from wherry.errors import Kind, WherryError

DATA: dict[str, Any] = {
    "ID": "0123456789abcdef",
    "Names": ["web", "www"],
    "N": 3,
    "F": 2.5,
    "Yes": True,
    "No": False,
    "Nil": None,
    "Labels": {"b": "2", "a.b": "dotted"},
    "State": {"Status": "running", "Pid": 42, "Health": {"Log": [{"Exit": 0}, {"Exit": 1}]}},
    "Mounts": [{"S": "/a", "D": "/x"}, {"S": "/b", "D": "/y"}],
    "Html": "<a&b>",
}
SAID = [
    ("plain", "plain"),
    ("{{.ID}}", "0123456789abcdef"),
    ("{{ .State.Status }}", "running"),
    ("{{$.State.Pid}}", "42"),
    ("a {{- .N -}} b", "a3b"),
    ("{{/* nothing */}}x", "x"),
    ("{{.Yes}} {{.No}} {{.F}}", "true false 2.5"),
    ("{{.Nil}}", "<no value>"),
    ("{{.Names}}", "[web www]"),
    ("{{.Labels}}", "map[a.b:dotted b:2]"),
    ('{{index .Labels "a.b"}}', "dotted"),
    ('{{index .Labels "none"}}', ""),
    ("{{index .Names 1}}", "www"),
    ("{{(index .Mounts 0).S}}", "/a"),
    ('{{index .Mounts 1 "D"}}', "/y"),
    ("{{json .Labels}}", '{"b":"2","a.b":"dotted"}'),
    ("{{json .Html}}", '"\\u003ca\\u0026b\\u003e"'),
    ("{{.State | json}}", '{"Status":"running","Pid":42,"Health":{"Log":[{"Exit":0},{"Exit":1}]}}'),
    ('{{join .Names ","}}', "web,www"),
    ('{{range split "a:b:c" ":"}}<{{.}}>{{end}}', "<a><b><c>"),
    ("{{lower .Html}} {{upper .State.Status}} {{title .State.Status}}", "<a&b> RUNNING Running"),
    ("{{len .Names}} {{len .ID}} {{len .Labels}}", "2 16 2"),
    ('{{slice .ID 0 4}} {{truncate .ID 4}} [{{pad "x" 1 2}}]', "0123 0123 [ x  ]"),
    ("{{println .N .ID}}", "3 0123456789abcdef\n"),
    ("{{print .N .N}} {{print .ID .N}}", "3 3 0123456789abcdef3"),
    ('{{printf "%s-%d|%5s|%-5s|%05d|%.2f|%q|%v|%t|%x|%%" .State.Status .N "r" "l" 7 .F "q\\"" .Names .Yes 255}}',
     'running-3|    r|l    |00007|2.50|"q\\""|[web www]|true|ff|%'),
    ("{{range .Mounts}}{{.S}}:{{.D}} {{end}}", "/a:/x /b:/y "),
    ("{{range $i, $m := .Mounts}}{{$i}}{{$m.S}}{{end}}", "0/a1/b"),
    ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a.b=dotted;b=2;"),
    ("{{range .Nil}}x{{else}}none{{end}}", "none"),
    ("{{range .Mounts}}{{$.N}}{{end}}", "33"),
    ("{{if .Yes}}a{{else}}b{{end}}{{if .No}}a{{else}}b{{end}}", "ab"),
    ('{{if eq .N 1}}1{{else if eq .N 3}}3{{else}}x{{end}}', "3"),
    ("{{if .Nope}}a{{else}}b{{end}}", "b"),
    ("{{if .State.Nope.Deeper}}a{{else}}b{{end}}", "b"),
    ("{{with .State}}{{.Pid}}{{end}}{{with .Nil}}x{{else}}-{{end}}", "42-"),
    ("{{with .State.Health}}{{range .Log}}{{.Exit}}{{end}}{{end}}", "01"),
    ("{{with $x := .N}}{{$x}}{{end}}", "3"),
    ("{{$x := 1}}{{if .Yes}}{{$x = 2}}{{end}}{{$x}}", "1"),
    ('{{eq .N 1 2 3}} {{ne .N 1}} {{lt 1 2}} {{le 2 2}} {{gt "b" "a"}} {{ge 1 2}}', "true true true true true false"),
    ("{{and .Yes .N}} {{or .No .N}} {{not .No}} {{and .No .N}}", "3 3 true false"),
    ('{{if and (eq .N 3) (or .No (ne .ID ""))}}y{{end}}', "y"),
    ("{{`raw \\n {{ }}`}}", "raw \\n {{ }}"),
    ('{{"tab\\tquote\\" \\x41"}}', 'tab\tquote" A'),
    ("{{.Labels.b}}{{true}}{{nil | not}}", "2truetrue"),
    ('{{"}}"}}', "}}"),
    ("{{1.5}} {{0x10}} {{-3}}", "1.5 16 -3"),
    ("{", "{"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "says"), SAID, ids=lambda v: v[:40])
def test_it_prints_what_go_prints(source: str, says: str) -> None:
    assert Template(source).render(DATA) == says


WRONG = [
    ("{{.Nope}}", "no field .Nope"),
    ("{{.State.Nope}}", ".Pid"),  # names those there are
    ("{{.ID.Nope}}", "no field .Nope"),
    ("{{.ID", "without }}"),
    ("{{}}", "empty"),
    ("{{if .Yes}}x", "{{end}} is missing"),
    ("{{end}}", "unexpected {{end}}"),
    ("{{else}}", "unexpected {{else}}"),
    ("{{range .Mounts}}x{{else range .Names}}{{end}}", "unexpected"),
    ("{{nope .ID}}", '"nope" is not defined'),
    ("{{$x}}", "$x is not set"),
    ("{{$x = 1}}", "$x is not set"),
    ("{{index .Names 7}}", "outside"),
    ("{{index .N 1}}", "no map"),
    ("{{len .N}}", "len"),
    ("{{join .N \",\"}}", "join"),
    ("{{upper .N}}", "upper"),
    ("{{eq .N \"3\"}}", "incompatible"),
    ("{{lt .Names 1}}", "incompatible"),
    ("{{split .ID}}", "wrong arguments"),
    ("{{.ID .N}}", "no function"),
    ("{{.ID | .N}}", "no function"),
    ("{{(.ID}}", ")"),
    ("{{.ID)}}", ")"),
    ("{{| json}}", "missing"),
    ("{{range .ID}}{{end}}", "range over"),
    ("{{@}}", "unexpected"),
    ("{{slice .ID 5 2}}", "slice"),
    ("{{1x}}", "number"),
    ('{{"\\z"}}', "string"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "says"), WRONG)
def test_mistakes_are_one_sentence_with_the_template_in_it(source: str, says: str) -> None:
    with pytest.raises(WherryError) as caught:
        Template(source).render(DATA)
    assert caught.value.kind is Kind.INVALID
    assert says in caught.value.message
    assert source in caught.value.message
    assert caught.value.hint


def test_methods_are_called_with_their_argument() -> None:
    row = Row({"ID": "x"}, {"com.app": "web"})
    assert Template('{{.ID}} {{.Label "com.app"}}{{.Label "none"}}').render(row) == "x web"
    assert Template("{{json .}}").render(row) == '{"ID":"x"}'


def test_printf_tells_of_missing_and_extra() -> None:
    assert printf("%d %s", 1) == "1 %!s(MISSING)"
    assert printf("x", 1) == "x%!(EXTRA 1)"
    assert printf("%d", "a") == "%!d(a)"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_json_comes_back(value: Any) -> None:
    assert json.loads(Template("{{json .}}").render(value)) == value


@given(JSON)
def test_dot_prints_as_go_does(value: Any) -> None:
    assert Template("{{.}}").render(value) == shown(value)


@given(st.text(max_size=60).filter(lambda t: "{{" not in t))
def test_text_without_actions_is_itself(text: str) -> None:
    assert Template(text).render({}) == text


PIECES = [*'{}.|()$:=" ,-azAZ09_\\`', "{{", "}}", "range ", "end", "else", "if ", "json ", ".ID", ".Names", "$x", ":="]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_template_prints_or_is_an_error_of_the_user(source: str) -> None:
    failure = None
    try:
        Template(source).render(DATA)
    except WherryError as error:
        failure = error
    assert failure is None or failure.kind is Kind.INVALID


@given(st.lists(st.text(alphabet="abc,", max_size=4), min_size=1, max_size=5), st.sampled_from([";", "::"]))
def test_split_undoes_join(parts: list[str], by: str) -> None:
    source = "{{$j := join .P .By}}{{range split $j .By}}[{{.}}]{{end}}"
    assert Template(source).render({"P": parts, "By": by}) == "".join(f"[{part}]" for part in parts)
