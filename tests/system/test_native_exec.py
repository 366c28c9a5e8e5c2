"""The native executor, plan by plan: what a process sees, what a failure says, what a hostile root cannot do."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.native import NAMESPACES, Outcome, child, exec_op, host, make_root, reap, rootfs_ops, run
from helpers.tools import strays
from wherry.container import wire
from wherry.kernel import seccomp, shim
from wherry.oci.plan import Op, Plan

CLONE = host("CLONE", n0=NAMESPACES, s0="all")
STARTED = host("REPORT", n0=shim.STARTED, s0="started")
CLOSE = child("CLOSE_FROM", n0=3)
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("native") / "root")


@pytest.fixture
def root(base: Path, tmp_path: Path) -> Path:
    """A root of this test's own; the programs are linked."""
    own = tmp_path / "root"
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc", "data"):
        (own / name).mkdir(parents=True)
    for entry in (base / "bin").iterdir():
        os.link(entry, own / "bin" / entry.name, follow_symlinks=False)
    (own / "data" / "file").write_text("of the image\n")
    return own


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No descriptor, no child and no mount below our directory outlives a test."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd"))) == len(before)
    assert not strays()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def cgroup_mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    pytest.skip("no cgroup2 mount")


def simple(
    root: Path,
    *ops: Op,
    inside: tuple[Op, ...] = (),
    args: tuple[str, ...] = ("/bin/probe", "facts"),
    late: tuple[Op, ...] = (),
) -> Outcome:
    """Root, `inside` before the pivot, `ops` after it, exec."""
    return run([CLONE, *rootfs_ops(root, *inside), *ops, CLOSE, child("CHDIR", s0="/"), *late, exec_op(*args), STARTED])


# ---- the process


def test_runs_true_and_gives_the_exit_code(root: Path) -> None:
    assert simple(root, args=("true",)).status == 0
    outcome = simple(root, args=("probe", "exit", "7"))
    assert outcome.helper == 0
    assert outcome.status == 7
    assert [report[0] for report in outcome.reports] == [shim.STARTED]


def test_a_clean_process(root: Path) -> None:
    facts = simple(root).facts
    assert facts["fds"] == "0 1 2"
    assert facts["pid"] == "1"
    assert facts["cwd"] == "/"
    assert facts["umask"] == "022"
    assert int(facts["SigIgn"], 16) == 0, "Python's ignored SIGPIPE went through"
    assert int(facts["SigBlk"], 16) == 0
    assert facts["dumpable"] == "1"
    assert facts["deathsig"] == "0"


def test_ids_groups_caps_limits(root: Path) -> None:
    caps = 1 << 0 | 1 << 10
    facts = simple(
        root,
        child("BOUNDING", n0=caps),
        child("RLIMIT", s0="NOFILE", n0=7, n1=64, n2=128),
        child("UMASK", n0=0o077),
        child("GROUPS", s0=struct.pack("=2I", 7, 4000000000), n0=2),
        child("GID", n0=1001),
        child("UID", n0=1000),
        child("CAPS", n0=caps, n1=caps, n2=1 << 10),
        child("AMBIENT", n0=1 << 10),
        child("NO_NEW_PRIVS"),
    ).facts
    assert facts["uid"] == "1000 1000 1000"
    assert facts["gid"] == "1001 1001 1001"
    assert facts["groups"] == "7 4000000000"
    assert (facts["umask"], facts["nofile"], facts["NoNewPrivs"]) == ("077", "64 128", "1")
    assert [int(facts[name], 16) for name in ("CapBnd", "CapInh", "CapAmb", "CapEff")] == [
        caps,
        1 << 10,
        1 << 10,
        1 << 10,
    ]


def test_names_and_session(root: Path) -> None:
    facts = simple(
        root,
        child("HOSTNAME", s0="inside"),
        child("DOMAINNAME", s0="example"),
        child("LOOPBACK"),
        child("SESSION"),
        child("KEYRING", "MAY_FAIL", s0="_ses.test"),
    ).facts
    assert (facts["hostname"], facts["domainname"], facts["sid"]) == ("inside", "example", "1")


@pytest.mark.parametrize(
    ("args", "number"),
    [
        (("nothere",), errno.ENOENT),
        (("/etc",), errno.EACCES),
        (("/data/file",), errno.EACCES),
        (("",), errno.ENOENT),
    ],
)
def test_what_cannot_be_executed_is_named(root: Path, args: tuple[str, ...], number: int) -> None:
    outcome = simple(root, args=args)
    index, got, _ = outcome.failure
    assert got == number
    assert outcome.helper == 1
    assert index == 9  # EXEC


def test_seccomp_is_in_force_and_reported(root: Path) -> None:
    rules = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["personality", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
        ],
    }
    code = seccomp.translate(rules)
    filter_op = child("SECCOMP", s0=code, n0=len(code) // 8)
    assert simple(root, late=(filter_op,)).facts["Seccomp"] == "2"
    assert simple(root, late=(filter_op,), args=("probe", "try", "personality", "-")).output == "EADDRNOTAVAIL\n"


def test_a_filter_that_forbids_everything_but_exec_still_reports(root: Path) -> None:
    """After the filter the child may not be able to call anything: failure travels by the shared page."""
    rules = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]}
    code = seccomp.translate(rules)
    outcome = simple(root, late=(child("SECCOMP", s0=code, n0=len(code) // 8),), args=("/nothere",))
    assert outcome.failure[1] == errno.ENOENT


def test_seccomp_listener_reaches_the_parent(root: Path) -> None:
    rules = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_NOTIFY"}]}
    code = seccomp.translate(rules)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ops = [
            CLONE,
            *rootfs_ops(root),
            CLOSE,
            child("SECCOMP", s0=code, n0=len(code) // 8, n1=8),
            exec_op("true"),
            host("RECV_FD", fd0=9),
            host("SEND_FD", fd0=9, fd1=15, s0='{"pid":%p,"x":"%p"}'),
            STARTED,
        ]
        shifted = _shift(ops, 1, {15: 0})
        outcome = run(shifted, [theirs.fileno()])
        data, anc, _, _ = ours.recvmsg(4096, 4096)
    assert outcome.status == 0
    fd = array.array("i", anc[0][2])[0]
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"
    os.close(fd)
    assert data == b'{"pid":%d,"x":"%%p"}' % outcome.reports[-1][3]


def _shift(ops: list[Op], by: int, also: dict[int, int]) -> list[Op]:
    """The same records with slots moved up, to make room for inherited ones."""

    def move(slot: int) -> int:
        return also.get(slot, slot + by if slot >= 0 else slot)

    return [
        Op(
            o.name,
            o.side,
            o.flags,
            move(o.fd0),
            move(o.fd1),
            o.s0,
            o.s1,
            o.s2,
            o.n0 + by if o.name == "MASK" else o.n0,
            o.n1,
            o.n2,
        )
        for o in ops
    ]


def test_stdio_above_two_may_collide_with_our_own_slots(root: Path, tmp_path: Path) -> None:
    files = []
    for name in "abc":
        (tmp_path / name).write_text(name)
        files.append(os.open(tmp_path / name, os.O_RDONLY))
    # descriptors 5, 6, 7 are slots 0, 1, 2 in the helper: a rotation is the hardest case
    stdio = [child("STDIO", fd0=(i + 1) % 3, n0=5 + i) for i in range(3)]
    stdio += [child("STDIO", fd0=0, n0=3), child("STDIO", fd0=1, n0=4)]
    ops = [
        CLONE,
        *_shift(rootfs_ops(root), 3, {}),
        *stdio,
        child("CLOSE_FROM", n0=8),
        exec_op("sh", "-c", "cat <&5; cat <&6; cat <&7; cat /proc/self/fd/3"),
        STARTED,
    ]
    outcome = run(ops, files)
    for fd in files:
        os.close(fd)
    assert outcome.status == 0, outcome
    assert outcome.output == "bcaa"


def test_init_starts_the_command_reaps_and_passes_signals(root: Path) -> None:
    ops = [CLONE, *rootfs_ops(root), CLOSE, exec_op("sh", "-c", "echo $$; exit 5", flags=("INIT",)), STARTED]
    outcome = run(ops)
    assert (outcome.status, outcome.output) == (5, "2\n")
    script = "trap 'exit 9' TERM; (sleep 0.01 &) ; kill -TERM 1; while :; do sleep 0.02; done"
    ops[-2] = exec_op("sh", "-c", script, flags=("INIT",))
    assert run(ops).status == 9
    ops[-2] = exec_op("nothere", flags=("INIT",))
    assert run(ops).status == 127


# ---- mounts


def test_tmpfs_readonly_and_attributes(root: Path) -> None:
    inside = (
        child("FS_NEW", fd0=3, s0="tmpfs", s1=("size=64k", "mode=1777"), n0=2, n1=NOSUID | NODEV, s2="tmpfs"),
        child("ATTACH", "MAKE_DIR", fd0=3, fd1=1, s0="/new/deep/tmp"),
        child("READONLY", fd1=1, s0="/data"),
        child("READONLY", "MAY_BE_ABSENT", fd1=1, s0="/not/here"),
    )
    mounts = simple(root, inside=inside, args=("cat", "/proc/self/mountinfo")).output
    line = next(line for line in mounts.splitlines() if "/new/deep/tmp" in line)
    assert "nosuid,nodev" in line
    assert "size=64k" in line
    assert simple(root, inside=inside, args=("probe", "try", "create", "/data/new")).output == "EROFS\n"
    assert simple(root, inside=inside, args=("probe", "try", "create", "/tmp/new")).output == "ok\n"


def test_root_readonly_and_no_pivot(root: Path) -> None:
    after = (child("ROOT_ATTR", n0=RDONLY),)
    assert simple(root, *after, args=("probe", "try", "create", "/new")).output == "EROFS\n"
    ops = [CLONE, *rootfs_ops(root, pivot=False), child("PIVOT", "MOVE", fd0=1), exec_op("ls", "/"), STARTED]
    assert "data" in run(ops).output


def test_the_old_root_is_gone(root: Path) -> None:
    lines = simple(root, args=("cat", "/proc/self/mountinfo")).output.splitlines()
    assert [line.split()[4] for line in lines] == ["/", "/proc"]


def test_masks(root: Path) -> None:
    (root / "data" / "secret").mkdir()
    (root / "data" / "secret" / "key").write_text("k")
    inside = (
        child("TREE", fd0=3, s0="/dev/null"),
        child("FS_NEW", fd0=4, s0="tmpfs", s1=("mode=555",), n0=1, n1=RDONLY | NOSUID | NODEV | NOEXEC, s2="tmpfs"),
        *(
            child("MASK", "MAY_BE_ABSENT", fd0=3, fd1=1, s0=path, n0=4)
            for path in ("/data/file", "/data/secret", "/proc/keys", "/proc/acpi", "/none")
        ),
    )
    shown = "cat /data/file; ls -A /data/secret; cat /proc/keys; echo end"
    assert simple(root, inside=inside, args=("sh", "-c", shown)).output == "end\n"
    tried = simple(root, inside=inside, args=("probe", "try", "create", "/data/secret/x")).output
    assert tried == "EROFS\n"


def test_a_mask_that_cannot_be_set_fails_the_start(root: Path) -> None:
    inside = (child("TREE", fd0=3, s0="/dev/null"), child("MASK", fd0=3, fd1=1, s0="/none", n0=4))
    index, number, _ = simple(root, inside=inside).failure
    assert (index, number) == (7, errno.ENOENT)


def test_copy_up(root: Path) -> None:
    (root / "data" / "sub").mkdir(mode=0o750)
    (root / "data" / "sub" / "link").symlink_to("/etc/passwd")
    os.chown(root / "data" / "sub", 7, 8)
    os.chmod(root / "data", 0o711)
    (root / "data" / "big").write_bytes(os.urandom(70000))
    inside = (
        child("FS_NEW", fd0=3, s0="tmpfs", s2="tmpfs"),
        child("COPY_UP", fd0=3, fd1=1, s0="/data"),
        child("ATTACH", fd0=3, fd1=1, s0="/data"),
    )
    shown = "cat /data/file; busybox stat -c '%a %u %g' /data/sub; busybox readlink /data/sub/link;"
    shown += "busybox stat -c %a /data; busybox sha256sum < /data/big; rm -f /data/big; busybox rm /data/big"
    outcome = simple(root, inside=inside, args=("sh", "-c", shown))
    import hashlib

    digest = hashlib.sha256((root / "data" / "big").read_bytes()).hexdigest()
    assert outcome.output.splitlines()[:5] == ["of the image", "750 7 8", "/etc/passwd", "711", f"{digest}  -"]
    assert (root / "data" / "big").exists(), "the copy is the tmpfs's, not the image's"


def test_overlay_and_the_kernels_words(root: Path, tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    data = (f"lowerdir={root}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")

    def plan(options: tuple[str, ...]) -> list[Op]:
        ops = rootfs_ops(root)
        ops[1] = child("FS_NEW", fd0=0, s0="overlay", s1=options, n0=len(options), s2="overlay")
        return [CLONE, *ops, exec_op("sh", "-c", "echo new > /data/file; cat /data/file"), STARTED]

    assert run(plan(data)).output == "new\n"
    assert (root / "data" / "file").read_text() == "of the image\n"
    assert (tmp_path / "upper" / "data" / "file").read_text() == "new\n"
    _, number, detail = run(plan((f"lowerdir={tmp_path}/missing", *data[1:]))).failure
    assert number == errno.ENOENT
    _, number, detail = run(plan((*data, "nonsense=1"))).failure
    assert number == errno.EINVAL
    assert "nonsense" in detail


def test_overlay_by_slots(root: Path, tmp_path: Path) -> None:
    """A path too long for fsconfig goes by descriptor."""
    deep = tmp_path / ("d" * 200) / ("e" * 100)
    deep.mkdir(parents=True)
    for name in ("upper", "work"):
        (deep / name).mkdir()
    names = {3: str(root), 4: f"{deep}/upper", 5: f"{deep}/work"}
    opens = [child("OPEN", fd0=slot, s0=path, n0=os.O_PATH | os.O_DIRECTORY) for slot, path in names.items()]
    options = ("lowerdir=slot:3", "upperdir=slot:4", "workdir=slot:5")
    ops = rootfs_ops(root)
    ops[1] = child("FS_NEW", fd0=0, s0="overlay", s1=options, n0=3, s2="overlay")
    outcome = run([CLONE, *opens, *ops, exec_op("sh", "-c", "echo 1 > /x"), STARTED])
    assert outcome.status == 0, outcome
    assert (deep / "upper" / "x").read_text() == "1\n"


def test_devices_links_and_directories(root: Path) -> None:
    null = os.makedev(1, 3)
    inside = (
        child("FS_NEW", fd0=3, s0="tmpfs", s1=("mode=755",), n0=1, s2="tmpfs"),
        child("ATTACH", fd0=3, fd1=1, s0="/dev"),
        child("NODE", fd1=1, s0="/dev/null", n0=stat.S_IFCHR | 0o666, n1=null, n2=5 << 32 | 6),
        child("NODE", fd1=1, s0="/dev/null", n0=stat.S_IFCHR | 0o666, n1=null),
        child("SYMLINK", fd1=1, s0="/proc/self/fd", s1="/dev/fd"),
        child("SYMLINK", fd1=1, s0="elsewhere", s1="/dev/fd"),
        child("MAKE_DIR", fd1=1, s0="/work/dir", n0=0o1777, n1=3, n2=4),
    )
    shown = "busybox stat -c '%F %a %u %g' /dev/null /work/dir; busybox readlink /dev/fd"
    expected = ["character special file 666 5 6", "directory 1777 3 4", "/proc/self/fd"]
    assert simple(root, inside=inside, args=("sh", "-c", shown)).output.splitlines() == expected
    inside = (*inside, child("NODE", fd1=1, s0="/dev/null", n0=stat.S_IFCHR | 0o666, n1=os.makedev(1, 5)))
    assert simple(root, inside=inside).failure[1] == errno.EEXIST


def test_sysctl_goes_through_our_own_procfs(root: Path) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    ops = (
        child("SYSCTL", fd0=2, s0="net/ipv4/ping_group_range", s1="0 7"),
        child("SYSCTL", fd0=2, s0="kernel/domainname", s1="d"),
    )
    inside = (
        child("FS_NEW", fd0=4, s0="proc", s2="proc"),
        child("SYSCTL", fd0=4, s0="net/ipv4/ping_group_range", s1="0 7"),
    )
    assert simple(root, inside=inside, args=("cat", "/proc/sys/net/ipv4/ping_group_range")).output.split() == ["0", "7"]
    wrong = (child("FS_NEW", fd0=4, s0="tmpfs", s2="tmpfs"), child("SYSCTL", fd0=4, s0="net/x", s1="1"))
    assert simple(root, inside=wrong).failure[1] == errno.ENOENT
    escape = (child("FS_NEW", fd0=4, s0="proc", s2="proc"), child("SYSCTL", fd0=4, s0="../1/oom_score_adj", s1="5"))
    assert simple(root, inside=escape).status == 0  # stays in the procfs of the container: its own pid 1
    escape = (child("FS_NEW", fd0=4, s0="proc", s2="proc"), child("SYSCTL", fd0=4, s0="../../etc/x", s1="5"))
    assert simple(root, inside=escape).failure[1] == errno.EXDEV
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    assert ops


# ---- hostile roots


@pytest.mark.parametrize("text", ["/OUT", "../../../../../../OUT", "/proc/self/root/OUT", "../dev/../OUT"])
def test_a_symlink_as_a_mount_target_stays_beneath(root: Path, tmp_path: Path, text: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "data" / "trap").symlink_to(text.replace("OUT", str(outside).lstrip("/")))
    inside = (
        child("FS_NEW", fd0=3, s0="tmpfs", s2="tmpfs"),
        child("ATTACH", "MAKE_DIR", fd0=3, fd1=1, s0="/data/trap/x"),
    )
    outcome = simple(root, inside=inside, args=("cat", "/proc/self/mountinfo"))
    assert list(outside.iterdir()) == []
    if outcome.status is None:
        assert outcome.failure[1] in {errno.ELOOP, errno.ENOENT, errno.ENOTDIR}
    else:
        assert outcome.output.splitlines()[-1].split()[4].endswith("/x")


def test_a_file_through_a_dangling_link_is_made_beneath(root: Path, tmp_path: Path) -> None:
    (root / "etc" / "resolv.conf").symlink_to("/run/resolv.conf")
    (root / "run").mkdir()
    source = tmp_path / "resolv"
    source.write_text("nameserver 192.0.2.1\n")
    inside = (
        child("TREE", fd0=3, s0=str(source)),
        child("ATTACH", "MAKE_DIR", "MAKE_FILE", fd0=3, fd1=1, s0="/etc/resolv.conf"),
    )
    assert simple(root, inside=inside, args=("cat", "/etc/resolv.conf")).output == "nameserver 192.0.2.1\n"
    assert not Path("/run/resolv.conf").exists() or "192.0.2.1" not in Path("/run/resolv.conf").read_text()


def test_proc_must_be_a_real_directory(root: Path) -> None:
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/data")
    index, number, _ = simple(root).failure
    assert (index, number) == (5, errno.ELOOP)


def test_a_working_directory_outside_is_refused(root: Path) -> None:
    """CVE-2024-21626: a leaked descriptor as the working directory."""
    ops = [
        CLONE,
        child("OPEN", fd0=5, s0="/", n0=os.O_RDONLY | os.O_DIRECTORY),
        *rootfs_ops(root),
        *(child("CHDIR", "MAY_FAIL", s0=f"/proc/self/fd/{n}") for n in ()),
        child("CHDIR", s0="/proc/self/fd/5/"),
        exec_op("true"),
        STARTED,
    ]
    outcome = run(ops)
    assert outcome.failure[1] in {errno.EXDEV, errno.ENOENT, errno.ENOTDIR}


# ---- terminal


def test_console_of_the_roots_own_devpts(root: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    inside = (
        child("FS_NEW", fd0=3, s0="tmpfs", s1=("mode=755",), n0=1, s2="tmpfs"),
        child("ATTACH", fd0=3, fd1=1, s0="/dev"),
        child("FS_NEW", fd0=4, s0="devpts", s1=("mode=0620", "ptmxmode=0666", "gid=5"), n0=3, s2="devpts"),
        child("ATTACH", "MAKE_DIR", fd0=4, fd1=1, s0="/dev/pts"),
        child("CONSOLE", fd1=1, n0=33, n1=99, n2=1000),
    )
    ops = [
        CLONE,
        *rootfs_ops(root, *inside),
        child("SESSION", "TTY"),
        CLOSE,
        exec_op(
            "sh", "-c", "probe facts; busybox stty size; busybox stat -c '%F %u' /dev/console; read x; echo got $x"
        ),
        host("RECV_FD", fd0=9),
        host("SEND_FD", fd0=9, fd1=15, s0="/dev/ptmx"),
        STARTED,
    ]
    with ours, theirs:
        outcome = run(_shift(ops, 1, {15: 0}), [theirs.fileno()], wait=False)
        _, anc, _, _ = ours.recvmsg(64, 64)
    master = array.array("i", anc[0][2])[0]
    text = b""
    os.write(master, b"hello\n")
    while b"got" not in text and select.select([master], [], [], 10)[0]:
        text += os.read(master, 4096)
    status = os.waitstatus_to_exitcode(os.waitpid(outcome.reports[-1][3], 0)[1])
    os.close(master)
    lines = text.decode().replace("\r", "")
    assert "tty: /dev/pts/0" in lines
    assert "33 99" in lines
    assert "character special file 1000" in lines
    assert (status, lines.splitlines()[-1]) == (0, "got hello")


def test_console_refuses_a_false_devpts(root: Path) -> None:
    (root / "dev" / "pts").mkdir()
    os.mknod(root / "dev" / "pts" / "ptmx", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    ops = [CLONE, *rootfs_ops(root, child("CONSOLE", fd1=1)), exec_op("true"), STARTED]
    assert run(ops).failure[1] == errno.EXDEV


# ---- barriers, hooks, the host's side


def test_barriers_and_hooks(root: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    state = '{"pid":%p,"bundle":"/a %p \\" %p"}'
    script = ("sh", "-c", f"cat > {seen}; echo $WHERE >> {seen}")
    hook = {"s0": "/bin/sh", "s1": script, "n0": 3, "s2": ("WHERE=here", "PATH=/bin:/usr/bin"), "n1": 2}
    ops = [
        CLONE,
        child("SYNC", s0="a"),
        host("SYNC", s0="a"),
        host("HOOK_STATE", s0=state),
        host("HOOK", **hook),
        child("SYNC", s0="b"),
        host("SYNC", s0="b"),
        *rootfs_ops(root),
        exec_op("true"),
        STARTED,
    ]
    outcome = run(ops)
    assert outcome.status == 0
    pid = outcome.reports[-1][3]
    assert seen.read_text() == f'{{"pid":{pid},"bundle":"/a %p \\" %p"}}here\n'


def test_a_failing_hook_says_its_last_line(root: Path) -> None:
    hook = {"s0": "/bin/sh", "s1": ("sh", "-c", "echo one; echo 'the cause' >&2; exit 3"), "n0": 3}
    ops = [CLONE, host("HOOK", **hook), *rootfs_ops(root), exec_op("true"), STARTED]
    assert run(ops).failure == (1, errno.ECHILD, "the cause")
    late = [
        CLONE,
        *rootfs_ops(root),
        child("HOOK", s0="/bin/sh", s1=("sh", "-c", "exit 4"), n0=3),
        exec_op("true"),
        STARTED,
    ]
    assert run(late).failure == (7, errno.ECHILD, "exit status 4")


def test_a_hook_has_a_deadline(root: Path) -> None:
    hook = {
        "s0": "/bin/sh",
        "s1": ("sh", "-c", "sleep 60 & sleep 60"),
        "n0": 3,
        "s2": ("PATH=/bin",),
        "n1": 1,
        "n2": 200,
    }
    began = time.monotonic()
    outcome = run([CLONE, host("HOOK", **hook), *rootfs_ops(root), exec_op("true"), STARTED])
    assert outcome.failure[:2] == (1, errno.ETIMEDOUT)
    assert time.monotonic() - began < 10
    time.sleep(0.1)
    while True:  # the hook's own background process came to us when its parent was killed
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break


def test_user_namespace_below_private_directories(root: Path, tmp_path: Path) -> None:
    """The root's and a volume's paths lead through 0700 directories of the host, which a mapped user may not pass."""
    for path in (root, *root.rglob("*")):
        os.chown(path, 100000, 100000, follow_symlinks=False)
    os.chmod(tmp_path, 0o700)
    (tmp_path / "volume").mkdir(mode=0o700)
    (tmp_path / "volume" / "x").write_text("volume")
    os.chown(tmp_path / "volume", 100000, 100000)
    clone = host("CLONE", n0=NAMESPACES | 0x10000000, s0="all and user")
    maps = [host("PROC_WRITE", s0=name, s1="0 100000 1000\n") for name in ("gid_map", "uid_map")]
    volume = (child("TREE", fd0=3, s0=str(tmp_path / "volume")),)
    attach = (
        child("ATTACH", "MAKE_DIR", fd0=3, fd1=1, s0="/data/volume"),
        child("HOSTNAME", s0="u"),
        child("LOOPBACK"),
    )
    outcome = run(
        [
            clone,
            *maps,
            host("SYNC", s0="maps"),
            child("SYNC", s0="maps"),
            child("GID", n0=0),
            child("UID", n0=0),
            *volume,
            *rootfs_ops(root, *attach),
            CLOSE,
            exec_op("sh", "-c", "probe facts; cat /data/volume/x"),
            STARTED,
        ]
    )
    assert outcome.status == 0, outcome
    assert outcome.facts["uid"] == "0 0 0"
    assert outcome.facts["fds"] == "0 1 2"
    assert outcome.output.endswith("volume")


def test_wait_start_by_a_fifo_path_handle(root: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "start"
    os.mkfifo(fifo)
    handle = os.open(fifo, os.O_PATH)
    pidfile = tmp_path / "pid"
    ops = [
        CLONE,
        *_shift(rootfs_ops(root), 1, {}),
        child("CHDIR", s0="/"),
        child("WAIT_START", fd0=0),
        CLOSE,
        exec_op("probe", "exit", "6"),
        host("PIDFILE", s0=str(pidfile)),
        host("REPORT", n0=shim.CREATED),
    ]
    outcome = run(ops, [handle], wait=False)
    os.close(handle)
    assert [r[0] for r in outcome.reports] == [shim.CREATED]
    pid = outcome.reports[0][3]
    assert int(pidfile.read_text()) == pid
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it died with its helper"
    with open(fifo, "wb"):
        pass  # a writer that says nothing starts nothing
    time.sleep(0.05)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    with open(fifo, "wb") as start:
        start.write(b"0")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_the_child_dies_with_a_killed_helper(root: Path) -> None:
    """SIGKILL of the helper while the child works: no process is left."""
    hook = {"s0": "/bin/sh", "s1": ("sh", "-c", "kill -9 $PPID; sleep 1"), "n0": 3, "s2": ("PATH=/bin",), "n1": 1}
    ops = [
        CLONE,
        child("SYNC", s0="a"),
        host("HOOK", **hook),
        host("SYNC", s0="a"),
        *rootfs_ops(root),
        exec_op("sleep", "99"),
        STARTED,
    ]
    outcome = run(ops)
    assert outcome.helper == -9
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # the hook and the child come to us, dead
        if not strays(reap=True):
            return
        time.sleep(0.02)
    pytest.fail("a process outlived its helper")


def test_cgroup_made_entered_and_undone(root: Path, test_id: str) -> None:
    place = cgroup_mount() / test_id
    ops = [
        host("CGROUP_JOIN", s0=f"{place}/monitor"),
        host("CGROUP_DIR", fd0=3, s0=f"{place}/c"),
        host("CGROUP_SET", fd0=3, s0="cgroup.max.depth", s1="5"),
        host("CLONE", n0=NAMESPACES | 0x02000000, fd0=3),
        *rootfs_ops(root),
        exec_op("cat", "/proc/self/cgroup"),
        STARTED,
    ]
    outcome = run(ops)
    assert outcome.output.splitlines()[-1] == "0::/", outcome
    assert (place / "c" / "cgroup.max.depth").read_text() == "5\n"
    again = run(ops)
    assert again.failure[:2] == (1, errno.EEXIST)
    for name in ("c", "monitor", ""):
        (place / name).rmdir()
    assert run([*ops[:3], host("CGROUP_SET", fd0=3, s0="cgroup.none", s1="1"), *ops[3:]]).failure[:2] == (
        3,
        errno.ENOENT,
    )
    assert not place.exists()


def test_device_rules(root: Path, test_id: str) -> None:
    place = cgroup_mount() / test_id
    deny = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit
    inside = (child("NODE", fd1=1, s0="/dev/zero", n0=stat.S_IFCHR | 0o666, n1=os.makedev(1, 5)),)

    def plan(*rules: Op) -> list[Op]:
        return [
            host("CGROUP_DIR", fd0=3, s0=str(place)),
            *rules,
            host("CLONE", n0=NAMESPACES, fd0=3),
            *rootfs_ops(root, *inside),
            exec_op("probe", "try", "open", "/dev/zero"),
            STARTED,
        ]

    assert run(plan()).output == "ok\n"
    place.rmdir()
    denied = run(plan(host("DEVICE_BPF", fd0=3, s0=deny, n0=2)))
    place.exists() and place.rmdir()
    assert denied.status is None or denied.output == "EPERM\n"
    assert denied.status is not None or denied.failure[1] == errno.EPERM  # mknod needs the rule as well


def test_joins_a_running_container(root: Path) -> None:
    first = run([CLONE, *rootfs_ops(root, child("HOSTNAME", s0="first")), exec_op("sleep", "60"), STARTED], wait=False)
    pid = first.reports[-1][3]
    pidfd = os.pidfd_open(pid)
    kinds = NAMESPACES & ~0x20000000
    ops = [
        host("OPEN", fd0=3, s0="/proc/self/ns/pid"),
        host("SETNS", fd0=0, n0=0x20000000, s0="pid"),
        host("CLONE", n0=0, s0="none"),
        host("SETNS", fd0=3, n0=0x20000000, s0="back"),
        child("SETNS", fd0=0, n0=kinds, s0="all"),
        child("CHDIR", s0="/data"),
        CLOSE,
        exec_op("probe", "facts"),
        STARTED,
    ]
    try:
        facts = run(ops, [pidfd]).facts
    finally:
        os.close(pidfd)
        reap(pid)
    assert (facts["hostname"], facts["cwd"], facts["fds"]) == ("first", "/data", "0 1 2")
    assert facts["pid"] == "2"


# ---- failure at every operation


def test_every_operation_can_fail_and_nothing_is_left(root: Path, tmp_path: Path, test_id: str) -> None:
    """A record that must fail is put before each record in turn; the report names it, and nothing stays."""
    place = cgroup_mount() / test_id
    code = seccomp.translate({"defaultAction": "SCMP_ACT_ALLOW"})
    inside = (
        child("FS_NEW", fd0=4, s0="tmpfs", s2="tmpfs"),
        child("ATTACH", "MAKE_DIR", fd0=4, fd1=1, s0="/dev"),
        child("NODE", fd1=1, s0="/dev/null", n0=stat.S_IFCHR | 0o666, n1=os.makedev(1, 3)),
        child("TREE", fd0=5, s0="/dev/null"),
        child("MASK", fd0=5, fd1=1, s0="/data/file", n0=4),
    )
    ops = [
        host("CGROUP_JOIN", s0=f"{place}/m"),
        host("CGROUP_DIR", fd0=3, s0=f"{place}/c/deep"),
        host("CLONE", n0=NAMESPACES | 0x02000000, fd0=3),
        child("SYNC", s0="one"),
        host("SYNC", s0="one"),
        host("PROC_WRITE", s0="oom_score_adj", s1="100"),
        *rootfs_ops(root, *inside),
        child("SYNC", s0="two"),
        host("SYNC", s0="two"),
        host("PIDFILE", s0=str(tmp_path / "pid")),
        child("UMASK", n0=0o22),
        child("UID", n0=0),
        child("CAPS", n0=0, n1=0, n2=0),
        child("NO_NEW_PRIVS"),
        child("SECCOMP", s0=code, n0=len(code) // 8),
        CLOSE,
        child("CHDIR", s0="/"),
        exec_op("true"),
        STARTED,
    ]
    host_fails, child_fails = host("OPEN", fd0=9, s0="/none/host", n0=0), child("OPEN", fd0=9, s0="/none/child", n0=0)
    for at in range(len(ops)):
        for bad in (host_fails, child_fails)[: 2 if at < len(ops) - 1 else 1]:
            outcome = run([*ops[:at], bad, *ops[at:]])
            assert outcome.failure == (at, errno.ENOENT, bad.s0), (at, bad)
            assert not place.exists(), (at, bad)
            assert not (tmp_path / "pid").exists()
            assert not strays()


# ---- plans that must not be believed


def _refused(data: bytes) -> str:
    outcome = run((), data=data)
    assert outcome.helper == 1
    assert outcome.reports[-1][0] == shim.FAILED
    return outcome.reports[-1][4]


def test_malformed_plans_are_refused(root: Path) -> None:
    def encoded(*ops: Op, slots: int = 4) -> bytes:
        return wire.encode(Plan(ops, (), slots))

    clone, execute = host("CLONE"), exec_op("true")
    good = encoded(clone, execute)
    assert _refused(b"") == "plan: wrong length"
    assert _refused(good[:-1]) == "plan: wrong length"
    assert _refused(good + b"\0") == "plan: wrong length"
    assert _refused(b"\1" + good[1:]) == "plan: wrong magic or version"
    assert _refused(encoded(clone)) == "plan: no clone or no exec"
    assert _refused(encoded(clone, clone, execute)) == "plan: two clones"
    assert _refused(encoded(clone, execute, execute)) == "plan: operation after exec"
    assert _refused(encoded(clone, host("CLOSE", fd0=4), execute)) == "plan: slot out of range"
    assert _refused(encoded(clone, child("MASK", fd0=0, fd1=0, n0=4), execute)) == "plan: list out of range"
    assert _refused(encoded(clone, child("EXEC", s0="x", s1=("x",), n0=99))) == "plan: list out of range"
    assert _refused(encoded(clone, child("SECCOMP", s0=b"12345678", n0=5000), execute)) == "plan: list out of range"
    assert (
        _refused(encoded(clone, child("SYNC", s0="a"), host("SYNC", s0="b"), execute)) == "plan: barriers do not match"
    )
    assert _refused(encoded(clone, child("SYNC", s0="a"), execute)) == "plan: a barrier of one side only"
    assert _refused(encoded(clone, child("REBORN"), execute)) == "plan: a second clone of one side only"
    assert (
        _refused(encoded(host("SYNC", s0="a"), clone, child("SYNC", s0="a"), execute))
        == "plan: barrier before the clone"
    )


def test_random_damage_never_crashes_the_helper() -> None:
    """Every answer is a report or an orderly end; never a signal. The plan has nothing in it that could do harm."""
    import random

    chance = random.Random(1)
    good = wire.encode(
        Plan(
            (
                host("CLONE", s0="x"),
                child("UMASK", n0=3),
                child("FS_NEW", s0="none", s1=("a=b",), n0=1, fd0=1),
                exec_op("/none"),
            ),
            (),
            4,
        )
    )
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 5))):
            data[chance.randrange(24 if chance.random() < 0.3 else len(data))] = chance.choice(
                (0, 1, 255, chance.randrange(256))
            )
        outcome = run((), data=bytes(data))
        assert outcome.helper in {0, 1}, bytes(data).hex()


def test_an_unsealed_plan_is_refused() -> None:
    fd = os.memfd_create("plan")
    helper = shim.helper_memfd()
    ours, theirs = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, fd, 3), (os.POSIX_SPAWN_DUP2, theirs, 4)]
    actions = [(os.POSIX_SPAWN_DUP2, os.dup2(fd, 700, False), 3), (os.POSIX_SPAWN_DUP2, os.dup2(theirs, 701, False), 4)]
    pid = os.posix_spawn(f"/proc/self/fd/{helper}", ["wherry-helper", "launch"], {}, file_actions=actions)
    for end in (fd, theirs, helper, 700, 701):
        os.close(end)
    with os.fdopen(ours, "rb") as reports:
        assert b"plan: not a sealed memfd" in reports.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_helper_is_small_and_sealed() -> None:
    fd = shim.helper_memfd()
    try:
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
        assert os.fstat(fd).st_size < 128 * 1024
    finally:
        os.close(fd)
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert signal.SIGKILL == 9
