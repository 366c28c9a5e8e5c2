"""Seccomp profiles: what they allow, compared with the distribution's, and run as the program libseccomp makes of
them."""

from __future__ import annotations

import json
import os
import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.model import Json
from wherry.oci import defaults, seccomp
from wherry.oci.facts import CAPABILITIES

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
X86_64, I386 = 0xC000003E, 0x40000003
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# asm/unistd_64.h
NR = {
    "read": 0,
    "ioctl": 16,
    "socket": 41,
    "clone": 56,
    "personality": 135,
    "mount": 165,
    "keyctl": 250,
    "unshare": 272,
    "io_uring_setup": 425,
    "clone3": 435,
    "bpf": 321,
    "perf_event_open": 298,
    "ptrace": 101,
    "syslog": 103,
}


def names(profile: str | Json, *caps: str, **more: object) -> set[str]:
    """Calls that some argument is allowed for."""
    resolved = seccomp.resolve(profile, caps, **more)  # type: ignore[arg-type]
    assert resolved is not None
    return {name for call in resolved["syscalls"] if call["action"] == "SCMP_ACT_ALLOW" for name in call["names"]}


def test_unconfined() -> None:
    assert seccomp.resolve("unconfined", ()) is None


def test_unknown_profile_and_architecture() -> None:
    with pytest.raises(WherryError, match='"lax"') as caught:
        seccomp.resolve("lax", ())
    assert caught.value.kind is Kind.INVALID
    with pytest.raises(WherryError, match="vax"):
        seccomp.resolve("default", (), "vax")


@pytest.mark.parametrize(
    ("cap", "calls"),
    [
        ("SYS_ADMIN", {"mount", "setns", "unshare", "bpf", "clone3", "fsopen", "sethostname", "perf_event_open"}),
        ("SYS_MODULE", {"init_module", "finit_module", "delete_module"}),
        ("SYS_TIME", {"settimeofday", "clock_settime"}),
        ("SYS_PTRACE", {"kcmp", "pidfd_getfd", "process_madvise"}),
        ("SYS_NICE", {"mbind", "set_mempolicy"}),
        ("SYS_BOOT", {"reboot"}),
        ("SYS_CHROOT", {"chroot"}),
        ("SYS_PACCT", {"acct"}),
        ("SYS_RAWIO", {"iopl", "ioperm"}),
        ("SYSLOG", {"syslog"}),
        ("BPF", {"bpf"}),
        ("PERFMON", {"perf_event_open"}),
        ("DAC_READ_SEARCH", {"open_by_handle_at"}),
        ("SYS_TTY_CONFIG", {"vhangup"}),
    ],
)
def test_capabilities_open_calls(cap: str, calls: set[str]) -> None:
    for profile in ("default", "strict", "docker"):
        assert not names(profile) & calls
        assert names(profile, f"CAP_{cap}") >= calls


@pytest.mark.parametrize(
    "call",
    [
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "kexec_load",
        "userfaultfd",
        "pivot_root",
        "swapon",
        "nfsservctl",
        "vm86",
        "uselib",
    ],
)
def test_what_no_capability_opens(call: str) -> None:
    assert call not in names("docker", *CAPABILITIES)


def test_ptrace_waits_for_a_safe_kernel() -> None:
    assert "ptrace" not in names("docker", kernel=(4, 7))
    assert "ptrace" in names("docker", kernel=(4, 8))


@pytest.mark.parametrize("caps", [(), defaults.CAPABILITIES, ("CAP_SYS_ADMIN",), CAPABILITIES])
@pytest.mark.parametrize("profile", ["default", "strict"])
def test_never_weaker_than_docker(profile: str, caps: tuple[str, ...]) -> None:
    assert names(profile, *caps) <= names("docker", *caps)
    assert names("docker", *caps) - names(profile, *caps) == {"socketcall"}


SYSTEM_PROFILE = Path("/usr/share/containers/seccomp.json")
#: allowed by podman's profile and not by docker's: what its maintainers decided differently
PODMAN_ONLY = {
    "clone3",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_mempolicy",
    "keyctl",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pidfd_getfd",
    "pivot_root",
    "readdir",
    "reboot",
    "set_mempolicy",
    "setns",
    "sigaction",
    "signal",
    "sigpending",
    "sigsuspend",
    "syscall",
    "syslog",
    "timerfd",
    "umount",
    "umount2",
    "unshare",
}


@pytest.mark.skipif(not SYSTEM_PROFILE.exists(), reason="no profile of the distribution's container tools")
def test_against_the_distributions_profile() -> None:
    """Everything that profile allows is in ours, but for the known list: no call of every day was forgotten."""
    theirs = json.loads(SYSTEM_PROFILE.read_text())
    missing = names(theirs, *defaults.CAPABILITIES) - names("docker", *defaults.CAPABILITIES)
    assert missing <= PODMAN_ONLY


def test_architectures() -> None:
    found = seccomp.resolve("default", (), "x86_64")
    assert found is not None
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    strict = seccomp.resolve("strict", (), "amd64")
    assert strict is not None
    assert strict["architectures"] == ["SCMP_ARCH_X86_64"]
    assert "arch_prctl" not in names("docker", arch="aarch64")
    assert "cacheflush" in names("docker", arch="aarch64")


# ---- documents


def test_docker_document() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}, "excludes": {}},
            {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm"]}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.10"}},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        ],
    }
    found = seccomp.resolve(document, ["CAP_SYS_ADMIN"], "x86_64", (6, 9))
    assert found == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["mount"], "action": "SCMP_ACT_ALLOW"}],
    }
    plain = seccomp.resolve(document, [], "aarch64", (6, 10))
    assert plain is not None
    assert [call["names"] for call in plain["syscalls"]] == [["read"], ["clone"], ["b"], ["c"]]


def test_runtime_spec_document_passes_through() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {
                "names": ["bpf"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 5,
                "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    assert seccomp.resolve(document, ()) == document
    assert seccomp.filter_flags(document) == 2


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"syscalls": [{"names": ["a"], "action": "x"}]}, "defaultAction"),
        ({"defaultAction": "x", "architectures": ["a"], "archMap": [{}]}, "both"),
        ({"defaultAction": "x", "syscalls": [{"action": "y"}]}, "name"),
        ({"defaultAction": "x", "syscalls": [{"name": "a", "names": ["b"], "action": "y"}]}, "name"),
        ({"defaultAction": "x", "syscalls": [{"name": "a"}]}, "action"),
        (
            {"defaultAction": "x", "syscalls": [{"name": "a", "action": "y", "includes": {"minKernel": "new"}}]},
            "minKernel",
        ),
    ],
)
def test_bad_documents(document: Json, why: str) -> None:
    with pytest.raises(WherryError, match=why):
        seccomp.resolve(document, ())


def test_empty_document_filters_nothing() -> None:
    assert seccomp.resolve({}, ()) is None


# ---- what libseccomp makes of it, run


@cache
def program(profile: str, *caps: str) -> tuple[tuple[int, int, int, int], ...]:
    compiler = pytest.importorskip("wherry.kernel.seccomp", exc_type=ImportError)
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of system calls are those of x86_64")
    rules = seccomp.resolve(profile, caps)
    return tuple(struct.iter_unpack("=HBBI", compiler.translate(rules)))


def run(code: tuple[tuple[int, int, int, int], ...], number: int, *args: int, arch: int = X86_64) -> int:
    """Classic BPF over struct seccomp_data."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(list(args) + [0] * 6)[:6])
    a = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            a = struct.unpack_from("=I", data, k)[0]
        elif op == 0x54:
            a &= k
        elif op == 0x06:
            return k
        elif op == 0x05:
            at += k
        elif op in (0x15, 0x25, 0x35, 0x45):
            hit = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[op]
            at += yes if hit else no
        else:
            raise AssertionError(f"instruction {op:#x}")


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_no_typing_into_terminals(profile: str, high: int) -> None:
    """Also with high bits, which the kernel ignores (CVE-2019-7303)."""
    code = program(profile)
    assert run(code, NR["ioctl"], 0, high | TIOCSTI) == EPERM
    assert run(code, NR["ioctl"], 0, high | TIOCLINUX) == EPERM
    assert run(program("docker"), NR["ioctl"], 0, high | TIOCSTI) == ALLOW


@given(
    st.integers(0, 2**64 - 1)
    | st.integers(0x5400, 0x5500)
    | st.integers(0, 31).map(lambda bit: TIOCSTI ^ 1 << bit)
    | st.integers(0, 31).map(lambda bit: TIOCLINUX ^ 1 << bit)
)
def test_every_other_request_passes(request: int) -> None:
    expected = EPERM if request & 0xFFFFFFFF in (TIOCSTI, TIOCLINUX) else ALLOW
    assert run(program("default"), NR["ioctl"], 0, request) == expected


@pytest.mark.parametrize(
    ("family", "default", "strict"),
    [
        (1, True, True),
        (2, True, True),
        (10, True, True),
        (16, True, True),
        (17, True, False),
        (29, True, False),
        (11, True, False),
        (44, True, False),
        (38, False, False),
        (40, False, False),
        (12, False, False),
        (37, False, False),
        (46, False, False),
        (38 | 1 << 32, False, False),
        (2**64 - 1, False, False),
    ],
)
def test_socket_families(family: int, default: bool, strict: bool) -> None:
    for profile, allowed in (("default", default), ("docker", default), ("strict", strict)):
        assert run(program(profile), NR["socket"], family, 1) == (ALLOW if allowed else EPERM)


def test_socketcall_of_32_bit_programs() -> None:
    for call in range(21):  # SYS_SOCKET and its siblings of linux/net.h
        assert run(program("default"), 102, call, arch=I386) == ENOSYS
    assert run(program("docker"), 102, 1, arch=I386) == ALLOW
    assert run(program("default"), 3, 0, arch=I386) == ALLOW  # read
    assert run(program("strict"), 3, 0, arch=I386) not in (ALLOW, EPERM)  # killed: not its ABI


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_makes_no_namespaces(flag: int) -> None:
    for profile in ("default", "strict", "docker"):
        assert run(program(profile), NR["clone"], flag | 17) == EPERM
        assert run(program(profile), NR["clone"], 0x3D0F00) == ALLOW  # a thread
        assert run(program(profile), NR["clone3"]) == ENOSYS
        assert run(program(profile, "CAP_SYS_ADMIN"), NR["clone"], flag | 17) == ALLOW
        assert run(program(profile, "CAP_SYS_ADMIN"), NR["clone3"]) == ALLOW


def test_personality() -> None:
    for value, allowed in ((0, True), (8, True), (0x20008, True), (0xFFFFFFFF, True), (0x40000, False)):
        assert run(program("default"), NR["personality"], value) == (ALLOW if allowed else EPERM)


@pytest.mark.parametrize("call", ["mount", "unshare", "keyctl", "io_uring_setup", "bpf", "perf_event_open", "syslog"])
def test_denied_by_default(call: str) -> None:
    assert run(program("default", *defaults.CAPABILITIES), NR[call]) == EPERM


def test_x32_calls_are_no_way_round() -> None:
    assert run(program("default"), NR["mount"] | 0x40000000) != ALLOW
    assert run(program("strict"), NR["read"] | 0x40000000) != ALLOW
