"""The attack corpus: what has felled OCI runtimes, against `wherry-oci`; beside it the distribution's runc and crun.

A control that falls proves the attack, one that holds has been mended. Its result is printed (pytest -s), not asserted.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers.hostile import spy
from helpers.ocibundle import Box, boxed
from helpers.tools import need
from helpers.wherry import until
from wherry.model import Json

pytestmark = [pytest.mark.root, pytest.mark.seconds(60)]
HIDE_V2 = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'
BARE = ["mount", "network", "uts", "pid", "ipc"]


@pytest.fixture
def box(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Box]:
    with boxed(test_id, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spy(tmp_path_factory.mktemp("spy") / "v")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host with a secret; afterwards it is as it was."""
    tree = tmp_path / "victim"
    tree.mkdir()
    (tree / "secret").write_text("secret of the host\n")
    yield tree
    assert [path.name for path in tree.iterdir()] == ["secret"]
    assert (tree / "secret").read_text() == "secret of the host\n"


class Answer(NamedTuple):
    """What a runtime made of an attack."""

    code: int
    text: str


def ours(box: Box, *words: object) -> Answer:
    """`run` of the bundle as it is."""
    box.write()
    done = box("run", "--bundle", box.bundle, *words, "c", check=False)
    return Answer(done.code, done.out + done.err)


class Control:
    """runc or crun with a bundle of the same root and config; whatever it does to the host is done to a copy."""

    def __init__(self, box: Box, name: str) -> None:
        self.box, self.name, self.place = box, name, box.place / f"control-{name}"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.program = self.place / name  # a copy: an attack on the runtime itself must not reach the host's
        shutil.copy(str(shutil.which(name)), self.program)
        subprocess.run(["cp", "-a", box.rootfs, self.place / "rootfs"], check=True)
        config = copy.deepcopy(box.config)
        config["ociVersion"] = "1.0.2"
        config["linux"] |= {"namespaces": [entry for entry in config["linux"]["namespaces"] if entry["type"] in BARE]}
        config["linux"].pop("resources", None)
        self.config: Json = config

    def __call__(self, *words: str, timeout: float = 15) -> Answer:
        (self.place / "config.json").write_text(json.dumps(self.config))
        own = {"runc": [], "crun": ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDE_V2, "sh"]}
        extra = {"runc": [], "crun": ["--cgroup-manager=disabled"]}[self.name]
        command = [*own[self.name], str(self.program), "--root", str(self.place / "state"), *extra, *words]
        said = self.place / "said.txt"
        with said.open("wb") as file:
            try:
                code = subprocess.run(command, cwd=self.place, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                      timeout=timeout, check=False).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = -1
        return Answer(code, said.read_text(errors="replace"))

    def run(self) -> Answer:
        name = f"{self.box.id}-control"
        try:
            return self("run", name)
        finally:
            self("delete", "--force", name)


def controls(box: Box, what: str, fell: Callable[[Answer], bool], clean: Callable[[], None] = lambda: None) -> None:
    """Print what the distribution's runtimes make of the same bundle. `fell` judges, `clean` mends the victim."""
    said = []
    for name in ("runc", "crun"):
        if not shutil.which(name):
            said.append(f"{name} is not installed")
            continue
        answer = Control(box, name).run()
        said.append(f"{name} {'FELL' if fell(answer) else 'held'} (exit {answer.code})")
        clean()
    print(f"\nCONTROL {what}: {'; '.join(said)}")


# ---- the image's own files (invariants 1 and 4)


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_an_image_whose_directory_is_a_link_to_the_host(box: Box, victim: Path, name: str) -> None:
    (box.rootfs / name).rmdir()
    (box.rootfs / name).symlink_to(victim)
    answer = ours(box)
    assert answer.code
    assert os.listdir(victim) == ["secret"]

    def clean() -> None:
        for path in victim.iterdir():
            if path.name != "secret":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    controls(box, f"/{name} is a link to the host", lambda _: len(os.listdir(victim)) > 1, clean)


@pytest.mark.parametrize("target", ["/etc", "/proc/self", "."])
def test_the_kernel_s_files_never_land_elsewhere(box: Box, target: str) -> None:
    """CVE-2023-27561, CVE-2019-19921: /proc through a link lies where the image wants it."""
    (box.rootfs / "proc").rmdir()
    (box.rootfs / "proc").symlink_to(target)
    assert ours(box).code
    controls(box, f"/proc is a link to {target}", lambda answer: answer.code == 0)


def test_a_destination_below_a_link_stays_beneath_the_root(box: Box, victim: Path) -> None:
    (box.rootfs / "to").symlink_to("../" * 30 + str(victim))
    (box.rootfs / "magic").symlink_to("/proc/1/root")
    box.config["mounts"] += [{"destination": "/to/made/deep", "type": "tmpfs", "source": "t"}]
    ours(box)
    assert os.listdir(victim) == ["secret"]
    box.config["mounts"][-1]["destination"] = f"/magic{victim}/made"
    ours(box)
    assert os.listdir(victim) == ["secret"]
    controls(box, "a mount below a link", lambda _: len(os.listdir(victim)) > 1)


def without_dev(box: Box) -> None:
    """/dev is the image's own directory: what lies in it is the image's, too."""
    box.config["mounts"] = [mount for mount in box.config["mounts"] if not mount["destination"].startswith("/dev")]


#: the attacks in the wild take core_pattern; this one belongs to the container's own UTS namespace, should one succeed
PATTERN = "/proc/sys/kernel/domainname"
LOOK = "grep ' /etc/passwd ' /proc/self/mountinfo; echo end"


def redirected(answer: Answer) -> bool:
    """The mask is the kernel's file, or what the process said went into that instead of out."""
    return answer.code == 0 and ("domainname" in answer.text or "end" not in answer.text)


def test_a_false_null_masks_nothing(box: Box) -> None:
    """CVE-2025-31133: what lies at /dev/null is bound over each masked path.

    And each standard stream whose device number is that file's is opened anew by it: then regular files, too.
    """
    without_dev(box)
    (box.rootfs / "dev/null").symlink_to(PATTERN)
    box.linux["maskedPaths"] = ["/etc/passwd"]
    box.process["args"] = ["sh", "-c", LOOK]
    answer = ours(box)
    assert answer.code or not redirected(answer)
    controls(box, "/dev/null is a link into /proc/sys", redirected)


def test_a_null_that_the_container_replaced(box: Box) -> None:
    """exec opens the container's own null for a stream that is the host's; another file there is refused, not used."""
    box.started("rm /dev/null; echo evil > /dev/null; sleep 1000")
    until(lambda: box.exec("grep", "-c", "evil", "/dev/null", stdin=subprocess.PIPE).out == "1\n")
    before = os.stat("/dev/null")
    for change in ("true", f"ln -sf {PATTERN} /dev/null", "rm /dev/null; mkfifo /dev/null", "rm /dev/null"):
        box.exec("sh", "-c", change, stdin=subprocess.PIPE)
        done = box.exec("cat")
        assert (done.code, done.out) == (255, ""), change
        assert "/dev/null" in done.err
    box.exec("mknod", "/dev/null", "c", "1", "3", stdin=subprocess.PIPE)
    assert box.exec("cat").code == 0
    assert os.stat("/dev/null").st_mode == before.st_mode


@pytest.mark.parametrize("name", ["tty", "zero", "urandom"])
def test_false_devices_of_the_image(box: Box, name: str) -> None:
    """What the image put there does not pass for the device."""
    without_dev(box)
    (box.rootfs / "dev" / name).symlink_to("/etc/passwd")
    box.process["args"] = ["ls", "-l", f"/dev/{name}"]
    answer = ours(box)
    assert answer.code or "->" not in answer.text, answer
    controls(box, f"/dev/{name} is a link", lambda answer: answer.code == 0 and "->" in answer.text)


def test_a_terminal_is_not_bound_over_the_kernel_s_files(box: Box) -> None:
    """CVE-2025-52565: the terminal is bound where /dev/console leads."""
    without_dev(box)
    box.config["mounts"] += [{"destination": "/dev/pts", "type": "devpts", "source": "devpts"}]
    (box.rootfs / "dev/console").symlink_to(PATTERN)
    look = f"grep -q {PATTERN} /proc/self/mountinfo && echo BOUND; echo end"
    box.process.update(terminal=True, args=["sh", "-c", look])
    box.write()
    code, text = on_a_terminal(box.argv("run", "--bundle", box.bundle, "c"), box.env)
    assert "BOUND" not in text, text
    assert code or "end" in text, text
    need("runc")
    control = Control(box, "runc")
    (control.place / "config.json").write_text(json.dumps(control.config))
    words = [str(control.program), "--root", str(control.place / "state"), "run", "-b", str(control.place), box.id]
    code, text = on_a_terminal(words, box.env)
    fell = "FELL" if "BOUND" in text else "held"
    print(f"\nCONTROL /dev/console is a link into /proc/sys: runc {fell} (exit {code})")


def on_a_terminal(words: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit code and what the terminal shows."""
    master, slave = os.openpty()
    with subprocess.Popen(words, env=env, stdin=slave, stdout=slave, stderr=slave) as running:
        os.close(slave)
        text = ""
        with contextlib.suppress(OSError):  # EIO: the last one who had it open has gone
            while data := os.read(master, 4096):
                text += data.decode()
        code = running.wait(20)
    os.close(master)
    return code, text


def test_sysctls_are_written_through_a_procfs_of_our_own(box: Box, tmp_path: Path) -> None:
    """CVE-2025-52881, CVE-2019-16884: a volume over /proc/sys must not take what is meant for the kernel."""
    volume = tmp_path / "volume"
    (volume / "net/ipv4").mkdir(parents=True)
    (volume / "net/ipv4/ip_forward").write_text("false\n")
    bind = {"destination": "/proc/sys", "type": "bind", "source": str(volume), "options": ["rbind"]}
    box.config["mounts"].append(bind)
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    answer = ours(box)
    assert (volume / "net/ipv4/ip_forward").read_text() == "false\n"
    controls(box, "a volume over /proc/sys takes the sysctls",
             lambda _: (volume / "net/ipv4/ip_forward").read_text() != "false\n")  # fmt: skip
    assert answer.code in (0, 1)


# ---- races: names that change while they are used (invariant 1)


@pytest.fixture
def swapper(box: Box, tools: Path) -> Iterator[Callable[[Path, Path], None]]:
    """renameat2(RENAME_EXCHANGE) of two names without an end: what a container can do in a volume that it shares."""
    running: list[subprocess.Popen[bytes]] = []

    def swap(one: Path, two: Path) -> None:
        running.append(subprocess.Popen([tools / "spy", "swap", one, two]))

    yield swap
    for each in running:
        each.kill()
        each.wait()


def test_mounts_in_a_volume_whose_names_change(box: Box, victim: Path, tmp_path: Path, swapper: Any) -> None:
    """CVE-2021-30465: mount points and masks below a directory that is now a link to the host, now none."""
    volume = tmp_path / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to("../" * 30 + str(victim))
    box.config["mounts"] += [
        {"destination": "/x", "type": "bind", "source": str(volume), "options": ["rbind"]},
        {"destination": "/x/a/made/deep", "type": "tmpfs", "source": "tmpfs"},
    ]
    box.linux.update({"maskedPaths": ["/x/a/secret", "/x/b/secret"], "readonlyPaths": ["/x/a"]})
    swapper(volume / "a", volume / "b")
    for _ in range(25):
        ours(box)
    assert os.listdir(victim) == ["secret"]
    assert str(victim) not in Path("/proc/self/mountinfo").read_text()
    controls(box, "a volume's names change", lambda _: len(os.listdir(victim)) > 1)


def test_masks_of_a_path_that_changes(box: Box, tmp_path: Path, swapper: Any) -> None:
    """CVE-2025-31133, the race: now /dev/null of a shared volume is the device, now a link into /proc/sys."""
    volume = tmp_path / "dev"
    volume.mkdir()
    os.mknod(volume / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (volume / "other").symlink_to(PATTERN)
    without_dev(box)
    box.config["mounts"].append({"destination": "/dev", "type": "bind", "source": str(volume), "options": ["rbind"]})
    box.linux["maskedPaths"] = ["/etc/passwd"]
    box.process["args"] = ["sh", "-c", LOOK]
    swapper(volume / "null", volume / "other")
    for _ in range(15):
        answer = ours(box)
        assert answer.code or not redirected(answer), answer
    controls(box, "/dev/null of a volume changes", redirected)


# ---- descriptors and the runtime's own program (invariant 7)


def test_a_working_directory_that_is_a_descriptor(box: Box, victim: Path) -> None:
    """CVE-2024-21626: /proc/self/fd/N leads out of the root."""
    (box.rootfs / "cwd").symlink_to("/proc/self/fd/7")
    box.process["args"] = ["sh", "-c", f"cat ../../../../../../../..{victim}/secret .{victim}/secret; pwd -P"]
    for cwd in ("/cwd", "/proc/1/cwd", "/proc/self/cwd", *(f"/proc/self/fd/{number}" for number in range(3, 13))):
        box.process["cwd"] = cwd
        assert "secret of the host" not in ours(box).text, cwd
    for number in (7, 8):
        box.process["cwd"] = f"/proc/self/fd/{number}"
        controls(box, f"cwd {box.process['cwd']}", lambda answer: "secret of the host" in answer.text)
    box.process["cwd"] = "/"
    box.started()
    for number in range(3, 13):
        look = f"cat ../../../../../../../..{victim}/secret .{victim}/secret"
        done = box.exec("sh", "-c", look, options=("--cwd", f"/proc/self/fd/{number}"))
        assert "secret of the host" not in done.out, number


def test_only_three_descriptors_come_along(box: Box, tools: Path) -> None:
    shutil.copy(tools / "spy", box.rootfs / "bin/spy")
    box.process["args"] = ["/bin/spy", "facts"]
    extra = os.open(box.place, os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        box.write()
        text = box("run", "--bundle", box.bundle, "c", fds=(extra,)).out
        box.started()
        text += box.exec("/bin/spy", "facts", fds=(extra,)).out
    finally:
        os.close(extra)
    keys = [line.partition(":")[0] for line in text.splitlines() if line.startswith("fd.")]
    assert sorted(set(keys)) == ["fd.0", "fd.1", "fd.2"]
    box.process["args"] = ["/bin/spy", "facts"]
    controls(box, "descriptors that come along", lambda answer: "fd.3" in answer.text)


def test_the_runtime_s_program_cannot_be_written(box: Box, tools: Path) -> None:
    """CVE-2019-5736: who enters is caught by /proc/PID/exe; `#!/proc/self/exe` runs the runtime itself in there."""
    shutil.copy(tools / "spy", box.rootfs / "bin/spy")
    (box.rootfs / "evil").write_text("#!/proc/self/exe\n")
    (box.rootfs / "evil").chmod(0o755)
    import wherry  # where it lies

    helper = Path(wherry.__path__[0]) / "_native/wherry-helper"
    before = helper.read_bytes()
    loop = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || spy write $p/exe; done; done 2>/dev/null"
    box.started(loop)
    for words in (("/evil",), ("/proc/self/exe", "launch"), ("/proc/1/exe",), ("true",), ("/proc/self/exe",)):
        box.exec(*words, timeout=10)
    assert helper.read_bytes() == before
    box("delete", "--force", "c")
    box.process["args"] = ["/evil"]
    ours(box)
    assert helper.read_bytes() == before
    need("runc")
    control = Control(box, "runc")
    was = control.program.read_bytes()
    control.config["process"]["args"] = ["sh", "-c", loop]
    name = f"{box.id}-control"
    control("run", "--detach", name)
    for _ in range(3):
        control("exec", name, "/evil", timeout=5)
        control("exec", name, "true", timeout=5)
    control("delete", "--force", name)
    print(f"\nCONTROL the runtime's own program: runc {'FELL' if control.program.read_bytes() != was else 'held'}")


def test_init_cannot_be_looked_into_before_its_exec(box: Box) -> None:
    """CVE-2016-9962: not dumpable, so another process of its uid gets no hold of its descriptors and memory."""
    box.process["user"] = {"uid": 1234, "gid": 1234}
    box.create(script="sleep 1000")
    pid = box.pid()
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # proc(5): of one that is dumpable, its user's
    peer = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
    for name in ("exe", "cwd", "root", "fd/0"):
        assert subprocess.run([*peer, "readlink", f"/proc/{pid}/{name}"], check=False, capture_output=True).returncode
    box("start", "c")
    until(lambda: subprocess.run([*peer, "readlink", f"/proc/{pid}/exe"], check=False, capture_output=True).stdout)


# ---- who the process is (invariant 5)

USERS = ["1000000000000", "4294967295", "4294967296", "-1", "root", "0x10", "1:-1", "1:x", "1:4294967296", " 5", "5 ",
         "+5", "٣", "1:", "1:2:3", "1e3", "0:99999999999999999999"]  # fmt: skip


@pytest.mark.parametrize("user", USERS)
def test_a_user_that_is_no_number(box: Box, user: str) -> None:
    """CVE-2024-40635 and its kin: what does not fit wraps around to root, or names somebody of the image."""
    (box.rootfs / "etc/passwd").write_text("".join(f"{name}:x:0:0::/:/\n" for name in USERS if ":" not in name))
    box.started()
    done = box.exec("id", "-u", options=("--user", user))
    assert (done.code, done.out) == (255, "")
    assert "user" in done.err


def test_the_highest_ids(box: Box) -> None:
    """2^32-1 is "leave it as it is" to setresuid(2); the one below is the last real one."""
    box.process["args"] = ["sh", "-c", "id -u; id -g; id -G"]
    box.process["user"] = {"uid": 4294967294, "gid": 4294967294}
    assert ours(box) == (0, "4294967294\n4294967294\n4294967294\n")
    for key in ("uid", "gid"):
        box.process["user"] = {"uid": 1, "gid": 1, key: 4294967295}
        assert f"process.user.{key}" in ours(box).text
        controls(box, f"{key} 4294967295", lambda answer: answer.code == 0)


def test_groups_of_the_caller_do_not_come_along(box: Box) -> None:
    box.process["args"] = ["id", "-G"]
    box.write()
    words = box.argv("run", "--bundle", box.bundle, "c")
    caller = ("setpriv", "--groups=7,8,9")
    done = subprocess.run([*caller, *words], env=box.env, capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done
    box.process["user"] = {"uid": 5, "gid": 6, "additionalGids": [70, 80]}
    assert ours(box).text == "6 70 80\n"


def test_no_capability_is_inherited_or_ambient(box: Box) -> None:
    """CVE-2022-29162, -24769: what is not asked for is empty, also for exec --cap and for a caller that has some."""
    box.process["args"] = ["grep", "-E", "^Cap(Inh|Amb)", "/proc/self/status"]
    box.write()
    caller = ("setpriv", "--inh-caps=+net_raw,+sys_chroot", "--ambient-caps=+net_raw")
    words = box.argv("run", "--bundle", box.bundle, "c")
    done = subprocess.run([*caller, *words], env=box.env, capture_output=True, text=True, check=False)
    empty = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"
    assert done.stdout == empty, done
    box.started()
    assert box.exec("grep", "-E", "^Cap(Inh|Amb)", "/proc/self/status", options=("--cap", "CAP_NET_RAW")).out == empty


# ---- devices (invariant 9)


def test_devices_are_denied_unless_given(box: Box) -> None:
    from wherry.kernel import facts

    if not facts.measure().cgroup_mount:
        pytest.skip("no cgroup v2 hierarchy")
    box.linux["resources"] = {"devices": [{"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}]}
    nodes = {"mem": "c 1 1", "hwrng": "c 10 183", "loop": "b 7 0", "zero": "c 1 5", "fuse": "c 10 229"}
    make = "; ".join(f"mknod /{name} {numbers}" for name, numbers in nodes.items())
    look = "look() { head -c1 /$1 >/tmp/said 2>&1 && echo $1 yes || echo $1 $(cat /tmp/said); }; "
    box.process["args"] = ["sh", "-c", f"{make}; {look}" + "; ".join(f"look {name}" for name in nodes)]
    answers = dict(line.split(" ", 1) for line in ours(box).text.splitlines())
    assert answers["zero"] == "yes"
    assert all("not permitted" in answers[name] for name in ("mem", "loop", "hwrng")), answers
    assert "not permitted" not in answers["fuse"]  # the device itself need not be there
    box.linux.pop("resources")
    box.process["args"] = ["head", "-c1", "/fuse"]
    assert "not permitted" in ours(box).text
    box.started()
    assert "not permitted" in box.exec("head", "-c1", "/mem").err


def test_a_signal_reaches_nobody_else(box: Box) -> None:
    """kill goes by pidfd: with the host's pid namespace a container cannot offer another pid."""
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "pid"]
    box.config["mounts"] = [mount for mount in box.config["mounts"] if mount["destination"] != "/proc"]
    box.started("sleep 1000 & sleep 1000 & wait")
    until(lambda: len(box.processes()) == 3)
    box("kill", "c", str(int(signal.SIGKILL)))
    until(lambda: not box.processes())  # in a shared namespace nobody else ends them
    box("delete", "c")
