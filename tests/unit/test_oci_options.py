"""Mount options: tables, contradictions, and that no word is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import WherryError
from wherry.oci import options as opt
from wherry.oci.options import parse

WORDS = st.sampled_from(
    [
        *opt.ATTRIBUTES,
        *opt.RECURSIVE,
        *opt.PROPAGATION,
        *opt.SUPERBLOCK,
        *opt.IGNORED,
        "bind",
        "rbind",
        "size=1m",
        "mode=0",
    ]
)


@pytest.mark.parametrize(
    ("words", "to_set", "to_clear"),
    [
        (["ro"], 1, 0),
        (["ro", "rw"], 0, 1),
        (["rw", "ro"], 1, 0),
        (["nosuid", "nodev", "noexec"], 0xE, 0),
        (["suid", "dev", "exec"], 0, 0xE),
        (["noatime"], 0x10, 0x70),
        (["noatime", "strictatime"], 0x20, 0x70),
        (["strictatime", "relatime"], 0, 0x70),
        (["nodiratime"], 0x80, 0),
        (["nosymfollow"], 0x200000, 0),
        (["nosymfollow", "symfollow"], 0, 0x200000),
    ],
)
def test_attributes(words: list[str], to_set: int, to_clear: int) -> None:
    found = parse(words)
    assert (found.attr_set, found.attr_clr) == (to_set, to_clear)
    tree = parse([f"r{word}" for word in words])
    assert (tree.tree_set, tree.tree_clr) == (to_set, to_clear)
    assert (tree.attr_set, tree.attr_clr, tree.data) == (0, 0, ())


def test_what_goes_to_the_filesystem() -> None:
    found = parse(["rw", "size=64k", "sync", "mode=755", "iversion", "defaults", "noauto", "newinstance"])
    assert found.data == ("size=64k", "sync", "mode=755", "newinstance")


def test_bind_and_friends() -> None:
    found = parse(["rbind", "rslave", "private", "src-nofollow", "dest-nofollow", "tmpcopyup", "ridmap"])
    assert found.bind
    assert found.recursive
    assert found.propagation == (1 << 19 | 0x4000, 1 << 18)
    assert found.source_nofollow
    assert found.target_nofollow
    assert found.copy_up
    assert (found.idmap, found.ridmap) == (True, True)
    assert not found.shared
    assert parse(["rshared"]).shared


def test_remount_makes_no_bind() -> None:
    found = parse(["remount", "bind", "ro", "size=1m", "x-systemd.after=y", "X-note"])
    assert (found.remount, found.bind, found.attr_set, found.data) == (True, False, opt.RDONLY, ("size=1m",))


@pytest.mark.parametrize("word", sorted(opt.UNSUPPORTED))
def test_refused(word: str) -> None:
    with pytest.raises(WherryError, match=word):
        parse(["ro", word])


@given(st.lists(WORDS, max_size=12))
def test_the_kernel_would_take_it(words: list[str]) -> None:
    """mount_setattr(2) refuses bits both set and cleared, and an atime mode without the whole field cleared."""
    found = parse(words)
    for to_set, to_clear in ((found.attr_set, found.attr_clr), (found.tree_set, found.tree_clr)):
        assert to_set & to_clear & ~opt.ATIME_MASK == 0
        if to_set & opt.ATIME_MASK:
            assert to_clear & opt.ATIME_MASK == opt.ATIME_MASK
        assert to_set & opt.ATIME_MASK in (0, opt.NOATIME, opt.STRICTATIME)


@given(st.lists(WORDS, max_size=12))
def test_no_word_is_lost(words: list[str]) -> None:
    """Every word ends in a field or is one of those that mean nothing to a kernel."""
    found = parse(words)
    for word in words:
        meaningless = word in opt.IGNORED or word in opt.SUPERBLOCK - opt.PARAMETERS
        somewhere = (
            word in found.data
            or word in opt.ATTRIBUTES
            or word in opt.RECURSIVE
            or word in {"bind", "rbind"}
            or opt.PROPAGATION.get(word) in found.propagation
        )
        assert somewhere != meaningless


@given(st.lists(WORDS, max_size=12))
def test_the_last_word_wins(words: list[str]) -> None:
    """Reading the words one by one, each overriding the bits it touches, gives the same."""
    state = 0
    for word in words:
        to_set, to_clear = opt.ATTRIBUTES.get(word, (0, 0))
        state = state & ~to_clear | to_set
    assert parse(words).attr_set == state
