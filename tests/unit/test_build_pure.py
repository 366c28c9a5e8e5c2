"""What a build decides without a file: patterns, stages, drafts of images."""

from __future__ import annotations

import contextlib
import fnmatch
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.build import drafts, stages
from wherry.engine.build.drafts import Draft, Words
from wherry.errors import WherryError
from wherry.image.dockerfile import parse
from wherry.image.instructions import meaning
from wherry.image.patterns import matcher, read_ignore
from wherry.model import Platform

# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.go", "a.go", True), ("*.go", "a/b.go", False), ("a/*", "a/b", True), ("a/*", "a/b/c", False),
        ("?x", "ax", True), ("?x", "/x", False), ("[a-c]x", "bx", True), ("[^a-c]x", "bx", False), ("[^a]", "/", False),
        ("**/x", "x", True), ("**/x", "a/b/x", True), ("a/**", "a/b/c", True), ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True), ("\\*", "*", True), ("\\*", "a", False), ("a.b", "axb", False),
        ("[a\\]]", "]", True), ("**.log", "a/b.log", True), ("a**", "ab/c", True), ("a**", "ba/c", False),
    ],
)  # fmt: skip
def test_patterns_of_go(pattern: str, path: str, fits: bool) -> None:
    assert bool(matcher(pattern).match(path)) == fits


def test_no_pattern_takes_for_ever() -> None:
    """A Dockerfile or an ignore file of somebody else: regular expressions would go back and forth for years."""
    assert not matcher("*a" * 60 + "b").match("a" * 250)
    assert not matcher("**/a/" * 60 + "b").match("a/" * 250 + "a")


@pytest.mark.parametrize("pattern", ["[", "[]", "a\\", "[z-a]", "[a"])
def test_broken_patterns(pattern: str) -> None:
    with pytest.raises(WherryError, match="syntax error in pattern"):
        matcher(pattern)


@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=8))
def test_patterns_agree_with_another_matcher(pattern: str, path: str) -> None:
    if "**" not in pattern:
        assert bool(matcher(pattern).match(path)) == fnmatch.fnmatchcase(path, pattern)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_ignore_file_is_read_or_refused(text: str, path: str) -> None:
    with contextlib.suppress(WherryError):
        read_ignore(text).ignores(path)


def test_ignore_files() -> None:
    rules = read_ignore("# c\n*.md\n!README.md\n/node_modules/\n**/tmp\nsrc/*/gen\n!src/keep/gen/x\n.\n")
    out = {"a.md", "node_modules", "node_modules/a/b", "tmp", "a/b/tmp/c", "src/a/gen/x", "src/keep/gen"}
    stays = {"README.md", "sub/a.md", "a/node_modules", "src/gen", "src/keep/gen/x", "a"}
    assert {path for path in out | stays if rules.ignores(path)} == out
    assert rules.takes_back


# ---- stages

PLATFORM = {"TARGETARCH": "amd64", "TARGETPLATFORM": "linux/amd64"}


def plan(text: str, target: str = "", **args: str) -> stages.Plan:
    """The stages of a file."""
    return stages.plan(parse(text), args, PLATFORM, target)


THREE = """FROM a AS one
FROM b AS two
COPY --from=one /x /x
FROM c AS three
FROM two
RUN --mount=from=0,target=/m x
COPY --from=busybox /x /y
"""


def test_only_what_is_needed_is_built() -> None:
    assert plan(THREE).needed == (0, 1, 3)
    assert plan(THREE, "three").needed == (2,)
    assert plan(THREE, "1").needed == (0, 1)
    assert plan(THREE, "TWO").target.name == "two"
    assert plan(THREE).stages[3].base == 1


def test_a_stage_is_named_before_it_is_used() -> None:
    assert plan("FROM a\nCOPY --from=later x y\nFROM b AS later\n", "0").needed == (0,)
    assert plan("FROM 0\n").stages[0].base is None


def test_arguments_before_from() -> None:
    text = "ARG TAG=1\nARG IMAGE=app:$TAG\nARG OWN\nFROM --platform=$TARGETPLATFORM $IMAGE-${TARGETARCH}${OWN}\n"
    assert plan(text).stages[0].image == "app:1-amd64"
    assert plan(text, TAG="2", OWN="x").stages[0].image == "app:2-amd64x"
    assert plan(text).stages[0].platform == "linux/amd64"


@pytest.mark.parametrize(
    ("text", "target", "sentence"),
    [
        ("RUN x\nFROM a", "", "only ARG may come before"), ("ARG a", "", "no build stage"),
        ("FROM $none", "", "should not be blank"), ("FROM a AS x\nFROM b AS X", "", "duplicate name x"),
        ("FROM a AS x", "y", "target stage 'y' could not be found"), ("FROM ${a", "", "failed to process"),
    ],
)  # fmt: skip
def test_files_that_are_no_plan(text: str, target: str, sentence: str) -> None:
    with pytest.raises(WherryError) as caught:
        plan(text, target)
    assert sentence in f"{caught.value.message} {caught.value.hint}"


def test_titles() -> None:
    found = plan("FROM a AS x\nENV a=b\nRUN one\nWORKDIR /w\nFROM b\nCOPY a b\n")
    run = found.stages[0].steps[1]
    assert stages.title(found, found.stages[0], 2, run) == "[x 2/3] RUN one"
    assert stages.title(found, found.stages[1], 1, None) == "[stage-1 1/2] FROM b"


# ---- drafts


def built(text: str, config: dict[str, Any] | None = None, **args: str) -> Draft:
    """What the instructions without files make of a base's config."""
    draft = Draft({"config": config or {}, "created": "1970-01-01T00:00:00Z"})
    words = Words("\\", args, {"GLOBAL": "g", "TARGETARCH": "amd64"})
    for at in parse(text).instructions:
        draft = drafts.apply(draft, meaning(at), words)
    return draft


def test_env_wins_over_arg_and_sees_what_was_before() -> None:
    draft = built("ARG a=1\nARG b=${a}2\nENV a=3\nENV c=$a$b a=4 d=$a\nARG a=5\nENV e=$a", {"Env": ["a=0"]})
    assert draft.env == {"a": "4", "c": "302", "d": "3", "e": "4"}


def test_where_arguments_come_from() -> None:
    draft = built("ARG GIVEN=no\nARG GLOBAL\nARG GLOBAL2=${GLOBAL}\nARG TARGETARCH\nARG NONE", GIVEN="yes", UNUSED="x")
    assert dict(draft.args) == {"GIVEN": "yes", "GLOBAL": "g", "GLOBAL2": "g", "TARGETARCH": "amd64"}


def test_a_new_entrypoint_drops_the_base_s_command() -> None:
    assert built('ENTRYPOINT ["a"]', {"Cmd": ["b"]}).config == {"Entrypoint": ["a"]}
    assert built('CMD ["c"]\nENTRYPOINT ["a"]', {"Cmd": ["b"]}).config == {"Entrypoint": ["a"], "Cmd": ["c"]}


def test_shell_is_for_what_follows() -> None:
    config = built('CMD a\nSHELL ["/bin/ash"]\nENTRYPOINT b').config
    assert config["Cmd"] == ["/bin/sh", "-c", "a"]
    assert config["Entrypoint"] == ["/bin/ash", "b"]


def test_ports_volumes_health() -> None:
    config = built("EXPOSE 80 53/UDP 8000-8001\nVOLUME /a /b\nHEALTHCHECK NONE\nSTOPSIGNAL 9").config
    assert set(config["ExposedPorts"]) == {"80/tcp", "53/udp", "8000/tcp", "8001/tcp"}
    assert set(config["Volumes"]) == {"/a", "/b"}
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert config["StopSignal"] == "9"


@pytest.mark.parametrize("text", ["EXPOSE 99999", "EXPOSE x", "EXPOSE 9-8", "STOPSIGNAL SIGNONE", "VOLUME $none"])
def test_values_that_can_not_be(text: str) -> None:
    with pytest.raises(WherryError, match=r"^Dockerfile:1: "):
        built(text)


def test_history_has_the_time_of_the_last_step() -> None:
    lines = built("ENV a=1\nLABEL b=2").document["history"]
    assert [line["created_by"] for line in lines] == ["ENV a=1", "LABEL b=2"]
    assert all(line["empty_layer"] and line["created"] == "1970-01-01T00:00:00Z" for line in lines)


def test_scratch() -> None:
    assert drafts.empty(Platform("linux", "arm", "v7")).document["variant"] == "v7"


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_path_leaves_the_root(base: str, path: str) -> None:
    found = drafts.joined(base, path)
    assert found.startswith("/")
    assert ".." not in found.split("/")
