"""Volumes that a CSI driver serves, with the project's own driver: on demand, and as any other one on a socket."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers.trees import FILL, HOSTILE, gnu, tree
from helpers.wherry import Wherry, until
from wherry.kernel import process
from wherry.volume import driver

Run = Callable[..., str]


@pytest.fixture
def run(wherry: Wherry, busybox: str) -> Run:
    """`run --rm` of a shell line with volumes; what it printed."""
    return runner(wherry, busybox)


def runner(wherry: Wherry, image: str) -> Run:
    def one(line: str, *volumes: str, check: bool = True, words: tuple[str, ...] = ()) -> str:
        given = [word for volume in volumes for word in ("-v", volume)]
        done = wherry("run", "--rm", "--network", "none", *given, *words, image, "sh", "-c", line, check=check)
        return (done.stdout + ("" if check else done.stderr)).strip()

    return one


def create(wherry: Wherry, name: str, size: str = "64m", *options: str) -> None:
    words = [word for option in (f"size={size}", *options) for word in ("-o", option)]
    assert wherry.out("volume", "create", *words, name) == name


def start(wherry: Wherry, image: str, line: str, *volumes: str, name: str = "c") -> str:
    words = [word for volume in volumes for word in ("-v", volume)]
    shown = wherry.name(name)
    wherry("run", "-d", "--name", shown, "--network", "none", *words, image, "sh", "-c", line)
    return shown


def status(wherry: Wherry, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(wherry("volume", "inspect", name).stdout)[0]
    return found


def mounted(wherry: Wherry) -> list[str]:
    """Mount points below STATE/csi."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split()[4] for line in table if f"{wherry.state}/csi/" in line)


def at_rest(wherry: Wherry) -> None:
    """Nothing of any volume is mounted, attached or locked: also what a command does after its answer is done."""
    until(lambda: not mounted(wherry) and not list(audit._loops(wherry.mark)), 15, "mounts or loop devices are left")
    folders = (wherry.state / "csi").glob
    until(lambda: not any(path.is_dir() for path in folders("*")), 5, "directories of volumes are left")


def kept(wherry: Wherry, kind: str = "volumes") -> list[str]:
    """What our own driver's pool holds."""
    place = wherry.root / "csi/.wherry-csi" / kind
    return sorted(os.listdir(place)) if place.exists() else []


# ---- data


@pytest.mark.parametrize("options", [("64m",), ("320m", "fs=xfs"), ("64m", "backend=image", "provisioning=thick")])
def test_data_outlives_containers_and_comes_back(wherry: Wherry, run: Run, options: tuple[str, ...]) -> None:
    create(wherry, "data", *options)
    run("echo first > /v/x; sync", "data:/v")
    assert run("cat /v/x", "data:/v") == "first"
    wherry("volume", "snapshot", "data", "monday")
    wherry("volume", "clone", "data", "twin")
    run("echo second > /v/x", "data:/v")
    wherry("volume", "restore", "monday", "again")
    assert run("cat /a/x /b/x /c/x", "data:/a", "again:/b:ro", "twin:/c") == "second\nfirst\nfirst"
    run("echo third > /v/x", "again:/v")  # a copy shares nothing with its source
    wherry("volume", "rm", "data")
    wherry("volume", "restore", "monday", "later")
    assert run("cat /a/x /b/x /c/x", "again:/a", "twin:/b", "later:/c") == "third\nfirst\nfirst"
    fs = "xfs" if "fs=xfs" in options else "ext4"
    assert f" {fs} " in run("grep ' /v ' /proc/mounts", "later:/v")
    wherry("volume", "rm", "again", "twin", "later")
    wherry("volume", "snapshot", "rm", "monday")
    assert kept(wherry) == kept(wherry, "snapshots") == []
    at_rest(wherry)


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
def test_it_grows_while_a_container_has_it(wherry: Wherry, busybox: str, fs: str) -> None:
    if fs == "ext4" and not _has_resource():
        pytest.skip("a mounted ext4 grows only for CAP_SYS_RESOURCE")
    create(wherry, "data", "320m", f"fs={fs}")
    name = start(wherry, busybox, "sleep 1000", "data:/v")

    def blocks() -> int:
        return int(wherry.out("exec", name, "sh", "-c", "df -k /v | tail -1").split()[1])

    before = blocks()
    assert before < 320 << 10
    assert wherry.out("volume", "resize", "data", "500m") == str(500 << 20)
    assert blocks() > before + (150 << 10)
    wherry("exec", name, "dd", "if=/dev/zero", "of=/v/big", "bs=1M", "count=340")
    found = status(wherry, "data")["Status"]
    assert found["capacity"] == 500 << 20
    assert found["used"] > 340 << 20
    assert found["condition"] == "ok"
    for size, said in (("100m", "cannot be made smaller"), ("1000t", "csi.wherry.dev says")):
        done = wherry("volume", "resize", "data", size, check=False)
        assert done.returncode == 1
        assert said in done.stderr
    wherry("rm", "-f", name)
    at_rest(wherry)


def test_it_grows_at_rest(wherry: Wherry) -> None:
    create(wherry, "data")
    before = status(wherry, "data")["Status"]["size"]
    assert before < 64 << 20
    assert wherry.out("volume", "resize", "data", "+136m") == str(200 << 20)
    found = status(wherry, "data")["Status"]
    assert found["size"] > before + (120 << 20)
    assert found["capacity"] == 200 << 20
    at_rest(wherry)


def _has_resource() -> bool:
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> 24 & 1)


def test_a_full_volume_harms_no_neighbour(wherry: Wherry, run: Run) -> None:
    create(wherry, "full")
    create(wherry, "well")
    run("echo mine > /w/x", "well:/w")
    said = run("dd if=/dev/zero of=/f/big bs=1M; echo rest >> /w/x; cat /w/x", "full:/f", "well:/w", check=False)
    assert "No space left on device" in said
    assert said.startswith("mine\nrest")
    free = os.statvfs(wherry.root)
    assert free.f_bavail * free.f_frsize > 64 << 20
    found = status(wherry, "full")["Status"]
    assert found["available"] < 2 << 20
    assert found["used"] <= 64 << 20
    rows = {line.split()[0]: line.split()[2] for line in wherry.out("system", "df", "-v").splitlines() if "MB" in line}
    assert rows["full"] == f"{found['used'] / 1e6:.1f}MB"


def test_containers_share_it_and_the_last_one_takes_it_down(wherry: Wherry, busybox: str, run: Run) -> None:
    create(wherry, "data")
    one = start(wherry, busybox, "sleep 1000", "data:/v", name="1")
    two = start(wherry, busybox, "sleep 1000", "data:/v:ro", name="2")
    wherry("exec", one, "sh", "-c", "echo shared > /v/x")
    assert wherry.out("exec", two, "cat", "/v/x") == "shared"
    assert "Read-only" in wherry("exec", two, "touch", "/v/y", check=False).stderr
    assert status(wherry, "data")["Mountpoint"] in mounted(wherry)
    place = Path(status(wherry, "data")["Mountpoint"]).parent
    ids = sorted(wherry.inspect(name)["Id"] for name in (one, two))
    assert sorted(os.listdir(place)) == sorted([*ids, "staging"])
    assert oct(place.stat().st_mode)[-3:] == oct(place.parent.stat().st_mode)[-3:] == "700"
    assert "in use" in wherry("volume", "rm", "data", check=False).stderr
    wherry("stop", "-t", "0", one)
    until(lambda: len(os.listdir(place)) == 2)
    assert wherry.out("exec", two, "cat", "/v/x") == "shared"
    wherry("start", one)
    assert wherry.out("exec", one, "cat", "/v/x") == "shared"
    wherry("rm", "-f", one, two)
    wherry("volume", "rm", "data")  # what the removal does after its answer is waited for
    at_rest(wherry)
    assert kept(wherry) == []


def test_inherited_and_anonymous(wherry: Wherry, busybox: str, run: Run) -> None:
    create(wherry, "data")
    one = start(wherry, busybox, "echo hi > /v/x; sleep 1000", "data:/v", name="1")
    until(lambda: run("cat /v/x", words=("--volumes-from", f"{one}:ro"), check=False) == "hi")
    mount = "type=volume,volume-driver=local,volume-opt=size=32m,dst=/x"
    assert int(run("df -k /x | tail -1", words=("--mount", mount)).split()[1]) < 32 << 10
    wherry("rm", "-f", one)
    until(lambda: len(kept(wherry)) == 1)
    assert wherry.out("volume", "ls", "-q") == "data"
    mount = "type=volume,src=named,volume-driver=csi.wherry.dev,volume-opt=size=32m,dst=/x,ro"
    assert "Read-only" in run("touch /x/y", words=("--mount", mount), check=False)
    assert wherry.inspect("named")["Driver"] == "csi.wherry.dev"
    assert "named" in wherry.out("volume", "prune", "-a", "-f")
    assert kept(wherry) == []


# ---- what goes in


def test_a_fresh_volume_is_filled_from_the_image(wherry: Wherry, run: Run) -> None:
    for name in ("rw", "ro", "none", "used"):
        create(wherry, name, "32m")
    run("echo mine > /v/x", "used:/v")
    wanted = run("ls -A /etc; stat -c %a,%u /etc")
    assert wanted.count("\n") > 1
    show = "ls -A /etc | grep -v lost.found; stat -c %a,%u /etc"
    assert run(show, "rw:/etc") == wanted
    assert run(show, "ro:/etc:ro") == wanted
    assert "passwd" not in run(show, "none:/etc:nocopy")
    assert run("ls /etc | grep -v lost.found", "used:/etc") == "x"
    run("rm -rf /v/*", "rw:/v")
    at_rest(wherry)


def test_an_emptied_volume_is_not_filled_at_a_later_start(wherry: Wherry, busybox: str) -> None:
    create(wherry, "data", "32m")
    name = start(wherry, busybox, "ls -A /etc | grep -v lost.found | wc -l; rm -rf /etc/*", "data:/etc")
    wherry("wait", name)
    wherry("start", name)
    wherry("wait", name)
    first, second = map(int, wherry.out("logs", name).split())
    assert first > 1
    assert second == 0


def test_an_owner_and_a_namespace_of_its_own(wherry: Wherry, run: Run) -> None:
    create(wherry, "data", "32m")
    shown = run("touch /v/x; stat -c %u:%g /v /v/x", "data:/v:U", words=("-u", "1000:1000"))
    assert shown.split() == ["1000:1000"] * 2
    assert run("stat -c %u /v", "data:/v:ro,U", words=("-u", "7")) == "7"
    shown = run("touch /v/y; stat -c %u /v/y", "data:/v", words=("--userns", "auto"))
    assert shown == "0"
    assert run("stat -c %u /v/y", "data:/v") == "0"  # stored as the container sees it


def test_cp_reaches_a_volume_of_a_container_at_rest(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    create(wherry, "data", "32m")
    name = start(wherry, busybox, "echo in > /v/x", "data:/v")
    wherry("wait", name)
    at_rest(wherry)
    wherry("cp", f"{name}:/v/x", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "in\n"
    (tmp_path / "new").write_text("new")
    wherry("cp", tmp_path / "new", f"{name}:/v/new")
    at_rest(wherry)
    assert runner(wherry, busybox)("cat /v/new", "data:/v") == "new"


def test_a_block_volume_is_a_device(wherry: Wherry, run: Run) -> None:
    create(wherry, "disk", "16m", "access=block")
    shown = run("stat -c %F /dev/disk; blockdev --getsize64 /dev/disk; echo raw | dd of=/dev/disk 2>&1 | tail -1",
                "disk:/dev/disk")  # fmt: skip
    assert shown.splitlines()[:2] == ["block special file", str(16 << 20)]
    assert run("head -c 3 /dev/disk", "disk:/dev/disk:ro") == "raw"
    assert "not permitted" in run("echo no > /dev/disk", "disk:/dev/disk:ro", check=False)
    assert "block volume" in wherry("volume", "export", "disk", check=False).stderr
    at_rest(wherry)


def test_export_and_import(wherry: Wherry, run: Run, tmp_path: Path) -> None:
    create(wherry, "data")
    run(FILL, "data:/v")
    wherry("volume", "export", "-o", tmp_path / "out.tar", "data")
    (tmp_path / "read").mkdir()
    gnu("-C", tmp_path / "read", "-xpf", tmp_path / "out.tar")
    gnu("-C", tmp_path / "read", "--exclude=lost+found", "--format=pax", "-czf", tmp_path / "in.tar.gz", ".")
    create(wherry, "copy")
    wherry("volume", "import", "copy", tmp_path / "in.tar.gz")
    wherry("volume", "export", "-o", tmp_path / "again.tar", "copy")
    (tmp_path / "reread").mkdir()
    gnu("-C", tmp_path / "reread", "-xpf", tmp_path / "again.tar")
    assert tree(tmp_path / "reread") == tree(tmp_path / "read")
    assert oct((tmp_path / "read/one").stat().st_mode) == "0o104750"
    (tmp_path / "bad.tar").write_bytes(HOSTILE["through a link"])
    assert wherry("volume", "import", "copy", tmp_path / "bad.tar", check=False).returncode == 1
    assert not Path("/escaped").exists()
    done = wherry("volume", "import", "copy", "-", stdin="", check=False)
    assert done.returncode == 1
    at_rest(wherry)


# ---- the driver comes and goes


def test_the_driver_is_killed_and_nothing_running_is_harmed(wherry: Wherry, busybox: str, run: Run) -> None:
    create(wherry, "data")
    name = start(wherry, busybox, "while :; do date > /v/now || echo BROKEN; sleep 0.1; done", "data:/v")
    for _ in range(3):
        there = driver.holder(str(wherry.state))
        if there is None:  # it is started by the next call only
            wherry("volume", "inspect", "data")
            there = driver.holder(str(wherry.state))
        assert there is not None
        process.signal(there, signal.SIGKILL)
        assert process.wait_gone(there, 10)
        assert wherry.out("exec", name, "sh", "-c", "echo on > /v/x; cat /v/x") == "on"
        assert status(wherry, "data")["Status"]["condition"] == "ok"
    there = driver.holder(str(wherry.state))
    assert there is not None
    process.signal(there, signal.SIGKILL)
    wherry("rm", "-f", name)
    at_rest(wherry)
    assert run("cat /v/x", "data:/v") == "on"


@pytest.fixture
def hasty(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Wherry]:
    """A wherry whose driver leaves after a second."""
    own = Wherry(test_id, tmp_path, "volume_driver_idle = 1\n")
    before = audit.take(own.mark)
    yield own
    own.remove_everything()
    leaks = audit.settle(before, own.mark) + own.leftovers()
    assert not leaks, "\n".join(leaks)


def test_the_driver_leaves_when_idle(hasty: Wherry, busybox: str) -> None:
    create(hasty, "data")
    name = start(hasty, busybox, "sleep 1000", "data:/v")
    there = driver.holder(str(hasty.state))
    assert there is not None
    until(lambda: driver.holder(str(hasty.state)) is None, 10, "it does not leave")
    process.wait_gone(there, 5)
    assert not (hasty.state / "csi-own.sock").exists()
    assert hasty.out("exec", name, "sh", "-c", "echo on > /v/x; cat /v/x") == "on"
    assert len(mounted(hasty)) == 2
    hasty("rm", "-f", name)
    at_rest(hasty)
    assert runner(hasty, busybox)("cat /v/x", "data:/v") == "on"
    # calls at the very moment in which it leaves
    for pause in (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2):
        time.sleep(pause)
        assert status(hasty, "data")["Status"]["condition"] == "ok"


def test_the_driver_of_another_root_is_not_ours(wherry: Wherry, tmp_path: Path) -> None:
    create(wherry, "data")
    before = kept(wherry)
    (tmp_path / "other/csi").mkdir(parents=True)
    other = {"WHERRY_ROOT": str(tmp_path / "other")}  # and the same STATE
    done = wherry("volume", "create", "-o", "size=16m", "mine", env=other, check=False)
    assert done.returncode == 1
    assert "another --root" in done.stderr
    assert "another --root" in wherry("gc", env=other).stderr  # no row of that one's names our volume
    assert kept(wherry) == before
    driver.stop(str(wherry.state))
    wherry("volume", "create", "-o", "size=16m", "mine", env=other)
    assert "another --root" in wherry("gc", check=False).stderr
    driver.stop(str(wherry.state))
    assert kept(wherry) == before
    wherry("volume", "rm", "mine", env=other)
    driver.stop(str(wherry.state))
    wherry("volume", "rm", "data")


def test_one_driver_for_many_commands_at_once(wherry: Wherry) -> None:
    made = [wherry.popen("volume", "create", "-o", "size=16m", f"v{n}x", stdout=subprocess.DEVNULL) for n in range(6)]
    assert [one.wait(90) for one in made] == [0] * 6
    assert len(kept(wherry)) == 6
    found = [pid for pid in filter(str.isdigit, os.listdir("/proc"))
             if f"unix://{wherry.state}/csi-own.sock" in _words(pid)]  # fmt: skip
    assert len(found) == 1


def test_one_name_for_many_commands_at_once(wherry: Wherry) -> None:
    made = [wherry.popen("volume", "create", "-o", "size=16m", "same", stdout=subprocess.DEVNULL) for _ in range(5)]
    assert [one.wait(90) for one in made] == [0] * 5
    assert len(kept(wherry)) == 1
    assert wherry.out("gc") == ""


def _words(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.mark.seconds(240)
def test_commands_killed_at_any_moment_leave_nothing(wherry: Wherry, busybox: str) -> None:
    """kill -9 of create, run, snapshot and rm: what was acknowledged is there, gc takes the rest."""
    create(wherry, "data", "32m")
    run = runner(wherry, busybox)
    run("echo kept > /v/x; sync", "data:/v")
    dice = random.Random(7)
    lines = [
        ("volume", "create", "-o", "size=16m"),
        ("run", "--rm", "--network", "none", "-v", "data:/v", "-v", "fresh:/w", busybox, "sleep", "0.1"),
        ("volume", "snapshot", "data"),
        ("volume", "clone", "data", "twin"),
        ("volume", "export", "data", "-o", str(wherry.root / "out.tar")),
        ("volume", "rm", "twin"),
    ]
    for number in range(24):
        words = lines[number % len(lines)]
        child = wherry.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.05, 0.6))
        child.kill()
        child.wait()
    for cid in wherry.containers():
        wherry("rm", "-f", "-v", cid, check=False)
    until(lambda: wherry("gc").returncode == 0)
    assert wherry.out("gc") == ""
    at_rest(wherry)
    assert run("cat /v/x", "data:/v") == "kept"
    rows = wherry.out("volume", "ls", "-q", "--filter", "driver=csi.wherry.dev").split()
    assert len(kept(wherry)) == len(rows)
    assert len(kept(wherry, "snapshots")) == len(wherry.out("volume", "snapshot", "ls", "-q").split())
    assert "clean" in wherry.out("system", "check")
    (wherry.root / "out.tar").unlink(missing_ok=True)


def test_a_dead_monitor_s_volume_is_taken_down(wherry: Wherry, busybox: str) -> None:
    create(wherry, "data", "32m")
    name = start(wherry, busybox, "sleep 1000", "data:/v")
    cid = wherry.inspect(name)["Id"]
    state = json.loads((wherry.state / "c" / cid / "state.json").read_text())
    pids = [one[0] if isinstance(one, list) else one["pid"] for one in (state["monitor"], state["init"])]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wherry("gc")
    at_rest(wherry)
    assert wherry.inspect(name)["State"]["ExitCode"] == 137


# ---- any other driver


class Foreign:
    """Our driver with a pool and a socket of its own, as any CSI driver on the host would be."""

    def __init__(self, place: Path, state: Path, *before: str) -> None:
        self.before = before
        self.pool, self.socket = place / "foreign", Path(f"{state}-foreign.sock")
        self.pool.mkdir()
        self.endpoint = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        words = [*self.before, sys.executable, "-m", "wherry_csi", "serve", "--endpoint", self.endpoint,
                 "--node-id", "other", "--pool", f"other={self.pool}", "--controller-publish"]  # fmt: skip
        self.socket.unlink(missing_ok=True)  # of one that was killed
        self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.socket.exists)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def volumes(self) -> list[str]:
        return os.listdir(self.pool / ".wherry-csi/volumes")


@pytest.fixture
def foreign(wherry: Wherry, tmp_path: Path) -> Iterator[Foreign]:
    made = Foreign(tmp_path, wherry.state)
    yield made
    for name in wherry.containers():
        wherry("rm", "-f", name)
    wherry("volume", "prune", "-a", "-f", check=False)
    made.kill()
    made.socket.unlink(missing_ok=True)


def test_a_driver_on_a_socket(wherry: Wherry, foreign: Foreign, busybox: str, run: Run) -> None:
    words = ("-d", foreign.endpoint, "-o", "size=64m", "-o", "backend=image")
    wherry("volume", "create", *words, "data")
    assert wherry("volume", "create", "-d", str(foreign.socket), *words[2:], "data").stdout == "data\n"  # the same
    run("echo there > /v/x", "data:/v")
    wherry("volume", "snapshot", "data", "snap-1")
    wherry("volume", "restore", "snap-1", "again")
    wherry("volume", "clone", "data", "twin")
    assert run("cat /a/x /b/x", "again:/a", "twin:/b:ro") == "there\nthere"
    assert wherry.out("volume", "resize", "data", "96m") == str(96 << 20)
    assert status(wherry, "data")["Driver"] == foreign.endpoint
    assert len(foreign.volumes()) == 3
    assert "answers" in wherry("doctor", check=False).stdout
    done = wherry("volume", "create", "-d", foreign.endpoint, "-o", "size=1m", "-o", "colour=red", "bad", check=False)
    assert done.returncode == 1
    assert "colour" in done.stderr
    wherry("volume", "rm", "data", "again", "twin")
    wherry("volume", "snapshot", "rm", "snap-1")
    assert foreign.volumes() == []
    assert not (wherry.state / "csi-own.sock").exists()  # ours had nothing to do with it
    at_rest(wherry)


def test_a_driver_that_is_away(wherry: Wherry, foreign: Foreign, busybox: str) -> None:
    wherry("volume", "create", "-d", foreign.endpoint, "-o", "size=32m", "data")
    wherry("volume", "create", "-d", foreign.endpoint, "-o", "size=32m", "idle")
    name = start(wherry, busybox, "sleep 1000", "data:/v")
    foreign.kill()
    wherry("exec", name, "sh", "-c", "echo on > /v/x")
    for words in (("volume", "snapshot", "data"), ("volume", "resize", "data", "64m"),
                  ("run", "--rm", "--network", "none", "-v", "idle:/v", busybox, "true")):  # fmt: skip
        done = wherry(*words, check=False)
        assert done.returncode != 0
        assert "does not answer" in done.stderr
        assert "hint: " in done.stderr
    assert "left over" not in wherry.out("system", "check")  # nothing was asked of it
    assert "does not answer" in status(wherry, "data")["Status"]["condition"]
    assert "does not answer" in wherry("doctor", check=False).stdout
    assert "gc" in wherry("rm", "-f", name).stderr  # the container goes; what it had mounted is left
    done = wherry("volume", "rm", "data", "idle")
    assert "try again" in done.stderr
    assert wherry.out("volume", "ls", "-q") == ""
    assert "left over" in wherry.out("system", "check")
    foreign.start()
    told = wherry.out("gc")
    assert "driver: " in told
    assert foreign.volumes() == []
    assert wherry.out("gc") == ""
    at_rest(wherry)


def test_a_reset_without_the_driver(wherry: Wherry, foreign: Foreign, busybox: str) -> None:
    wherry("volume", "create", "-d", foreign.endpoint, "-o", "size=32m", "data")
    start(wherry, busybox, "sleep 1000", "data:/v")
    foreign.kill()
    done = wherry("system", "reset", "-f")
    assert "does not answer" in done.stderr
    assert mounted(wherry) == []
    assert not (wherry.state / "csi").exists()


def test_a_driver_of_another_mount_namespace(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    """What it mounts nobody here sees: no container starts without its volume, and nothing is written beside it."""
    aside = ["unshare", "-m", "--propagation", "private"]
    made = Foreign(tmp_path, wherry.state, *aside)
    wherry("volume", "create", "-d", made.endpoint, "-o", "size=32m", "data")
    words = ("run", "--rm", "--network", "none", "-v", "data:/v", busybox, "touch", "/v/x")
    done = wherry(*words, check=False)
    assert done.returncode == 125
    assert "another mount namespace" in done.stderr
    wherry("volume", "rm", "data")
    made.kill()
    made.socket.unlink()
    own = [*aside, sys.executable, "-m", "wherry", "volume", "create", "-o", "size=32m", "own"]
    subprocess.run(own, env=wherry.env, check=True, stdout=subprocess.DEVNULL)
    done = wherry("volume", "inspect", "-f", "{{.Status.condition}}", "own")
    assert "was started in another mount namespace" in done.stdout
    driver.stop(str(wherry.state))
    assert status(wherry, "own")["Status"]["condition"] == "ok"
    at_rest(wherry)


def test_a_refusal_leaves_nothing(wherry: Wherry) -> None:
    create(wherry, "data", "32m")
    wrong = (("create", "-o", "size=900t", "big"), ("clone", "-o", "size=900t", "data", "big"),
             ("clone", "-o", "size=16m", "data", "small"),
             ("create", "-o", "size=1m", "-o", "pool=no", "x1"))  # fmt: skip
    for words in wrong:
        done = wherry("volume", *words, check=False)
        assert done.returncode == 1
        assert "hint" in done.stderr or "says" in done.stderr
    assert "left over" not in wherry.out("system", "check")
    assert wherry("gc").stderr == ""
    assert len(kept(wherry)) == 1
    wherry("volume", "resize", "data", "48m")
    wherry("volume", "clone", "data", "twin")
    assert status(wherry, "twin")["Options"]["size"] == str(48 << 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "fs=xfs", "x1"), "needs a size"),
        (("-o", "size=lots", "x1"), 'invalid size="lots"'),
        (("-o", "size=64m", "-o", "fs=ntfs", "x1"), 'invalid fs="ntfs"'),
        (("-o", "size=9000t", "x1"), "csi.wherry.dev says"),
        (("-o", "size=64m", "-o", "pool=none", "x1"), "none"),
        (("-o", "size=64m", "-o", "o=bind", "x1"), '"o" does not go with'),
        (("-o", "size=32m", "data"), "exists with other options"),
        (("-d", "/no/such.sock", "x1"), "does not answer"),
    ],
)
def test_refusals_teach(wherry: Wherry, words: tuple[str, ...], said: str) -> None:
    create(wherry, "data", "16m")
    done = wherry("volume", "create", *words, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert wherry.out("volume", "ls", "-q") == "data"
    assert len(kept(wherry)) == 1


def test_reset_takes_everything(wherry: Wherry, busybox: str) -> None:
    create(wherry, "data", "16m")
    start(wherry, busybox, "sleep 1000", "data:/v")
    wherry("volume", "snapshot", "data")
    wherry("system", "reset", "-f")
    assert driver.holder(str(wherry.state)) is None
    assert not wherry.root.exists() or os.listdir(wherry.root) == []
    assert not mounted(wherry)
