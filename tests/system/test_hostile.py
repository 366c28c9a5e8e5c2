"""Hostile images, containers and clients against a whole wherry.

Each test ends with the audit of what is left (fixture `wherry`); `canary` is a tree of the host that nothing may touch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hostile import control, entry, image, spy, tar
from helpers.wherry import COMMAND, Wherry, until
from wherry.kernel import facts

NONE = ("--network", "none")
CAPS = "00000000a80425fb"  # docker's 14
DENIED = {
    "EPERM": """tiocsti tiocsti-high tioclinux af_alg af_alg-high af_vsock unshare-user unshare-mount mount umount
        open_tree fsopen pivot_root setns open_by_handle_at bpf perf keyctl add_key io_uring userfaultfd kexec
        init_module reboot swapon syslog settimeofday sethostname iopl acct quotactl""",
    "ENOSYS": "clone3 socketcall-alg socketcall-vsock",
    "EROFS": "core_pattern cgroup-procs",
    "ok": "tiocgwinsz af_inet af_unix",
}
MASKED = ("/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the spy, bound read-only at /v."""
    return spy(tmp_path_factory.mktemp("spy") / "v")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A tree of the host; afterwards it is as it was."""
    tree = tmp_path / "canary"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("canary\n")
    (tree / "link").symlink_to("file")
    before = _facts(tree)
    yield tree
    assert _facts(tree) == before


def _facts(tree: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in (tree, *sorted(tree.rglob("*"))):
        about = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found[str(path)] = (about.st_mode, about.st_uid, about.st_nlink, about.st_mtime_ns, data)
    return found


def run(wherry: Wherry, tools: Path, what: str, *words: str, options: tuple[object, ...] = ()) -> str:
    """`run --rm` with the spy at hand; output and errors."""
    done = wherry("run", "--rm", *NONE, "-v", f"{tools}:/v:ro", *options, what, *words, check=False)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


# ---- what a container sees and may


def test_a_spy_finds_nothing_to_use(wherry: Wherry, busybox: str, tools: Path) -> None:
    lines = run(wherry, tools, busybox, "/v/spy", "facts").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines[1:]:
        key, _, value = line.partition(": ")
        found.setdefault(key, []).append(value)
    assert sorted(key for key in found if key.startswith("fd.")) == ["fd.0", "fd.1", "fd.2"]
    assert found["fd.0"] == ["/dev/null"]  # its own: through a descriptor of the host's it could change that one
    for kind in ("mnt", "uts", "ipc", "pid", "cgroup", "net"):
        assert found[f"ns.{kind}"] != [os.readlink(f"/proc/self/ns/{kind}")]
    status = dict(line.split(":\t", 1) for line in found["status"] if ":\t" in line)
    assert {key: status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "CapInh": "0" * 16, "CapPrm": CAPS, "CapEff": CAPS, "CapBnd": CAPS, "CapAmb": "0" * 16,
    }  # fmt: skip
    assert (status["Seccomp"], status["Groups"].strip(), status["SigIgn"]) == ("2", "0", "0" * 16)
    points = {fields[4]: set(fields[5].split(",")) for line in found["mount"] if (fields := line.split())}
    assert {"nosuid", "nodev", "noexec"} <= points["/proc"] & points["/sys"]
    assert all({"nosuid", "nodev"} <= points[path] for path in ("/etc/hosts", "/etc/resolv.conf", "/v"))
    assert all("ro" in points[path] for path in points if path in MASKED or path == "/sys")
    assert "unix" not in found or len(found["unix"]) <= 1
    assert not set(found).intersection({"key"})


def test_forbidden_acts(wherry: Wherry, busybox: str, tools: Path, tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    script = "/v/spy acts; mknod /b/n c 1 3; cat /b/n 2>&1; kill -9 -1; echo alive"
    done = run(wherry, tools, busybox, "sh", "-c", script, options=("-v", f"{bound}:/b"))
    answers = dict(line.split(" ", 1) for line in done.splitlines()[1:] if line.count(" ") == 1)
    for answer, names in DENIED.items():
        assert {name: answers[name] for name in names.split()} == dict.fromkeys(names.split(), answer)
    if facts.measure().cgroup_mount:
        assert [answers[f"node-{name}"] for name in ("mem", "kmsg", "loop", "null")] == ["EPERM"] * 3 + ["ok"]
    assert "/b/n: Permission denied" in done or "can't open '/b/n'" in done
    assert "alive" in done


def test_masks_hold_on_every_way(wherry: Wherry, busybox: str, tools: Path) -> None:
    there = [path for path in MASKED if os.path.exists(path)]
    roots = ("", "/proc/self/root", "/proc/1/cwd", "/dev/fd/../../..")
    ways = [f"{root}{path}" for path in there for root in roots]
    script = "".join(f"(cat {way} || ls {way}) 2>/dev/null | wc -c; " for way in ways)
    script += "(echo x > /proc/sys/kernel/domainname) 2>/dev/null && echo written; umount /proc/keys 2>&- || echo no"
    lines = run(wherry, tools, busybox, "sh", "-c", script).splitlines()
    assert lines[1 : len(ways) + 2] == [*["0"] * len(ways), "no"]


# ---- images


LINKS = [("dev", "{canary}"), ("dev", "/proc"), ("proc", "/var"), ("proc", "{canary}"), ("sys", "/proc"), ("sys", "/")]


@pytest.mark.parametrize(("name", "target"), LINKS)
def test_the_kernel_s_directories_as_links(  # noqa: PLR0917  # fixtures
    wherry: Wherry, busybox: str, tools: Path, tmp_path: Path, canary: Path, name: str, target: str
) -> None:
    hostile = image(busybox, tmp_path, [entry(name, "link", target.format(canary=canary))])
    done = run(wherry, tools, hostile, "true")
    assert "Not a directory" in done or "symbolic links" in done, done
    assert not done.startswith("0")


def test_the_control_falls(tmp_path: Path) -> None:
    """runc of Debian 12 makes the links of /dev where the image's /dev points to on the host."""
    victim = tmp_path / "victim"
    victim.mkdir()

    def plant(root: Path, _config: object) -> None:
        (root / "dev").rmdir()
        (root / "dev").symlink_to(victim)

    control(tmp_path, ["/bin/true"], plant)
    print("CONTROL: made on the host:", sorted(path.name for path in victim.iterdir()) or "nothing")


def test_hosts_and_its_like_as_links(wherry: Wherry, busybox: str, tools: Path, tmp_path: Path, canary: Path) -> None:
    links = [entry("etc/hosts", "link", f"{canary}/file"), entry("etc/hostname", "link", "../" * 30 + f"{canary}/new"),
             entry("etc/resolv.conf", "link", "../run/systemd/resolve/stub-resolv.conf")]  # fmt: skip
    script = "cat /etc/hosts; echo evil > /etc/hosts; ls -l /etc/hostname; cat /etc/resolv.conf"
    done = run(wherry, tools, image(busybox, tmp_path, links), "sh", "-c", script)
    assert "localhost" in done
    assert "nameserver" in done  # its target and the directories to it were made: Ubuntu's is such a link
    for link in ("/proc/1/root/etc/hosts", "/proc/self/fd/3", "/etc/hosts"):
        done = run(wherry, tools, image(busybox, tmp_path, [entry("etc/hosts", "link", link)]), "true")
        assert "symbolic links" in done, done


def test_working_directories_that_are_descriptors(
    wherry: Wherry, busybox: str, tools: Path, tmp_path: Path, canary: Path
) -> None:
    look = f"cd ../../../../../..; ls -d ./{canary} . ; pwd -P"
    for number in range(3, 15):
        hostile = image(busybox, tmp_path, WorkingDir=f"/proc/self/fd/{number}") if number in (3, 7) else busybox
        options = ("-w", f"/proc/self/fd/{number}") if hostile == busybox else ()
        done = run(wherry, tools, hostile, "sh", "-c", look, options=options)
        assert f".{canary}\n" not in done, done
    link = image(busybox, tmp_path, [entry("w", "link", "/proc/self/fd/7")], WorkingDir="/w/../../..")
    assert f".{canary}\n" not in run(wherry, tools, link, "sh", "-c", look)
    control(tmp_path, ["/bin/sh", "-c", look], lambda _root, config: config["process"].update(cwd="/proc/self/fd/7"))


def test_a_hostile_config_steers_nothing(wherry: Wherry, busybox: str, tmp_path: Path, canary: Path) -> None:
    evil = {
        "Env": ["LD_PRELOAD=/evil.so", f"PYTHONPATH={canary}", f"WHERRY_ROOT={canary}", "LISTEN_FDS=3", "PATH=/bin"],
        "Labels": {"log-driver": "journald", "restart": "always", "privileged": "true",
                   "org.systemd.property.ExecStartPre": "'/bin/false'", "run.oci.hooks": str(canary),
                   "io.containerd.image": "x\n\x1b]0;evil\x07"},
        "ExposedPorts": {"1/tcp": {}}, "Volumes": {"/data": {}}, "StopSignal": "9; true", "OnBuild": ["RUN x"],
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1, "Timeout": 1, "Retries": -5},
        "Memory": 1, "CpuShares": 1, "MacAddress": "x", "NetworkDisabled": True,
    }  # fmt: skip
    name = wherry.name()
    refused = wherry("run", "-d", *NONE, image(busybox, tmp_path, **evil), "sleep", "100", check=False)
    assert refused.returncode
    assert "signal" in refused.stderr.lower()
    evil["StopSignal"] = "SIGTERM"
    wherry("run", "-d", "--name", name, *NONE, image(busybox, tmp_path, **evil), "sleep", "100")
    found = wherry.inspect(name)
    host = found["HostConfig"]
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert not host["Privileged"]
    assert not found["NetworkSettings"]["Ports"] or not any(found["NetworkSettings"]["Ports"].values())
    assert [mount["Type"] for mount in found["Mounts"]] == ["volume"]
    assert str(wherry.root) in found["Mounts"][0]["Source"]
    monitor = json.loads((wherry.state / "c" / found["Id"] / "state.json").read_text())["monitor"]["pid"]
    environment = Path(f"/proc/{monitor}/environ").read_bytes()
    assert b"evil" not in environment
    assert str(canary).encode() not in environment
    time.sleep(1.5)
    assert len(wherry.inspect(name)["State"]["Health"]["Log"]) <= 2


def test_passwd_that_is_no_file(wherry: Wherry, busybox: str, tools: Path, tmp_path: Path) -> None:
    cases = {
        "not a regular file": entry("etc/passwd", "char", (10, 130)),
        "larger": entry("etc/passwd", "file", b"#" * (5 << 20)),
        "symbolic links": entry("etc/passwd", "link", "/etc/passwd"),
    }
    for why, hostile in cases.items():
        done = run(wherry, tools, image(busybox, tmp_path, [hostile]), "id", options=("-u", "www-data"))
        assert why in done, done
        assert not done.startswith("0")
    users = [entry("etc/passwd", "file", b"x:x:4294967295:0::/:/\n+1:x:0:0::/:/\n" + b"a:" * (1 << 20))]
    hostile = image(busybox, tmp_path, users, User="4294967295")
    assert "out of range" in run(wherry, tools, hostile, "id")
    for user in ("x", "-1", "+4294967296", "0:4294967295", "1:99999999999999999999"):
        assert not run(wherry, tools, hostile, "id", options=("-u", user)).startswith("0")


# ---- races


def test_a_volume_s_names_change_while_others_mount_below(
    wherry: Wherry, busybox: str, tools: Path, tmp_path: Path, canary: Path
) -> None:
    """SWAP (CVE-2021-30465): a directory and a link to the host change places without an end."""
    volume = tmp_path / "volume"
    (volume / "a").mkdir(parents=True)
    os.symlink(canary, volume / "b")
    name = wherry.name()
    wherry("run", "-d", "--name", name, *NONE, "-v", f"{tools}:/v:ro", "-v", f"{volume}:/x", busybox,
           "/v/spy", "swap", "/x/a", "/x/b")  # fmt: skip
    try:
        for turn in range(10):
            options = ("-v", f"{volume}:/x", "-v", f"{tools}:/x/a/made/deep:ro", "--tmpfs", f"/x/a/t{turn}")
            run(wherry, tools, busybox, "true", options=options)
    finally:
        wherry("rm", "-f", name)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]
    assert not [line for line in mounts if f"{wherry.root}/layers/" not in line]  # those of layers stay with them
    inside = {path.name for path in volume.rglob("*")}
    assert inside >= {"a", "b"}


def test_the_program_cannot_be_written_from_inside(wherry: Wherry, busybox: str, tools: Path) -> None:
    """CVE-2019-5736: whoever enters the container is caught by its /proc/PID/exe."""
    helper = Path(sys.modules["wherry"].__path__[0]) / "_native/wherry-helper"
    before = hashlib.sha256(helper.read_bytes()).digest()
    name = wherry.name()
    loop = "while :; do for p in /proc/[0-9]*; do /v/spy write $p/exe; done; done 2>/dev/null | grep ok"
    wherry("run", "-d", "--init", "--name", name, *NONE, "-v", f"{tools}:/v:ro", busybox, "sh", "-c", loop)
    for _ in range(4):
        wherry("exec", name, "true", check=False)
    assert wherry.out("logs", name) in ("", "write ok")  # a busybox of its own layer may be written
    for words in (("/proc/self/exe", "launch"), ("/proc/self/exe", "monitor"), ("/proc/1/exe",)):
        wherry("exec", name, *words, check=False)
    wherry("rm", "-f", name)
    assert hashlib.sha256(helper.read_bytes()).digest() == before


def test_exec_into_a_container_that_changed_everything(wherry: Wherry, busybox: str, canary: Path) -> None:
    name, null = wherry.name(), os.stat("/dev/null")
    change = f"""cd /dev; rm -f null console; ln -s /proc/self/exe null; ln -s {canary}/file console
        rm -f /etc/passwd /etc/group /bin/true; mknod /etc/passwd c 10 130; mkfifo /etc/group
        ln -s /proc/1/root{canary}/file /bin/true; rm -rf /root; ln -s {canary} /root
        mkdir -p /w; chmod 600 /proc/self/fd/0 /proc/1/fd/0; touch /changed; sleep 100"""
    wherry("run", "-d", "--name", name, *NONE, busybox, "sh", "-c", change)
    until(lambda: list(wherry.root.glob("snapshots/*/upper/changed")))
    tries = [((), ("true",)), (("-u", "0"), ("ls", "/root")), (("-i",), ("sh", "-c", "id")),
             (("-w", "/root/sub"), ("ls",)), (("-w", "/proc/self/fd/5"), ("ls",))]  # fmt: skip
    answers = [wherry("exec", *options, name, *words, check=False, timeout=20) for options, words in tries]
    assert all(answer.returncode for answer in answers)
    assert "not a regular file" in answers[2].stderr
    assert (os.stat("/dev/null").st_mode, os.stat("/dev/null").st_uid) == (null.st_mode, null.st_uid)
    wherry("rm", "-f", name)


# ---- cp


def test_cp_stays_in_its_places(wherry: Wherry, busybox: str, tmp_path: Path, canary: Path) -> None:
    name = wherry.name()
    make = f"""mkdir -p /out/a; cd /out; ln -s {canary} a/link; ln -s /proc/self/root/ magic; mkfifo pipe; echo x > x
        ln x hard; cp /bin/busybox setid; chmod 6755 setid; mknod dev c 1 3
        mkdir /deep; cd /deep; i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done
        touch /ready; sleep 100"""
    wherry("run", "-d", "--name", name, *NONE, "-v", f"{tmp_path}:/seen:ro", busybox, "sh", "-c", make)
    until(lambda: list(wherry.root.glob("snapshots/*/upper/ready")))
    target = tmp_path / "target"
    (target / "out").mkdir(parents=True)
    (target / "out/a").symlink_to(canary)  # what lies there already is not followed either
    wherry("cp", f"{name}:/out", target, check=False)
    (target / "out/a").unlink()
    wherry("cp", f"{name}:/out", target)
    assert not (target / "out/setid").stat().st_mode & 0o6000
    assert not (target / "out/dev").exists()
    wherry("cp", canary / "file", f"{name}:/out/a/link/file", check=False)
    wherry("cp", canary / "file", f"{name}:/out/magic/{canary}/new", check=False)
    wherry("cp", canary / "file", f"{name}:/seen/new", check=False)
    deep = wherry("cp", f"{name}:/deep", target, check=False)
    assert "nested deeper" in deep.stderr, deep.stderr
    shutil.rmtree(target)
    for path in ("/proc/sys/kernel", "/proc/self/root", "/sys/kernel", "/proc/1/cwd"):
        assert wherry("cp", canary / "file", f"{name}:{path}", check=False).returncode, path
    _hostile_archives(wherry, name, canary)
    wherry("rm", "-f", name)


def _hostile_archives(wherry: Wherry, name: str, canary: Path) -> None:
    link = entry("l", "link", str(canary))
    strange = tarfile.TarInfo("t")
    strange.pax_headers = {"mtime": "nan", "path": "a\0b"}
    big = tarfile.TarInfo("b")
    big.uid = 1 << 50
    archives = {
        "dots": [entry("../../../../../../escape", "file", b"x")], "absolute": [entry(f"{canary}/new", "file", b"x")],
        "through": [link, entry("l/new", "file", b"x")], "over": [link, entry("l", "file", b"x")],
        "hard": [entry("h", "hard", f"../../../{canary}/file")], "out": [link, entry("h", "hard", "l/file")],
        "device": [entry("d", "char", (1, 1))], "strange": [(strange, b"")], "big": [(big, b"")],
    }  # fmt: skip
    for what, entries in archives.items():
        data = tar(entries)
        command = [*COMMAND, "cp", "-a", "-", f"{name}:/out/a"]
        done = subprocess.run(command, input=data, env=wherry.env, capture_output=True, timeout=30, check=False)
        assert b"Traceback" not in done.stderr, (what, done.stderr)
        assert done.returncode or what in ("over", "big"), what
    for data in (b"", b"\0" * 511, os.urandom(4096), tar([entry("x", "file", b"y" * 9999)])[:3000]):
        done = subprocess.run([*COMMAND, "cp", "-", f"{name}:/out"], input=data, env=wherry.env,
                              capture_output=True, timeout=30, check=False)  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr


# ---- our own files and sockets


def test_modes_sockets_and_a_planted_log(wherry: Wherry, busybox: str, canary: Path) -> None:
    name = wherry.name()
    wherry("run", "-d", "--name", name, *NONE, busybox, "sh", "-c", "echo out; sleep 100")
    cid = wherry.inspect(name)["Id"]
    private = [wherry.root, wherry.state / "c", wherry.state / "c" / cid, wherry.root / "containers" / cid]
    private += [wherry.root / part for part in ("layers", "snapshots", "containers", "ingest")]
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in private}
    assert stat.S_IMODE(wherry.state.lstat().st_mode) == 0o711
    assert not {path: oct(mode) for path, mode in modes.items() if mode & 0o077}
    for path in [*(wherry.state / "c" / cid).iterdir(), *(wherry.root / "containers" / cid).iterdir()]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o002, path
    abstract = [line for line in Path("/proc/net/unix").read_text().splitlines() if "@" in line and cid[:12] in line]
    assert not abstract
    log = Path(wherry.inspect(name)["LogPath"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    wherry("kill", name)
    wherry("wait", name)
    plants = (lambda: log.symlink_to(canary / "file"), lambda: os.link(canary / "file", log), lambda: os.mkfifo(log))
    for plant in plants:
        log.unlink()
        plant()
        assert wherry("start", name, check=False).returncode
    log.unlink()


def test_garbage_on_the_attach_socket(wherry: Wherry, busybox: str) -> None:
    name = wherry.name()
    wherry("run", "-d", "-i", "--name", name, *NONE, busybox, "sh", "-c", "sleep 4; exit 7")
    path = str(wherry.state / "c" / wherry.inspect(name)["Id"] / "attach")
    head = struct.Struct(">B3xI").pack
    garbage = [
        b"", b"\0", os.urandom(7), os.urandom(1 << 16), head(200, 0), head(6, 3) + b"abc", head(6, 1 << 31) + b"x",
        head(0, 0xFFFFFFFF) + bytes(1 << 20), head(5, 0) * 5000, head(6, 4) + b"\xff" * 4, head(7, 5), head(9, 0) * 9,
        head(8, 1), b"".join(head(kind, 0) for kind in range(256)), head(0, 5) + b"a", head(3, 5) + bytes(5),
    ]  # fmt: skip
    open_ones = []
    for data in garbage:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            client.send(data)
        open_ones.append(client)
    for client in open_ones[::2]:
        client.close()
    flood = _flood(path)
    for _ in range(60):  # more than there are places
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(path)
        open_ones.append(client)
    begun = time.monotonic()
    until(lambda: wherry.inspect(name)["State"]["Status"] == "exited", 20)
    assert time.monotonic() - begun < 15
    assert wherry.inspect(name)["State"]["ExitCode"] == 7
    flood.kill()
    flood.wait()
    for client in open_ones:
        client.close()
    wherry("rm", "-f", name)


def _flood(path: str) -> subprocess.Popen[bytes]:
    """A client that sends input without an end and reads nothing."""
    program = """import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"\\0\\0\\0\\0\\xff\\xff\\xff\\xff")
while True: s.sendall(bytes(1 << 20))"""
    return subprocess.Popen([sys.executable, "-c", program, path], stderr=subprocess.DEVNULL)
