"""Values of an image or a user that reach for the host: refused, or brought down to a harmless size. No root needed."""

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.engine import health, mounts, specgen, users
from wherry.errors import WherryError
from wherry.kernel import files
from wherry.model import HealthCheck, ImageConfig, RunOptions
from wherry.oci import defaults
from wherry.oci.facts import HostFacts
from wherry.volume.copying import copy_directory
from wherry.volume.volumes import Volumes

ALL = frozenset({"mount", "network", "uts", "pid", "ipc", "cgroup"})
PASSWD = b"root:x:0:0::/root:/bin/sh\n0x0:x:0:0::/:/\nbig:x:4294967295:0::/:/\nneg:x:-1:0::/:/\n"
PASSWD += b"ok:x:7:8::/home/\x1b[0m:/\n"


@pytest.mark.parametrize("key", ["net.//.kernel.core_pattern", "net.ipv4...x", "net./../kernel/x", "net.ipv4.", "net",
                                 "kernel.core_pattern", "", "/net/ipv4/ip_forward"])  # fmt: skip
def test_a_kernel_parameter_of_the_host_is_refused(key: str) -> None:
    with pytest.raises(WherryError):
        specgen.check(RunOptions("x", ("true",), sysctls={key: "1"}), ImageConfig(), ALL)


def test_one_of_a_namespace_is_not() -> None:
    specgen.check(RunOptions("x", ("true",), sysctls={"net.ipv4.conf.eth0/1.forwarding": "1"}), ImageConfig(), ALL)


@pytest.mark.parametrize("value", [1, 1_000_000, 10**30, -5, "x", True, None, [], {}])
def test_an_image_s_health_check_neither_hurries_nor_breaks_us(value: Any) -> None:
    own = {"Test": ["CMD", "true"], **dict.fromkeys(("Interval", "Timeout", "StartInterval", "Retries"), value)}
    found = health.settings(RunOptions("x"), ImageConfig(healthcheck=own))
    assert found is not None
    assert min(found["interval"], found["start_interval"], found["timeout"]) >= 1
    assert health.intervals(found)[0] >= 1000


@pytest.mark.parametrize("test", ["CMD", {"a": 1}, 7, None])
def test_a_health_check_that_is_no_list_is_none(test: Any) -> None:
    assert health.settings(RunOptions("x"), ImageConfig(healthcheck={"Test": test})) is None


def test_what_was_asked_may_be_quick() -> None:
    asked = RunOptions("x", health=HealthCheck(test=("CMD", "true"), interval=0.1))
    found = health.settings(asked, ImageConfig(healthcheck={"Interval": 1}))
    assert found is not None
    assert health.intervals(found)[0] == 100


@pytest.mark.parametrize("path", ["/proc", "/proc/sys", "/./proc//x", "proc", "/sys", "/dev/", "/x/../dev", "/", "."])
def test_an_image_s_volume_does_not_hide_the_kernel(path: str) -> None:
    with pytest.raises(WherryError):
        mounts.collect(RunOptions("x"), [path], [])


def test_the_volume_of_systemd_images_is_allowed() -> None:
    assert [m.target for m in mounts.collect(RunOptions("x"), ["/sys/fs/cgroup"], [])] == ["/sys/fs/cgroup"]


@pytest.mark.parametrize("user", ["4294967295", "2147483648", "99999999999999999999", "+1", "-1", "+99999999999", "big",
                                  "neg", "٣", "1x", " 0", "0:4294967295", "0:+1", "root:nosuch"])  # fmt: skip
def test_users_that_are_no_users(user: str) -> None:
    with pytest.raises(WherryError):
        users.resolve(user, (), PASSWD, b"root:x:0:\n")


def test_a_name_like_a_number_is_what_passwd_says() -> None:
    """As docker: 0x0 is no digits, so it is a name; passwd is the image's, which may be root anyway."""
    assert users.resolve("0x0", (), PASSWD, b"").uid == 0
    assert users.resolve("ok", (), PASSWD, b"").home == "/"  # control bytes do not reach HOME


def test_passwd_is_a_regular_file_of_a_bounded_size(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    target = tmp_path / "passwd"
    try:
        assert users.read_beneath(root, "passwd") == b""
        os.mkfifo(target)
        with pytest.raises(WherryError, match="not a regular file"):
            users.read_beneath(root, "passwd")
        target.unlink()
        with open(target, "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(WherryError, match="larger"):
            users.read_beneath(root, "passwd")
        for link, why in (("/proc/self/root/etc/passwd", ""), ("/etc/../../../../etc/shadow", ""), ("passwd", "")):
            target.unlink()
            target.symlink_to(link)
            try:
                assert users.read_beneath(root, "passwd") == b"", why
            except WherryError:
                continue
    finally:
        os.close(root)


def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind is known before the open: with O_PATH nothing of a driver runs."""
    root = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "open": lambda *a: opened.append(a) or real(*a)}))
    try:
        with pytest.raises(OSError, match="not a regular file"):
            files.open_regular(root, "fifo")
        assert not opened
        fd = files.open_regular(root, "file")
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        os.close(fd)
        assert len(opened) == 1
    finally:
        os.close(root)


def test_the_counters_of_each_cpu_are_masked() -> None:
    made = specgen.Inputs("x" * 64, RunOptions("x", ("true",)), ImageConfig(), specgen.sec.Security(),
                          HostFacts(thermal_cpus=2))  # fmt: skip
    masked = specgen.generate(made)["linux"]["maskedPaths"]
    assert masked == [*defaults.MASKED_PATHS,
                      *(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle" for cpu in (0, 1))]  # fmt: skip


def test_a_sparse_file_fills_no_volume(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    with open(tmp_path / "from/huge", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 40)
        file.write(b"middle")
        file.truncate(1 << 42)
    one, two = os.open(tmp_path / "from", os.O_RDONLY), os.open(tmp_path / "to", os.O_RDONLY)
    try:
        copy_directory(one, two)
    finally:
        os.close(one)
        os.close(two)
    found = (tmp_path / "to/huge").stat()
    assert found.st_size == 1 << 42
    assert found.st_blocks * 512 < 1 << 20
    with open(tmp_path / "to/huge", "rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(1 << 40)
        assert file.read(7) == b"middle\0"


def test_a_deep_volume_can_still_be_measured_and_removed(tmp_path: Path) -> None:
    pool = Volumes(str(tmp_path))
    vid = pool.create()
    with pool.data(vid) as top:
        here = os.dup(top)
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
    assert pool.usage(vid) >= 0
    pool.remove(vid)
    assert pool.ids() == []
