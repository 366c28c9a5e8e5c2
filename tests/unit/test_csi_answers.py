"""Pages, metadata ranges, locks, the log, io.max lines, errno: the small decisions of the CSI driver."""

from __future__ import annotations

import errno
import stat
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_csi import answers, fsgroup, iolimits, metadata
from wherry_csi.backend import Extent, Shape
from wherry_csi.errors import CsiError
from wherry_csi.locks import Locks
from wherry_csi.records import Volume
from wherry_csi.server import told

UID = "0aac3a4c-7b1e-4c55-9b8e-2a1c0f1a2b3c"


def volume(created: int, ident: str) -> Volume:
    return Volume(ident, ident, created, "image", Shape(4096, "block"))


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=40), st.integers(1, 50))
def test_pages_have_every_record_once(keys: set[tuple[int, int]], most: int) -> None:
    kept = [volume(created, f"vol-{ident}-{created}") for created, ident in keys]
    found, token, pages = [], "", 0
    while True:
        page, token = answers.page(kept, most, token)
        assert len(page) <= most
        found += page
        pages += 1
        if not token:
            break
    assert sorted(found) == sorted(kept)
    assert pages == max(1, -(-len(kept) // most))


def test_a_token_outlives_the_record_that_it_names() -> None:
    kept = [volume(n, f"vol-{n}") for n in range(6)]
    page, token = answers.page(kept, 3, "")
    rest, end = answers.page([*kept[3:], volume(9, "vol-9")], 0, token)
    assert [one.id for one in page + rest] == [f"vol-{n}" for n in (0, 1, 2, 3, 4, 5, 9)]
    assert end == ""


@given(st.text(max_size=60))
def test_other_tokens_are_aborted(token: str) -> None:
    if token:
        with pytest.raises(CsiError) as caught:
            answers.page([], 0, token)
        assert caught.value.code == "ABORTED"


EXTENTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=20).map(
    lambda pairs: [
        Extent(sum(map(sum, pairs[:n])) + gap, length) for n, (gap, length) in enumerate(pairs)
    ]
)


@given(EXTENTS, st.integers(0, 300), st.integers(1, 400))
def test_ranges_ascend_without_overlap_and_lose_nothing(found: list[Extent], start: int, size: int) -> None:
    got = list(metadata.ranges(found, start, size))
    want = {byte for offset, length in found for byte in range(offset, min(offset + length, size))}
    have = {byte for offset, length in got for byte in range(offset, offset + length)}
    assert {byte for byte in want if byte >= start} <= have <= want
    assert all(one.offset + one.length < two.offset for one, two in pairwise(got))
    assert all(one.length > 0 and one.offset + one.length > start for one in got)


def test_a_second_call_on_the_same_is_aborted() -> None:
    locks = Locks()
    with locks.hold("a", shared=("s",)), locks.hold("b", shared=("s",)):
        for alone, shared in ((("a",), ()), (("s",), ()), ((), ("a",)), (("c", "b"), ())):
            with pytest.raises(CsiError) as caught, locks.hold(*alone, shared=shared):
                pass
            assert caught.value.code == "ABORTED"
        with locks.hold("c"):
            pass
    with locks.hold("a", "b", "s"):
        pass


def test_patience_waits_for_the_other_to_end() -> None:
    locks, done = Locks(), threading.Event()

    def second() -> None:
        with locks.hold("a", patience=10):
            done.set()

    thread = threading.Thread(target=second)
    with locks.hold("a"):
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(10)
    thread.join()


@pytest.mark.parametrize(
    ("target", "uid"),
    [
        (f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/pvc-1/mount", UID),
        (f"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/{UID}", UID),
        ("/run/wherry/csi/vol-1/abc", ""),
        ("/pods/../../x/", ""),
    ],
)
def test_the_pod_of_a_target(target: str, uid: str) -> None:
    assert iolimits.pod_of(target) == uid


def test_the_pod_of_podinfo() -> None:
    assert iolimits.pod_of("/x", {iolimits.POD_UID: "static-pod-1"}) == "static-pod-1"
    with pytest.raises(CsiError):
        iolimits.pod_of("/x", {iolimits.POD_UID: "../.."})


def test_a_line_of_io_max() -> None:
    assert iolimits.line((7, 3), {"readBps": 5, "writeIops": 0}) == "7:3 rbps=5 wbps=max riops=max wiops=max"


def test_modes_of_a_group() -> None:
    assert fsgroup.wanted(stat.S_IFDIR | 0o700) == stat.S_IFDIR | stat.S_ISGID | 0o770
    assert fsgroup.wanted(stat.S_IFREG | 0o604) == stat.S_IFREG | 0o664


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "RESOURCE_EXHAUSTED"), (errno.EDQUOT, "RESOURCE_EXHAUSTED"), (errno.EROFS, "UNAVAILABLE"),
        (errno.EIO, "UNAVAILABLE"), (errno.ESTALE, "UNAVAILABLE"), (errno.EFBIG, "OUT_OF_RANGE"),
        (errno.EBUSY, "FAILED_PRECONDITION"), (errno.EPERM, "INTERNAL"),
    ],
)  # fmt: skip
def test_what_the_kernel_refuses_has_a_code_and_a_sentence(number: int, code: str) -> None:
    found, sentence = told(OSError(number, "the kernel's words", "/a/file"))
    assert found == code
    assert "the kernel's words" in sentence
    assert "/a/file" in sentence
    assert told(CsiError("NOT_FOUND", "so it is")) == ("NOT_FOUND", "so it is")
    assert told(ZeroDivisionError("x"))[0] == "INTERNAL"
