"""How long the layers of an image stay mounted: from first use to removal, whoever dies or interferes meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.wherry import Wherry, until
from image_support import helper_factory, need_format
from wherry.engine.engine import Engine
from wherry.model import Attachment, Place, RunOptions

NONE = ("--network", "none")


@pytest.fixture
def own(wherry: Wherry, busybox: str, tmp_path: Path) -> Wherry:
    """A wherry with an image whose layers are erofs."""
    need_format("erofs", tmp_path, helper_factory(tmp_path))
    wherry.env["WHERRY_SNAPSHOT_FORMAT"] = "erofs"
    wherry("pull", "-q", busybox)
    return wherry


def mounted(own: Wherry, pid: int | str = "self") -> list[str]:
    """The targets of the layers' mounts, in one mount namespace."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if f"{own.root}/layers/" in line]


def layer(own: Wherry) -> Path:
    (found,) = (own.root / "layers").iterdir()
    return found


def hello(own: Wherry) -> str:
    return own.out("run", "--rm", *NONE, "busybox", "echo", "hello")


def test_mounted_once_at_the_first_use_and_shared(own: Wherry) -> None:
    assert mounted(own) == []
    assert hello(own) == "hello"
    assert mounted(own) == [f"{layer(own)}/fs"]
    inode = os.stat(layer(own) / "fs").st_dev
    assert hello(own) == "hello"
    assert (mounted(own), os.stat(layer(own) / "fs").st_dev) == ([f"{layer(own)}/fs"], inode)
    assert sorted(os.listdir(layer(own))) == ["fs", "layer.erofs", "size.json"]


def test_the_mount_gives_nothing_to_the_host(own: Wherry) -> None:
    hello(own)
    (line,) = (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{own.root}/layers/" in line)
    assert {"ro", "nodev", "nosuid", "noexec"} <= set(line.split()[5].split(","))
    with pytest.raises(PermissionError):
        subprocess.run([layer(own) / "fs/bin/busybox", "true"], check=False)


def test_the_image_goes_with_its_mount(own: Wherry) -> None:
    hello(own)
    own("rmi", "busybox")
    assert mounted(own) == []
    assert list((own.root / "layers").iterdir()) == []


def test_starting_many_at_once_mounts_once(own: Wherry) -> None:
    runs = [own.popen("run", "--rm", *NONE, "busybox", "echo", "hello", stdout=subprocess.PIPE) for _ in range(8)]
    assert [run.communicate(timeout=60)[0] for run in runs] == [b"hello\n"] * 8
    assert mounted(own) == [f"{layer(own)}/fs"]


def test_as_after_a_reboot(own: Wherry, tmp_path: Path) -> None:
    """Nothing is mounted, and a container exists: it starts, is read and compared."""
    name = own.name()
    own("create", "--name", name, *NONE, "busybox", "sh", "-c", "echo hello > /new; ls /bin/busybox")
    out, base = str(tmp_path / "out"), layer(own)
    for step in (("start", "-a", name), ("diff", name), ("cp", f"{name}:/bin/busybox", out), ("inspect", name),
                 ("commit", name, "made:1")):  # fmt: skip
        subprocess.run(["umount", base / "fs"], check=True, timeout=30)
        assert mounted(own) == []
        done = own(*step)
        if step[0] == "diff":
            assert done.stdout.split() == ["A", "/new"]
        assert mounted(own) == [f"{base}/fs"]
    assert (
        own.out("run", "--rm", *NONE, "made:1", "sh", "-c", "cat /new; test -x /bin/busybox && echo both")
        == "hello\nboth"
    )
    assert len(mounted(own)) == 2


def test_each_mount_namespace_has_its_own(own: Wherry) -> None:
    """One that was made before the first use sees no mount, and gets one; the removal takes it away there too."""
    holder = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "300"])
    try:
        until(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"))
        assert hello(own) == "hello"
        assert mounted(own, holder.pid) == []
        there = ["nsenter", "-t", str(holder.pid), "-m", "--", str(Path(sys.executable).with_name("wherry"))]
        done = subprocess.run([*there, "run", "--rm", *NONE, "busybox", "echo", "there"], env=own.env, check=False,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.stdout == "there\n", done.stderr
        assert mounted(own, holder.pid) == [f"{layer(own)}/fs"]
        own("rmi", "busybox")
        assert mounted(own) == []
        assert mounted(own, holder.pid) == []
    finally:
        holder.kill()
        holder.wait(10)


def test_a_removal_that_was_killed_is_ended_by_the_next_sweep(own: Wherry) -> None:
    hello(own)
    left = own.root / "layers/.tmp-0123456789abcdef"
    layer(own).rename(left)
    assert mounted(own) == [f"{left}/fs"]
    own("system", "prune", "-f")
    assert not left.exists()
    assert mounted(own) == []


def test_reset_unmounts_and_removes_all(own: Wherry) -> None:
    hello(own)
    own("system", "reset", "-f")
    assert not own.root.exists()
    assert mounted(own) == []


def test_a_running_container_keeps_what_it_has(own: Wherry) -> None:
    """Who unmounts a layer by hand takes nothing from those that run, and the next start mounts it again."""
    name = own.name()
    own("run", "-d", "--name", name, *NONE, "busybox", "sleep", "300")
    subprocess.run(["umount", layer(own) / "fs"], check=True, timeout=30)
    assert own.out("exec", name, "echo", "still") == "still"
    assert hello(own) == "hello"
    assert own("rmi", "busybox", check=False).returncode == 1
    assert mounted(own) == [f"{layer(own)}/fs"]


def test_removals_beside_starts(own: Wherry, busybox: str) -> None:
    """Every start works or says that there is no image; nothing stays of what was removed."""
    ends = set()
    for turn in range(6):
        words = ("run", "--rm", "--pull", "never", *NONE, "busybox", "echo", "hello")
        runs = [own.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
        if turn % 2:
            own("rmi", "-f", "busybox", check=False)
        for run in runs:
            out, err = run.communicate(timeout=60)
            ends.add(run.returncode)
            assert out == b"hello\n" or b"No such image" in err or b"no such image" in err or b"layer" in err, err
        own("pull", "-q", busybox)
    assert 0 in ends
    own("rmi", "-f", "busybox")
    own("gc")
    assert mounted(own) == []
    assert list((own.root / "layers").iterdir()) == []


def test_killed_anywhere_between(own: Wherry) -> None:
    """SIGKILL at the calls that make the mount: what is left is no mount or the whole one, and the next start works."""
    calls = ("fsopen", "fsconfig", "fsmount", "mount_setattr", "move_mount")
    for call in calls:
        subprocess.run(["umount", layer(own) / "fs"], check=False, capture_output=True, timeout=30)
        python = [sys.executable, "-m", "wherry", "run", "--rm", *NONE, "busybox", "echo", "hello"]
        trace = ["strace", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when=1", *python]
        try:
            done = subprocess.run(trace, env=own.env, check=False, capture_output=True, timeout=60)
        except FileNotFoundError:
            pytest.skip("strace is not installed")
        assert done.returncode in (-signal.SIGKILL, 137), (call, done.stderr)
        assert mounted(own) in ([], [f"{layer(own)}/fs"])
        assert hello(own) == "hello"
    own("gc")


def test_doctor_says_which_format(own: Wherry) -> None:
    said = own("doctor", check=False).stdout
    assert "layers: erofs" in [line.split(maxsplit=1)[-1] for line in said.splitlines()]


def test_explain_mounts_nothing(own: Wherry) -> None:
    assert "busybox is sha256:" in own.out("run", "--explain", *NONE, "busybox", "true")
    assert mounted(own) == []


def test_explain_on_a_kernel_that_wants_layers_mounted(own: Wherry) -> None:
    """Before 6.15 overlayfs takes no layer that is mounted nowhere."""
    engine = Engine(Place(str(own.root), str(own.state), str(own.config)))
    engine._house.facts = engine._house.facts._replace(kernel=(6, 12))
    sections = engine.explain(RunOptions("busybox", ("true",), user="root", network=(Attachment("none"),)))
    engine.close()
    assert sections[0].title == "Image"
    assert mounted(own) == [f"{layer(own)}/fs"]


def test_a_user_namespace_sees_its_own_ids(own: Wherry) -> None:
    words = ("run", "--rm", *NONE, "--userns", "auto", "busybox", "sh", "-c")
    assert own.out(*words, "stat -c %u:%g /bin/busybox; touch /bin/new && echo written") == "0:0\nwritten"


def test_the_old_format_is_a_setting_away(wherry: Wherry, busybox: str) -> None:
    with wherry.config.open("a") as file:
        file.write('snapshot_format = "directory"\n')
    wherry("pull", "-q", busybox)
    assert hello(wherry) == "hello"
    assert mounted(wherry) == []
    assert sorted(os.listdir(layer(wherry))) == ["fs", "size.json"]
    wherry.config.write_text('snapshot_format = "zip"\n')
    done = wherry("images", check=False)
    wherry.config.write_text(f'cgroup_parent = "{wherry.cgroup}"\n')
    assert done.returncode
    assert "snapshot_format must be one of auto, directory, erofs" in done.stderr


def test_a_container_sees_one_file_system(own: Wherry) -> None:
    """As with the other format: `du -x`, `find -xdev` and `tar --one-file-system` go by st_dev."""
    script = "touch /new; stat -c %d / /bin /bin/busybox /new"
    assert len(set(own.out("run", "--rm", *NONE, "busybox", "sh", "-c", script).split())) == 1


def test_a_mount_that_cannot_be_taken_away_is_told(own: Wherry) -> None:
    """A user namespace inherits mounts that it may not undo."""
    hello(own)
    left = own.root / "layers/.tmp-doomed-0123456789abcdef"
    layer(own).rename(left)
    inside = ["unshare", "-U", "-r", "-m", str(Path(sys.executable).with_name("wherry")), "system", "prune", "-f"]
    done = subprocess.run(inside, env=own.env, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "something is mounted there" in done.stderr
    own("system", "prune", "-f")
    assert mounted(own) == []
