"""Dockerfiles as text: lines, instructions, variables, stages. Nothing is built."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import WherryError
from wherry.image import dockerfile, instructions
from wherry.image.dockerfile import Heredoc
from wherry.image.instructions import Arg, Cmd, Command, Copy, Env, From, Healthcheck, Run
from wherry.image.variables import BadVariable, expand, expand_text


def says(text: str) -> list[instructions.Meaning]:
    """What the instructions of a file mean."""
    file = dockerfile.parse(text)
    return [instructions.meaning(at, file.escape).says for at in file.instructions]


def refused(text: str) -> str:
    """The sentence that refuses a file."""
    with pytest.raises(WherryError) as caught:
        says(text)
    return caught.value.message


# ---- lines


def test_comments_and_continuations() -> None:
    text = "# c\n\n  FROM a\nRUN one \\\n  # between\n\n  two \\  \n three\n#end\nCMD x"
    file = dockerfile.parse(text)
    assert [(at.word, at.text) for at in file.instructions] == [
        ("FROM", "a"),
        ("RUN", "one   two  three"),
        ("CMD", "x"),
    ]
    assert [(at.line, at.end) for at in file.instructions] == [(3, 3), (4, 8), (10, 10)]


def test_an_escaped_escape_continues_nothing() -> None:
    assert [at.text for at in dockerfile.parse("RUN a\\\\\nRUN b").instructions] == ["a\\\\", "b"]


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    assert [at.text for at in dockerfile.parse("\ufeffFROM a\r\nRUN b \\\r\n c\r\n").instructions] == ["a", "b  c"]


def test_the_escape_directive() -> None:
    file = dockerfile.parse("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN one `\n two\nENV A=c:\\d")
    assert file.escape == "`"
    assert [at.text for at in file.instructions][1:] == ["one  two", "A=c:\\d"]


def test_a_directive_after_a_comment_is_a_comment() -> None:
    assert dockerfile.parse("# hello\n# escape=`\nFROM a").escape == "\\"


@pytest.mark.parametrize("text", ["", "# only\n\n", "\n"])
def test_a_file_without_instructions(text: str) -> None:
    assert "no instructions" in refused(text)


def test_heredocs() -> None:
    run, copy = dockerfile.parse("RUN <<EOF\na $b\n EOF\nEOF\nCOPY <<'A' <<-\"B\" /x\n1\nA\n\t\t2\n\tB\n").instructions
    assert run.heredocs == (Heredoc("EOF", "a $b\n EOF\n", True),)
    assert copy.heredocs == (Heredoc("A", "1\n", False), Heredoc("B", "2\n", False))
    assert copy.line, copy.end == (5, 9)


@pytest.mark.parametrize(
    "text", ["RUN x <<<here", "RUN echo $((1<<2))", 'RUN ["a", "<<EOF"]', "RUN 'a <<EOF b'", "CMD <<E"]
)
def test_what_is_no_heredoc(text: str) -> None:
    assert dockerfile.parse(text).instructions[0].heredocs == ()


def test_flags_end_at_the_first_other_word() -> None:
    at = dockerfile.parse("COPY --from=a --chown='x y' --link src --chmod=1 /d").instructions[0]
    assert at.flags == ("--from=a", "--chown=x y", "--link")
    assert at.text == "src --chmod=1 /d"


# ---- refusals


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FROM a\n\nRUNN x", "Dockerfile:3: unknown instruction: RUNN (did you mean RUN?)\n  3 | RUNN x"),
        ("FROM a\nRUN <<EOF\nx", "Dockerfile:2: unterminated heredoc EOF"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a AS 1x", "invalid name for build stage"),
        ("FROM --size=1 a", "FROM: unknown flag: --size"),
        ("COPY a", "COPY requires at least two arguments"),
        ("COPY --from=a --from=b x y", "duplicate flag specified: --from"),
        ("ENV a", "ENV must have two arguments"),
        ("ENV a=1 b", "can't find = in 'b'"),
        ("ENV =1", "names can not be blank"),
        ("SHELL sh -c", "SHELL requires the arguments to be in JSON form"),
        ("HEALTHCHECK true", "unknown type 'true' in HEALTHCHECK"),
        ("HEALTHCHECK --interval=5 CMD x", "invalid duration '5' for --interval"),
        ("HEALTHCHECK --retries=0 CMD x", "--retries must be at least 1"),
        ("ONBUILD FROM a", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD COPY a", "COPY requires at least two arguments"),
        ("RUN --network=other x", "invalid network mode 'other'"),
        ("RUN --security=insecure x", "not supported"),
        ("# escape=x\nFROM a", "invalid ESCAPE 'x'"),
        ("USER a b", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires at least one argument"),
    ],
)
def test_refusals_name_the_line(text: str, sentence: str) -> None:
    found = refused(text)
    assert sentence in found
    assert found.startswith("Dockerfile:")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        for at in dockerfile.parse(text).instructions:
            instructions.meaning(at)
    except WherryError:
        pass


@given(st.lists(st.text("ab\"'\\$ {}<>=-[],#\n\t", max_size=30), max_size=6))
def test_any_instruction_is_read_or_refused(parts: list[str]) -> None:
    text = "\n".join(f"{word} {part}" for word, part in zip(dockerfile.WORDS * 2, parts * 3, strict=False))
    try:
        for at in dockerfile.parse(text).instructions:
            instructions.meaning(at)
    except WherryError:
        pass


# ---- meanings


def test_shell_and_exec_form() -> None:
    assert says('RUN echo "a"\nRUN ["a", "b c"]\nRUN [a]') == [
        Run(Command(('echo "a"',), True)), Run(Command(("a", "b c"), False)), Run(Command(("[a]",), True)),
    ]  # fmt: skip
    assert says("CMD []") == [Cmd(Command((), False))]


def test_pairs() -> None:
    assert says('ENV a=1 b="x y" c=x\\ y\nENV d the rest "q"\nARG x y=1') == [
        Env((("a", "1"), ("b", '"x y"'), ("c", "x\\ y"))), Env((("d", 'the rest "q"'),)),
        Arg((("x", None), ("y", "1"))),
    ]  # fmt: skip


def test_from_copy_healthcheck() -> None:
    stage, copy, check = says(
        "FROM --platform=linux/arm64 a:1 As Base\nCOPY --from=base --chown=1:2 --chmod=755 --link a b /c/\n"
        'HEALTHCHECK --interval=1m30s --retries=2 CMD ["x"]'
    )
    assert stage == From("a:1", "base", "linux/arm64")
    assert copy == Copy(("a", "b"), "/c/", origin="base", chown="1:2", chmod="755", link=True)
    assert check == Healthcheck(Command(("x",), False), {"Interval": 90_000_000_000, "Retries": 2})


def test_mounts() -> None:
    at = dockerfile.parse("RUN x").instructions[0]
    mount = instructions.run_mount(at, "type=cache,dst=/c,sharing=locked,uid=3")
    assert (mount.type, mount.target, mount.options) == ("cache", "/c", {"sharing": "locked", "uid": "3"})
    assert instructions.run_mount(at, "source=a,target=/b").type == "bind"
    for text in ("type=ssh", "type=cache", "type=bind,target=/x,size=3", "type=tmpfs,size=1"):
        with pytest.raises(WherryError):
            instructions.run_mount(at, text)


# ---- variables

VALUES = {"a": "foo.tar.gz", "empty": "", "path": "/usr/local/bin"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$a", "foo.tar.gz"), ("${a}x", "foo.tar.gzx"), ("$ax", ""), ("$", "$"), ("a$", "a$"), ("$$", ""),
        ("${none:-d}", "d"), ("${empty:-d}", "d"), ("${empty-d}", ""), ("${none-$a}", "foo.tar.gz"), ("${a:+y}", "y"),
        ("${empty:+y}", ""), ("${empty+y}", "y"), ("${none+y}", ""), ("${none:-${empty:-deep}}", "deep"),
        ("${a%.*}", "foo.tar"), ("${a%%.*}", "foo"), ("${a#*.}", "tar.gz"), ("${a##*.}", "gz"),
        ("${a%x}", "foo.tar.gz"),
        ("${path#/usr}", "/local/bin"), ("${path##*/}", "bin"), ("${path%/*}", "/usr/local"), ("${path%%/*}", ""),
        ("${a/o/0}", "f0o.tar.gz"), ("${a//o/0}", "f00.tar.gz"), ("${a/tar}", "foo..gz"),
        ("${a/?oo/bar}", "bar.tar.gz"),
        ("'$a'", "$a"), ('"$a b"', "foo.tar.gz b"), ('"\\$a \\" \\n"', '$a " \\n'), ("\\$a", "$a"),
        ("a\\ b", "a b"), ("\\\\", "\\"), ("${a:?no}", "foo.tar.gz"),
    ],
)  # fmt: skip
def test_expansion(text: str, value: str) -> None:
    assert expand(text, VALUES) == value


@pytest.mark.parametrize("text", ["${a", "${a:=x}", "'open", '"open', "${}", "${none:?must be}", "${a:x}"])
def test_what_cannot_be_expanded(text: str) -> None:
    with pytest.raises(BadVariable):
        expand(text, VALUES)


def test_heredocs_keep_their_quotes() -> None:
    assert expand_text('it\'s "$empty" \\$a \\n ${path}', VALUES) == 'it\'s "" $a \\n /usr/local/bin'


@given(st.text(max_size=80), st.dictionaries(st.text("ab", min_size=1), st.text(max_size=9)))
def test_any_text_is_expanded_or_refused(text: str, values: dict[str, str]) -> None:
    try:
        expand(text, values)
        expand_text(text, values)
    except BadVariable:
        pass


@given(st.text(st.characters(exclude_characters="$\\'\""), max_size=80))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert expand(text, {}) == text


@given(st.text(max_size=30))
def test_single_quotes_keep_everything(text: str) -> None:
    if "'" not in text:
        assert expand(f"'{text}'", {"a": "x"}) == text


@given(st.lists(st.text(max_size=9)))
def test_the_exec_form_is_json(words: list[str]) -> None:
    assert dockerfile.json_form(json.dumps(words)) == words
