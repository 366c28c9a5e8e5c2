"""Units' names, and resources as systemd's properties."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney.low_level import Endianness, parse_signature
from jeepney.wrappers import DBusAddress, new_method_call

from wherry.container import systemd as driver
from wherry.container.systemd import Manager
from wherry.errors import Kind, WherryError
from wherry.kernel import facts
from wherry.model import Json
from wherry.oci import cgroup2, defaults, gvariant, systemd
from wherry.oci.systemd import INFINITY, Scope

# ---- names


@pytest.mark.parametrize(("path", "user", "expected"), [
    ("machine.slice:libpod:0af1", False, Scope("machine.slice", "libpod-0af1.scope")),
    ("kubepods-pod1.slice:cri-containerd:c2", False, Scope("kubepods-pod1.slice", "cri-containerd-c2.scope")),
    (":docker:c3", False, Scope("system.slice", "docker-c3.scope")),
    (":docker:c3", True, Scope("user.slice", "docker-c3.scope")),
    ("", False, Scope("system.slice", "wherry-me.scope")),
    ("", True, Scope("user.slice", "wherry-me.scope")),
    ("a.slice::x", False, Scope("a.slice", "-x.scope")),  # as runc and crun: the caller reckons with it
    ("-.slice:p:x", False, Scope("-.slice", "p-x.scope")),
])  # fmt: skip
def test_scope(path: str, user: bool, expected: Scope) -> None:
    assert systemd.scope(path, "me", user=user) == expected


@pytest.mark.parametrize("path", [
    "/user.slice/x", "x", "a:b", "a.slice:b:c:d", "a.slice:b:", "a:b:c", "a/b.slice:p:c", "a.slice:p:c/d",
    "a.slice:p:../c", "a--b.slice:p:c", "-a.slice:p:c", ".slice:p:c", "a.slice:p:c d", "a.slice:p:c\n",
    "a.slice:p:inner.slice", "a.slice:p:" + "x" * 250, "\0.slice:p:c", "é.slice:p:c",
])  # fmt: skip
def test_a_path_of_another_form_is_named(path: str) -> None:
    with pytest.raises(WherryError, match=r"^linux\.cgroupsPath: ") as caught:
        systemd.scope(path, "me")
    assert caught.value.kind is Kind.INVALID


def test_an_id_that_is_no_unit_name_is_refused() -> None:
    with pytest.raises(WherryError, match=r"wherry-a\+b\.scope"):
        systemd.scope("", "a+b")


@given(st.text(max_size=40))
def test_any_path_is_a_scope_or_one_error(path: str) -> None:
    with suppress(WherryError):
        found = systemd.scope(path, "me")
        assert found.unit.endswith(".scope")
        assert "/" not in found.unit + found.slice


@pytest.mark.parametrize(("name", "path"), [
    ("-.slice", ""),
    ("a.slice", "a.slice"),
    ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
    ("user-1000.slice", "user.slice/user-1000.slice"),
])  # fmt: skip
def test_slice_path(name: str, path: str) -> None:
    assert systemd.slice_path(name) == path


# ---- limits


def told(resources: Json) -> dict[str, Any]:
    """Property by property, the last word of each."""
    return {name: value for name, (_, value) in systemd.properties(cgroup2.writes(resources))}


@pytest.mark.parametrize(("resources", "expected"), [
    ({}, {}),
    ({"memory": {"limit": 4096, "swap": 8192, "reservation": 2048}},
     {"MemoryMax": 4096, "MemorySwapMax": 4096, "MemoryLow": 2048}),
    ({"memory": {"limit": -1}}, {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}),
    ({"cpu": {"shares": 1024}}, {"CPUWeight": 100}),
    ({"cpu": {"idle": 1, "shares": 1024}}, {"CPUWeight": 0}),
    ({"cpu": {"idle": 0}}, {"CPUWeight": 100}),
    ({"cpu": {"idle": 0, "shares": 2}}, {"CPUWeight": 1}),
    ({"cpu": {"quota": 50000}}, {"CPUQuotaPerSecUSec": 500000, "CPUQuotaPeriodUSec": 100000}),
    ({"cpu": {"quota": 12345, "period": 50000}}, {"CPUQuotaPerSecUSec": 250000, "CPUQuotaPeriodUSec": 50000}),
    ({"cpu": {"quota": -1, "period": 20000}}, {"CPUQuotaPerSecUSec": INFINITY, "CPUQuotaPeriodUSec": 20000}),
    ({"cpu": {"cpus": "0-2,9", "mems": "1"}}, {"AllowedCPUs": b"\x07\x02", "AllowedMemoryNodes": b"\x02"}),
    ({"pids": {"limit": 7}}, {"TasksMax": 7}),
    ({"pids": {"limit": -1}}, {"TasksMax": INFINITY}),
    ({"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}},
     {"IOWeight": 4950, "IODeviceWeight": [("/dev/block/8:0", 1)]}),
    ({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}, {"major": 8, "minor": 16, "rate": 6}],
                  "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}},
     {"IOReadBandwidthMax": [("/dev/block/8:0", 5), ("/dev/block/8:16", 6)],
      "IOWriteIOPSMax": [("/dev/block/8:0", INFINITY)]}),
    ({"unified": {"memory.high": "3M", "memory.min": "0", "io.weight": "70"}},
     {"MemoryHigh": 3 << 20, "MemoryMin": 0, "IOWeight": 70}),
    ({"memory": {"limit": 4096}, "unified": {"memory.max": "8192"}}, {"MemoryMax": 8192}),
    ({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}], "rdma": {"x": {"hcaHandles": 1}}}, {}),
    ({"cpu": {"burst": 5}, "unified": {"memory.oom.group": "1", "cgroup.freeze": "0"}}, {}),
])  # fmt: skip
def test_resources_as_properties(resources: Json, expected: dict[str, Any]) -> None:
    assert told(resources) == expected


@pytest.mark.parametrize(("file", "value"), [
    ("memory.max", "0"), ("memory.max", "lots"), ("memory.max", ""), ("pids.max", "0"), ("pids.max", "-1"),
    ("cpu.weight", "0"), ("cpu.weight", "10001"), ("cpu.max", "5 0"), ("cpu.max", "5 5 5"), ("cpu.idle", "2"),
    ("cpuset.cpus", "3-1"), ("cpuset.cpus", "0-99999"), ("cpuset.cpus", "all"), ("cpuset.mems", "x"),
    ("io.weight", "8:0 0"), ("io.weight", "8:0"), ("io.max", "8 rbps=1"), ("io.max", "8:0 rbps=x wat=1"),
    ("cpu.weight", "²"), ("memory.max", "٣"),
])  # fmt: skip
def test_what_systemd_would_refuse_is_the_kernels_to_refuse(file: str, value: str) -> None:
    assert systemd.properties([(file, value)]) == []
    assert systemd.direct([(file, value)]) == [(file, value)]


_FILES = ["memory.max", "memory.low", "pids.max", "cpu.weight", "cpu.idle", "cpu.max", "cpuset.cpus", "io.weight",
          "io.max"]  # fmt: skip
_VALUES = st.one_of(st.text(max_size=20), st.from_regex(r"[0-9max ,:=-]{,20}"))


@given(st.lists(st.tuples(st.sampled_from(_FILES), _VALUES)))
def test_any_text_is_properties_that_the_wire_takes(writes: list[tuple[str, str]]) -> None:
    found = systemd.properties(writes)
    address = DBusAddress("/x", "a.b", "a.b")
    assert new_method_call(address, "SetUnitProperties", "sba(sv)", ("u", True, found)).serialise(1)
    assert all(0 <= value <= INFINITY for _, (signature, value) in found if signature == "t")


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=20))
def test_a_set_of_cpus_is_its_bits(cpus: set[int]) -> None:
    value = told({"cpu": {"cpus": ",".join(map(str, sorted(cpus)))}})["AllowedCPUs"]
    assert {bit for bit in range(len(value) * 8) if value[bit // 8] >> bit % 8 & 1} == cpus


@given(st.integers(1, 10**9), st.integers(1000, 10**6))
def test_a_quota_in_whole_percents_is_never_less(quota: int, period: int) -> None:
    value = told({"cpu": {"quota": quota, "period": period}})["CPUQuotaPerSecUSec"]
    assert value % 10000 == 0
    assert 0 <= value * period - quota * 10**6 < 10000 * period


def test_only_the_limit_of_processes_is_left_to_systemd() -> None:
    writes = cgroup2.writes({"memory": {"limit": 4096}, "cpu": {"quota": 5000}, "pids": {"limit": 5}})
    assert systemd.direct(writes) == [write for write in writes if write[0] != "pids.max"]


# ---- devices


def rule(allow: bool, kind: str = "a", major: int | None = None, minor: int | None = None, access: str = "rwm") -> Json:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def allowed(rules: list[Json]) -> Any:
    """The list by pattern; "auto" where everything is allowed."""
    (_, (_, policy)), *lists = systemd.device_properties(rules)
    assert lists[0] == ("DeviceAllow", ("a(ss)", []))
    return policy if policy == "auto" else dict(lists[1][1][1])


@pytest.mark.parametrize(("rules", "expected"), [
    ([], {}),
    ([rule(False)], {}),
    ([rule(True)], "auto"),
    ([{"allow": True}], "auto"),
    ([rule(True, "c"), rule(True, "b")], "auto"),
    ([rule(True, access="rw")], {"block-*": "rw", "char-*": "rw"}),
    ([rule(True), rule(False)], {}),
    ([rule(True), rule(False, "b")], {"char-*": "rwm"}),
    ([rule(True), rule(False, access="w")], {"block-*": "rm", "char-*": "rm"}),
    ([rule(False), rule(True, "c", 1, 3, "wr")], {"/dev/char/1:3": "rw"}),
    ([rule(False), rule(True, "c", 1, 3, "r"), rule(True, "c", 1, 3, "m")], {"/dev/char/1:3": "rm"}),
    ([rule(False), rule(True, "b", 8, -1)], {"block-8": "rwm"}),
    ([rule(True, "b", 8, 1), rule(False, "b", 8)], {}),
    ([rule(True, "b", 8, 1), rule(False, "c", 8)], {"/dev/block/8:1": "rwm"}),
    ([rule(True), rule(False, "c", 1, 11)], "auto"),  # the cut is our own program's
    ([rule(False), rule(True, "c", None, 3)], {"char-*": "rwm"}),  # so is this
])  # fmt: skip
def test_device_rules_as_a_list_of_what_is_allowed(rules: list[Json], expected: Any) -> None:
    assert allowed(rules) == expected


def test_dockers_rules_are_said_whole() -> None:
    found = allowed(defaults.device_rules())
    assert found["char-*"] == found["block-*"] == "m"
    assert found["/dev/char/1:3"] == found["char-136"] == "rwm"


_RULES = st.lists(st.builds(
    rule, st.booleans(), st.sampled_from("abc"), st.sampled_from([None, -1, 1, 2]), st.sampled_from([None, 0, 1]),
    st.sampled_from(["r", "rw", "m", "rwm"]),
), max_size=6)  # fmt: skip


def _ours(rules: list[Json], kind: str, major: int, minor: int, letter: str) -> bool:
    """What oci/bpf.py decides: the last rule that matches."""
    for one in reversed(rules):
        same = all(one[key] in (None, -1, number) for key, number in (("major", major), ("minor", minor)))
        if one["type"] in ("a", kind) and same and letter in one["access"]:
            return bool(one["allow"])
    return False


_ACCESSES = st.tuples(
    st.sampled_from("bc"), st.sampled_from([1, 2, 3]), st.sampled_from([0, 1, 2]), st.sampled_from("rwm")
)


@given(_RULES, _ACCESSES)
def test_what_our_program_allows_systemd_allows(rules: list[Json], access: tuple[str, int, int, str]) -> None:
    found, (kind, major, minor, letter) = allowed(rules), access
    group = {"b": "block", "c": "char"}[kind]
    patterns = (f"{group}-*", f"{group}-{major}", f"/dev/{group}/{major}:{minor}")
    theirs = found == "auto" or any(letter in found.get(pattern, "") for pattern in patterns)
    assert theirs or not _ours(rules, kind, major, minor, letter)


# ---- annotations


@pytest.mark.parametrize(("text", "expected"), [
    ("true", ("b", True)), ("5", ("i", 5)), ("-0x10", ("i", -16)), ("uint64 18446744073709551615", ("t", INFINITY)),
    ("@t 5", ("t", 5)), ("2.5", ("d", 2.5)), ("double 3", ("d", 3.0)), ("'a b'", ("s", "a b")),
    ('"it\'s"', ("s", "it's")), (r"'a\'\n'", ("s", "a'\n")),
    ("['a', 'b']", ("as", ["a", "b"])), ("@as []", ("as", [])), ("[uint32 1, 2]", ("au", [1, 2])),
    ("[byte 1, 0xff]", ("ay", b"\x01\xff")), ("[[1], [2, 3]]", ("aai", [[1], [2, 3]])), (" [ true ] ", ("ab", [True])),
])  # fmt: skip
def test_a_value_as_text(text: str, expected: tuple[str, Any]) -> None:
    assert gvariant.parse(text) == expected


@pytest.mark.parametrize("text", [
    "", "a", "1 2", "'open", "[1", "[1 2]", "[]", "[1, 'a']", "uint32 -1", "byte 256", "uint32", "uint32 true",
    "int32 2.5", "boolean 1", "@q 'a'", "@as 'a'",
    "[,]", "]", "5a", "3000000000", "string uint32 5", "@z 5", "\0", "٣", "'\0'",
    "'\ud800'", "[" * 5000, "@" + "a" * 5000 + "s []",
])  # fmt: skip
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(ValueError):
        gvariant.parse(text)


@given(st.text(alphabet="[]'\"\\,@ au5.-intbytre0x16", max_size=30))
def test_any_text_is_a_value_that_the_wire_takes_or_none(text: str) -> None:
    try:
        signature, value = gvariant.parse(text)
    except ValueError:
        return
    assert parse_signature(list(signature)).serialise(value, 0, Endianness.little)


def test_annotations_are_properties() -> None:
    found = systemd.annotated({
        "org.systemd.property.TimeoutStopSec": "2.5", "org.systemd.property.CollectMode": "'inactive'",
        "org.systemd.property.AllowedSec": "uint32 3", "other": "x",
    })  # fmt: skip
    assert found == [
        ("AllowedUSec", ("t", 3000000)), ("CollectMode", ("s", "inactive")), ("TimeoutStopUSec", ("t", 2500000)),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [
    ("TimeoutStopSec", "'5'"), ("TimeoutStopSec", "-1"), ("TimeoutStopSec", "true"), ("Ab", "5"), ("A_b", "5"),
    ("", "5"), ("Delegate", "maybe"),
])  # fmt: skip
def test_an_annotation_that_is_none_is_named(name: str, text: str) -> None:
    with pytest.raises(WherryError, match=f"annotations.org.systemd.property.{name}: ") as caught:
        systemd.annotated({f"org.systemd.property.{name}": text})
    assert caught.value.kind is Kind.INVALID


# ---- a host without it


def test_without_systemd_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    nobody = Manager(user=True, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert not driver.available(nobody)
    with pytest.raises(WherryError, match="does not answer") as caught:
        driver.start(Scope("user.slice", "x.scope"), [], facts.measure(), manager=nobody)
    assert caught.value.kind is Kind.PRECONDITION
    assert "--systemd-cgroup" in caught.value.hint


@pytest.mark.parametrize("address", ["", "unix", "tcp:host=x,port=1", "unix:path"])
def test_an_address_that_is_none_is_named(address: str, tmp_path: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": address or ":"}
    with pytest.raises(WherryError, match="is no address of a D-Bus socket"):
        driver.stop(Scope("user.slice", "x.scope"), Manager(user=True, env=env))
