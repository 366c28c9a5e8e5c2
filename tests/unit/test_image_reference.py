"""Names as docker reads them (distribution/reference), by table and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.image.reference import Reference, is_source

HEX = "a" * 64
SHA = f"sha256:{HEX}"


@pytest.mark.parametrize(("text", "canonical", "familiar"), [
    ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
    ("alpine:3.19", "docker.io/library/alpine:3.19", "alpine:3.19"),
    ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
    ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
    ("index.docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
    ("user/app", "docker.io/user/app:latest", "user/app:latest"),
    ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
    ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
    ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000/a/b/c:latest"),
    ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
    ("Host/app", "Host/app:latest", "Host/app:latest"),
    ("ghcr.io/a__b/c-d.e:V_1.0-x", "ghcr.io/a__b/c-d.e:V_1.0-x", "ghcr.io/a__b/c-d.e:V_1.0-x"),
    (f"alpine@{SHA}", f"docker.io/library/alpine@{SHA}", f"alpine@{SHA}"),
    (f"alpine:3@{SHA}", f"docker.io/library/alpine:3@{SHA}", f"alpine:3@{SHA}"),
    ("docker.io/library/x/y", "docker.io/library/x/y:latest", "library/x/y:latest"),
])  # fmt: skip
def test_normal_forms(text, canonical, familiar):
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert reference.familiar() == familiar


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "/",
        "a//b",
        "A",
        "a/B",
        "docker.io/",
        "/a",
        "a/",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a:",
        "a:-x",
        "a:.x",
        f"a:{'t' * 129}",
        HEX,
        "a@sha256:abc",
        f"a@md5:{'a' * 32}",
        f"a@SHA256:{HEX}",
        f"a@sha256:{'A' * 64}",
        "a\n",
        "a b",
        "ä",
        "a:ä",
        "host:port/a",
        "a" * 256,
        f"docker.io/{'a' * 300}",
        "a:1:2",
        "http://x/y",
        "a\0",
        "[::1/a",
        "../a",
        "a/../b",
        "x@y@z",
    ],
)
def test_what_docker_refuses(text):
    with pytest.raises(WherryError) as caught:
        Reference.parse(text)
    assert caught.value.kind is Kind.INVALID


def test_digests_win_over_tags_in_the_store():
    assert Reference.parse(f"alpine:3@{SHA}").stored() == f"docker.io/library/alpine@{SHA}"


def test_sources_are_no_names():
    assert [is_source(text) for text in ("oci:x", "oci-archive:x", "docker-archive:x:y", "oci/x", "ocix:1")] == [
        True
    ] * 3 + [False] * 2


ALNUM = "abcdefghijklmnopqrstuvwxyz0123456789"
word = st.text(ALNUM, min_size=1, max_size=8)
path = st.lists(
    st.tuples(word, st.sampled_from([".", "_", "__", "-", "---"]), word).map("".join) | word, min_size=1, max_size=4
)
host = st.one_of(
    st.just(""), st.just("localhost/"), st.tuples(word, word).map(lambda pair: f"{pair[0]}.{pair[1]}/"),
    st.tuples(word, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}/"),
)  # fmt: skip
tag = st.one_of(st.just(""), st.text(ALNUM + "ABCXYZ_", min_size=1, max_size=20).map(lambda text: f":{text}"))
digest = st.one_of(
    st.just(""), st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"@sha256:{text}")
)
names = st.tuples(host, path.map("/".join), tag, digest).map("".join)


@given(names)
def test_the_normal_form_is_a_fixed_point(text):
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference
    assert str(reference).startswith(reference.name)


@given(st.text(max_size=80) | st.text("aA0.:/@_-", max_size=20))
def test_any_text_is_a_name_or_one_clear_error(text):
    try:
        reference = Reference.parse(text)
    except WherryError as error:
        refusal = error
    else:
        refusal = None
    if refusal:
        assert refusal.kind is Kind.INVALID
        assert "\n" not in str(refusal)
        return
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert reference.repository == reference.repository.lower()
    assert ".." not in reference.repository
