"""What a request may say: every field, right and wrong, in the spec's terms."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_spec import csi_pb2 as pb
from wherry_csi import requests
from wherry_csi.errors import CsiError
from wherry_csi.requests import Capability, Range

BANNED = [chr(n) for n in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0))]


def code(call: Any, *args: Any) -> str:
    """The code that a check refuses with, or ""."""
    try:
        call(*args)
    except CsiError as error:
        return error.code if len(str(error)) > 10 else "no sentence"
    return ""


@given(st.text(alphabet=string.ascii_lowercase + string.digits + "-", min_size=1, max_size=64))
def test_ids_of_our_own_form_pass(value: str) -> None:
    assert requests.identity(value, "volume_id") == value


@given(st.text(max_size=80))
def test_an_id_is_of_our_form_or_refused(value: str) -> None:
    good = 0 < len(value) <= 64 and set(value) <= set(string.ascii_lowercase + string.digits + "-")
    assert code(requests.identity, value, "volume_id") == ("" if good else "INVALID_ARGUMENT")


@pytest.mark.parametrize("value", ["..", "a/b", "a\0b", "vol-\n", "é", "A", "x" * 65, "", "vol-1\n"])
def test_ids_that_are_paths_or_worse(value: str) -> None:
    assert code(requests.identity, value, "volume_id") == "INVALID_ARGUMENT"


@given(st.text(min_size=1, max_size=140))
def test_names_are_any_unicode_but_control_bytes(value: str) -> None:
    good = len(value.encode("utf-8", "surrogatepass")) <= 128 and not set(value) & set(BANNED)
    if any(0xD800 <= ord(char) < 0xE000 for char in value):
        return  # protobuf has no surrogates
    assert code(requests.name, value) == ("" if good else "INVALID_ARGUMENT")


@pytest.mark.parametrize("char", BANNED)
def test_each_control_character_of_the_spec_is_refused(char: str) -> None:
    assert code(requests.name, f"a{char}b") == "INVALID_ARGUMENT"


@pytest.mark.parametrize("value", ["tab\tand\nline\r", "ü" * 64, "../../etc", "a b", "🦆", "x" * 128])
def test_names_that_only_look_bad(value: str) -> None:
    assert requests.name(value) == value


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6))
def test_a_path_is_absolute_and_without_dots_or_refused(parts: list[str]) -> None:
    value = "/" + "/".join(parts)
    try:
        found = requests.path(value, "target_path")
    except (CsiError, UnicodeEncodeError):
        return
    inner = found.split("/")[1:]
    assert found.startswith("/")
    assert inner
    assert "\0" not in found
    assert not {"", ".", ".."} & set(inner)


@pytest.mark.parametrize(
    "value", ["", "/", "//", "a/b", "/a/../b", "/a/./b", "/..", "/a\0b", "/" + "x" * 256, "/x" * 2048]
)
def test_paths_that_are_refused(value: str) -> None:
    assert code(requests.path, value, "target_path") == "INVALID_ARGUMENT"


def test_paths_in_other_writings_are_one() -> None:
    assert requests.path("//a///b/", "target_path") == "/a/b"
    assert len(requests.path("/" + "/".join(["x" * 200] * 20), "target_path")) == 4020


def capability(access: str = "mount", mode: int = 1, **mount: Any) -> pb.VolumeCapability:
    made = pb.VolumeCapability(access_mode={"mode": mode})
    if access == "mount":
        made.mount.CopyFrom(pb.VolumeCapability.MountVolume(**mount))
    elif access == "block":
        made.block.SetInParent()
    return made


def test_a_capability() -> None:
    message = capability(mode=7, fs_type="xfs", mount_flags=["noatime,nodev", "ro"], volume_mount_group="1000")
    found = requests.capability(message)
    assert found == Capability("mount", "xfs", "SINGLE_NODE_MULTI_WRITER", ("noatime", "nodev", "ro"), 1000)
    assert not found.reads
    assert requests.capability(capability("block", 3)).reads


@pytest.mark.parametrize(
    "message",
    [
        pb.VolumeCapability(),
        capability("", 1),
        capability(mode=0),
        capability(mode=99),
        capability(fs_type="ntfs"),
        capability(fs_type="../ext4"),
        capability(mount_flags=["a\nb"]),
        capability(mount_flags=["x" * 5000]),
        capability(volume_mount_group="root"),
        capability(volume_mount_group="-1"),
        capability(volume_mount_group="4294967295"),
        capability(volume_mount_group="٣"),  # a digit to Python, not to chown(2)
    ],
)
def test_capabilities_that_are_refused(message: pb.VolumeCapability) -> None:
    assert code(requests.capability, message) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "messages",
    [[], [capability(), capability("block")], [capability(fs_type="xfs"), capability(fs_type="ext4")]],
)
def test_a_volume_is_one_thing(messages: list[pb.VolumeCapability]) -> None:
    assert code(requests.capabilities, messages) == "INVALID_ARGUMENT"


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_capacity_ranges(required: int, limit: int) -> None:
    message = pb.CapacityRange(required_bytes=required, limit_bytes=limit)
    good = required >= 0 <= limit and (required or limit) and not 0 < limit < required
    assert code(requests.size_range, message, True) == ("" if good else "INVALID_ARGUMENT")
    if good:
        found = requests.size_range(message, True)
        assert found.holds(max(required, 1) if required else limit)
        assert not found.required or not found.holds(required - 1)
        assert not found.limit or not found.holds(limit + 1)


def test_no_capacity_range() -> None:
    assert requests.size_range(pb.CapacityRange(), False) == Range()
    assert code(requests.size_range, pb.CapacityRange(), False, True) == "INVALID_ARGUMENT"


def test_parameters() -> None:
    found = requests.wish(
        {"pool": "a", "backend": "auto", "provisioning": "thick", "csi.storage.k8s.io/pvc/name": "x", "readBps": "5"},
        {"readBps": "7", "writeIops": "max"},
    )
    assert found == requests.Wish("a", "", "thick", {"readBps": 7, "writeIops": 0})


@pytest.mark.parametrize(
    ("parameters", "mutable"),
    [
        ({"Pool": "a"}, {}),
        ({"backend": "lvm"}, {}),
        ({"provisioning": ""}, {}),
        ({"pool": "x" * 5000}, {}),
        ({}, {"pool": "a"}),
        ({}, {"readBps": "-1"}),
        ({}, {"readBps": "1.5"}),
        ({}, {"readBps": ""}),
        ({}, {"readBps": "1k"}),
        ({}, {"readBps": "9" * 30}),
        ({}, {"csi.storage.k8s.io/x": "1"}),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, str], mutable: dict[str, str]) -> None:
    assert code(requests.wish, parameters, mutable) == "INVALID_ARGUMENT"


def test_parameters_of_calls_that_take_none() -> None:
    assert code(requests.only_known, {"csi.storage.k8s.io/volumesnapshot/name": "x"}, "parameters") == ""
    assert code(requests.only_known, {"x": "y"}, "parameters") == "INVALID_ARGUMENT"


def test_sources() -> None:
    assert requests.source(pb.VolumeContentSource(), False) is None
    assert code(requests.source, pb.VolumeContentSource(), True) == "INVALID_ARGUMENT"
    assert code(requests.source, pb.VolumeContentSource(volume={"volume_id": "../x"}), True) == "INVALID_ARGUMENT"
    assert requests.source(pb.VolumeContentSource(snapshot={"snapshot_id": "snap-1"}), True) == ("snapshot", "snap-1")


def test_offsets() -> None:
    assert requests.offset(10, 10) == 10
    assert code(requests.offset, -1, 10) == code(requests.offset, 11, 10) == "OUT_OF_RANGE"
