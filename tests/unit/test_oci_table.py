"""docs/oci-spec.md: no field of the runtime-spec without a row, no row without a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wherry.oci import options

TESTS = Path(__file__).resolve().parents[1]
TEXT = (TESTS.parent / "docs" / "oci-spec.md").read_text()
ROWS = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]*) \|$", TEXT, re.MULTILINE))

_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")
#: the leaves of schema/config-schema.json and config-linux.json of 1.3.0 by their objects; "[]" an item, "*" any key
SCHEMA: dict[str, str] = {
    "": "ociVersion hostname domainname annotations",
    "root.": "path readonly",
    "mounts[].": "destination type source options uidMappings gidMappings",
    "hooks.": "prestart createRuntime createContainer startContainer poststart poststop",
    "hooks.*[].": "path args env timeout",
    "process.": "terminal cwd env args commandLine apparmorProfile selinuxLabel oomScoreAdj noNewPrivileges",
    "process.consoleSize.": "height width",
    "process.user.": "uid gid umask additionalGids username",
    "process.capabilities.": "bounding effective inheritable permitted ambient",
    "process.rlimits[].": "type soft hard",
    "process.scheduler.": "policy nice priority flags runtime deadline period",
    "process.ioPriority.": "class priority",
    "process.execCPUAffinity.": "initial final",
    "linux.": "cgroupsPath rootfsPropagation maskedPaths readonlyPaths mountLabel sysctl netDevices.*",
    "linux.namespaces[].": "type path",
    "linux.uidMappings[].": "containerID hostID size",
    "linux.gidMappings[].": "containerID hostID size",
    "linux.timeOffsets.monotonic.": "secs nanosecs",
    "linux.timeOffsets.boottime.": "secs nanosecs",
    "linux.devices[].": "type path major minor fileMode uid gid",
    "linux.netDevices.*.": "name",
    "linux.personality.": "domain flags",
    "linux.memoryPolicy.": "mode nodes flags",
    "linux.intelRdt.": "closID l3CacheSchema memBwSchema schemata enableMonitoring",
    "linux.seccomp.": "defaultAction defaultErrnoRet architectures flags listenerPath listenerMetadata",
    "linux.seccomp.syscalls[].": "names action errnoRet",
    "linux.seccomp.syscalls[].args[].": "index value valueTwo op",
    "linux.resources.": "unified",
    "linux.resources.devices[].": "allow type major minor access",
    "linux.resources.memory.": (
        "limit reservation swap kernel kernelTCP swappiness disableOOMKiller useHierarchy checkBeforeUpdate"
    ),
    "linux.resources.cpu.": "shares quota burst period realtimeRuntime realtimePeriod cpus mems idle",
    "linux.resources.pids.": "limit",
    "linux.resources.blockIO.": "weight leafWeight",
    "linux.resources.blockIO.weightDevice[].": "major minor weight leafWeight",
    **{f"linux.resources.blockIO.{name}[].": "major minor rate" for name in _THROTTLES},
    "linux.resources.hugepageLimits[].": "pageSize limit",
    "linux.resources.network.": "classID",
    "linux.resources.network.priorities[].": "name priority",
    "linux.resources.rdma.*.": "hcaHandles hcaObjects",
}
FIELDS = [prefix + leaf for prefix, leaves in SCHEMA.items() for leaf in leaves.split()]
#: config.md, "Linux mount options"
OPTIONS = """
async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec
noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime
remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro
rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync
tmpcopyup unbindable idmap ridmap
"""


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_row(field: str) -> None:
    assert field in ROWS


def test_no_row_is_of_a_field_that_the_spec_lacks() -> None:
    assert {row for row in ROWS if "." in row or "[" in row} <= set(FIELDS)


@pytest.mark.parametrize("word", OPTIONS.split())
def test_every_mount_option_has_a_row_and_is_known(word: str) -> None:
    """And none is taken for an option of the file system, but what it reads."""
    assert word in {word for row in ROWS for word in row.split(", ")}
    assert options.parse([word]).data == ((word,) if word in options.PARAMETERS else ())


@pytest.mark.parametrize("row", ROWS)
def test_every_row_names_tests_that_exist(row: str) -> None:
    tests = re.findall(r"`([^`:]+)::(\w+)`", ROWS[row])
    assert tests
    for file, name in tests:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file}::{name}"
