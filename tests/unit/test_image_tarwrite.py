"""Headers that we write, read back by Python's tarfile and by our own index: every value comes back."""

from __future__ import annotations

import io
import os
import tarfile
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.image.members import clean_name, index_tar
from wherry.image.tarwrite import BLOCK, END, Member, header, padding

name_part = st.binary(min_size=1, max_size=255).filter(lambda b: b not in (b".", b"..") and not set(b) & {0, ord("/")})
names = st.lists(name_part, min_size=1, max_size=12).map(b"/".join)
texts = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="="), min_size=1, max_size=40)
members = st.builds(
    Member,
    kind=st.just(b"0"),
    link=st.just(b""),
    major=st.just(0),
    minor=st.just(0),
    name=names,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    size=st.integers(0, 3000),
    mtime_ns=st.integers(-(2**62), 2**62),
    xattrs=st.dictionaries(texts.map(lambda text: "user." + text), st.binary(max_size=300), max_size=3),
)


def archive(*found: Member) -> bytes:
    return b"".join(header(one) + bytes(one.size) + padding(one.size) for one in found) + END


@settings(max_examples=300, deadline=None)
@given(members)
def test_a_file_comes_back(member: Member) -> None:
    data = archive(member)
    assert len(data) % BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as read:
        (info,) = read.getmembers()
    assert os.fsencode(info.name) == member.name.rstrip(b"/")
    assert (info.mode, info.uid, info.gid, info.size) == (member.mode, member.uid, member.gid, member.size)
    told = Decimal(info.pax_headers.get("mtime", info.mtime))
    assert told == Decimal(member.mtime_ns) / 10**9
    for key, value in member.xattrs.items():
        assert os.fsencode(info.pax_headers["SCHILY.xattr." + key]) == value


@settings(max_examples=200, deadline=None)
@given(members)
def test_our_own_index_finds_it(tmp_path_factory: pytest.TempPathFactory, member: Member) -> None:
    path = tmp_path_factory.mktemp("tar") / "t"
    path.write_bytes(archive(member))
    with open(path, "rb") as file:
        ((name, found),) = index_tar(file.fileno(), "t").items()
    assert name == clean_name(os.fsdecode(member.name))
    assert found.size == member.size


@given(st.one_of(names, st.binary(min_size=1, max_size=4000).filter(lambda b: 0 not in b)))
def test_a_link_comes_back(target: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(Member(b"l", b"2", link=target)))) as read:
        (info,) = read.getmembers()
    assert os.fsencode(info.linkname) == target


def test_pax_only_where_it_is_needed() -> None:
    for plain in (
        Member(b"a" * 100),
        Member(b"d" * 155 + b"/" + b"f" * 100),
        Member(b"x", uid=8**7 - 1, mtime_ns=10**9),
    ):
        assert len(header(plain)) == BLOCK
    for rich in (Member(b"a" * 101), Member("ü".encode()), Member(b"x", uid=8**7), Member(b"x", mtime_ns=1),
                 Member(b"x", mtime_ns=-(10**9)), Member(b"x", xattrs={"user.a": b""})):  # fmt: skip
        assert len(header(rich)) == 3 * BLOCK


def test_the_length_of_a_record_counts_its_own_digits() -> None:
    for size in range(80, 120):
        data = archive(Member(b"x", xattrs={"user.a": b"v" * size}))
        with tarfile.open(fileobj=io.BytesIO(data)) as read:
            assert read.getmembers()[0].pax_headers["SCHILY.xattr.user.a"] == "v" * size
