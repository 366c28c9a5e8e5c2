"""`wherry-oci checkpoint` and `restore`, on a kernel that Debian's criu knows: a process goes on where it was."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import grpc
import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet
from helpers.ocibundle import Box, boxed
from helpers.wherry import until
from wherry.container import systemd
from wherry.oci import defaults

_COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/tmp/n; sleep 0.05; done"


@pytest.fixture(scope="module", autouse=True)
def criu() -> None:
    if not shutil.which("criu"):
        pytest.skip("criu is not installed")
    done = subprocess.run(["criu", "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"criu does not work on this kernel: {done.stderr.strip().splitlines()[0]}")


@pytest.fixture
def box(test_id: str, tmp_path: Path) -> Iterator[Box]:
    with boxed(test_id, tmp_path) as made:
        made.linux["maskedPaths"] = list(defaults.MASKED_PATHS)
        made.linux["readonlyPaths"] = list(defaults.READONLY_PATHS)
        made.process["args"] = ["sh", "-c", _COUNT]
        yield made


def piped(box: Box, *words: object) -> BinaryIO:
    """Run it with standard output and errors in one pipe, of which this is the other end."""
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        done = subprocess.run(
            box.argv(*words), env=box.env, stdin=subprocess.DEVNULL, stdout=into, stderr=into, check=False, timeout=120
        )
    finally:
        os.close(into)
    reader = open(out, "rb")  # noqa: SIM115  # the caller reads on
    assert done.returncode == 0, os.read(out, 1 << 16).decode()
    return reader


def number(box: Box) -> int:
    file = box.rootfs / "tmp" / "n"
    return int(file.read_text() or 0) if file.exists() else 0


def counts(box: Box) -> bool:
    before = number(box)
    end = time.monotonic() + 10
    while time.monotonic() < end and number(box) <= before + 2:
        time.sleep(0.05)
    return number(box) > before + 2


def test_a_process_goes_on_counting(box: Box, tmp_path: Path) -> None:
    """Under another id and in another cgroup; what it borrows of the host, its limits and what is hidden from it are
    again as the config says; its output goes where the restore's goes."""
    (tmp_path / "borrowed").write_text("borrowed\n")
    box.config["mounts"].append(
        {"destination": "/etc/borrowed", "source": str(tmp_path / "borrowed"), "options": ["bind", "ro"]}
    )
    box.linux["resources"] = {"pids": {"limit": 30}}
    box.write()
    reader = piped(box, "run", "-d", "--bundle", box.bundle, "c")
    assert counts(box)
    images, mounts = tmp_path / "images", len(Path(f"/proc/{box.pid()}/mountinfo").read_text().splitlines())
    box("checkpoint", "--image-path", images, "c", timeout=120)
    last = int(reader.read().split()[-1])  # nobody writes any more
    assert "does not exist" in box.refused("state", "c")
    assert not box.left()
    assert images.stat().st_mode & 0o777 == 0o700
    time.sleep(0.3)
    assert number(box) == last
    for name in ("sys", "dev", "proc"):  # another copy of the image has none of what create made
        (box.rootfs / name).rmdir()
    (box.rootfs / "etc" / "borrowed").unlink()
    box.linux["resources"] = {"pids": {"limit": 40}}
    box.write("again")
    pid_file = box.place / "pid"
    words = ("--bundle", box.bundle, "--image-path", images, "--work-path", tmp_path / "work", "--pid-file", pid_file)
    reader = piped(box, "restore", "--detach", *words, "again")
    assert int(reader.readline()) == last + 1
    assert counts(box)
    assert (tmp_path / "work" / "restore.log").exists()
    state = box.state("again")
    assert (state["status"], state["pid"]) == ("running", int(pid_file.read_text()))
    assert (box.cgroup("again") / "pids.max").read_text() == "40\n"
    assert str(state["pid"]) in (box.cgroup("again") / "cgroup.procs").read_text().split()
    script = "cat /etc/borrowed /proc/self/cgroup; wc -c </proc/keys; ls /proc/acpi; grep -c . /proc/1/mountinfo"
    done = box.exec("sh", "-c", script, cid="again")
    assert done.out.split()[:3] == ["borrowed", "0::/", "0"]
    assert int(done.out.split()[3]) == mounts
    for file in ("/etc/borrowed", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"):
        assert "Read-only file system" in box.exec("sh", "-c", f"echo x >{file}", cid="again").err
    box("pause", "again")
    box("resume", "again")
    box("kill", "again", "KILL")
    box.ends("again")
    box("delete", "again")
    reader.close()


def test_the_caller_may_stay_and_a_dump_may_leave_it_running(box: Box, tmp_path: Path) -> None:
    """--pre-dump takes the memory, --leave-running all of it; a restore in the foreground ends as the process does."""
    box.process["args"] = ["sh", "-c", f"trap 'exit 7' TERM; {_COUNT}"]
    box.write()
    reader = piped(box, "run", "-d", "--bundle", box.bundle, "c")
    assert counts(box)
    box("checkpoint", "--pre-dump", "--image-path", tmp_path / "first", "c", timeout=120)
    assert counts(box)
    second = ("--image-path", tmp_path / "second", "--parent-path", "../first", "--leave-running")
    box("checkpoint", *second, "c", timeout=120)
    assert counts(box)
    assert box.state()["status"] == "running"
    box("delete", "--force", "c")
    reader.close()
    with box.popen("restore", "--bundle", box.bundle, "--image-path", tmp_path / "second", "c") as running:
        assert running.stdout
        first = int(running.stdout.readline())
        assert int(running.stdout.readline()) == first + 1
        assert box.state()["status"] == "running"
        box("kill", "c", "TERM")
        assert running.wait(10) == 7
    assert not box.left()


def test_a_restore_that_fails_leaves_nothing(box: Box, tmp_path: Path) -> None:
    box.write()
    reader = piped(box, "run", "-d", "--bundle", box.bundle, "c")
    assert counts(box)
    images = tmp_path / "images"
    text = box.refused("checkpoint", "--image-path", images, "--parent-path", "../none", "c")
    assert "--parent-path ../none" in text
    box("checkpoint", "--image-path", images, "c", timeout=120)
    reader.close()
    (images / "core-1.img").write_bytes(b"not an image")
    text = box.refused("restore", "--detach", "--bundle", box.bundle, "--image-path", images, "c", timeout=120)
    assert "cannot restore container c: criu: " in text
    assert f"its log is {images}/restore.log" in text
    (images / "descriptors.json").write_text(json.dumps({"not": "a list"}))
    assert "must be a list" in box.refused("restore", "--bundle", box.bundle, "--image-path", images, "c")
    assert not box.left()


@pytest.fixture
def kubelet(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Kubelet]:
    with Wherryd(test_id, tmp_path) as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox), tmp_path / "logs")
        yield made
        made.remove_everything()


def test_a_container_of_a_pod_is_put_into_an_archive_and_goes_on(kubelet: Kubelet, tmp_path: Path) -> None:
    """CheckpointContainer: as tools of other runtimes read it, root's alone, and nothing is left where it fails."""
    pod = kubelet.pod("p", network=True)
    container = kubelet.run(pod, "c", "sh", "-c", f"echo mark >/etc/mark; rm /bin/ls; {_COUNT}")
    archive = tmp_path / "checkpoint.tar"

    def count() -> int:
        return int(kubelet.output(container, "cat", "/tmp/n") or 0)

    until(lambda: kubelet.exec(container, "test", "-s", "/tmp/n").exit_code == 0, 60)
    kubelet("CheckpointContainer", container_id=container, location=str(archive), seconds=300)
    before = count()
    until(lambda: count() > before, 60, "it does not go on")
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
        assert {"checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/descriptors.json", "dump.log"} <= names
        about, spec, deleted = (json.load(tar.extractfile(name) or io.BytesIO())
                                for name in ("config.dump", "spec.dump", "deleted.files"))  # fmt: skip
        assert (about["id"], about["name"], about["runtime"]) == (container, "c", "wherry")
        assert spec["process"]["args"][:2] == ["sh", "-c"]
        assert deleted == ["bin/ls"]
        with tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as layer:
            assert (layer.extractfile("etc/mark") or io.BytesIO()).read() == b"mark\n"
    with pytest.raises(grpc.RpcError, match="timeout"):
        kubelet("CheckpointContainer", container_id=container, location=str(archive), timeout=-1)
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint.tar"]
    assert not list(tmp_path.rglob("containers/*/checkpoint"))


@pytest.mark.skipif(not systemd.available(), reason="no systemd in this boot")
def test_a_unit_holds_what_is_restored(box: Box, tmp_path: Path) -> None:
    """The unit ends with the checkpoint, and the restore has one of its own, with the limits of the config."""
    unit, options = f"wherry-{box.id}.scope", ("--systemd-cgroup",)
    box.linux.update({"cgroupsPath": f"system.slice:wherry:{box.id}", "resources": {"pids": {"limit": 30}}})
    box.write()
    driver = {"options": options, "timeout": 120}
    reader = piped(box, *options, "run", "-d", "--bundle", box.bundle, "c")
    assert counts(box)
    box("checkpoint", "--image-path", tmp_path / "images", "c", **driver)
    reader.close()
    group = Path(f"/sys/fs/cgroup/system.slice/{unit}")
    until(lambda: not group.exists())
    words = ("restore", "-d", "--bundle", box.bundle, "--image-path", tmp_path / "images", "c")
    reader = piped(box, *options, *words)
    try:
        assert counts(box)
        assert str(box.pid()) in (group / "cgroup.procs").read_text().split()
        assert (group / "pids.max").read_text() == "30\n"
        said = subprocess.check_output(["systemctl", "show", unit, "-pActiveState", "-pTasksMax"], text=True)
        assert sorted(said.split()) == ["ActiveState=active", "TasksMax=30"]
    finally:
        box("delete", "--force", "c", **driver)
        reader.close()
    until(lambda: not group.exists())
