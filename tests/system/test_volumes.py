"""Plain volumes: snapshots, clones, export and import, and what of it is refused. No driver is ever started."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.trees import FILL, HOSTILE, gnu, packed, tree
from helpers.wherry import Wherry, until


@pytest.fixture
def run(wherry: Wherry, busybox: str) -> Callable[..., str]:
    """`run --rm` of a shell line with volumes; its output."""

    def one(line: str, *volumes: str, check: bool = True) -> str:
        words = [word for volume in volumes for word in ("-v", volume)]
        done = wherry("run", "--rm", "--network", "none", *words, busybox, "sh", "-c", line, check=check)
        return (done.stdout + done.stderr).strip() if not check else done.stdout.strip()

    return one


def data(wherry: Wherry, name: str) -> str:
    return wherry.out("volume", "inspect", "-f", "{{.Mountpoint}}", name)


def test_snapshots_and_clones_hold_everything(wherry: Wherry, run: Callable[..., str]) -> None:
    run(FILL, "data:/v")
    os.setxattr(f"{data(wherry, 'data')}/one", "user.colour", b"red\0blue")
    before = tree(data(wherry, "data"))
    assert wherry.out("volume", "snapshot", "data", "monday") == "monday"
    minted = wherry.out("volume", "snapshot", "create", "data")
    assert minted.startswith("data-20")
    assert wherry.out("volume", "clone", "--label", "a=b", "data", "twin") == "twin"
    run("rm -r /v/sub; echo changed > /v/one", "data:/v")
    assert wherry.out("volume", "restore", "monday", "again") == "again"
    assert tree(data(wherry, "again")) == before
    assert tree(data(wherry, "twin")) == before
    assert wherry.inspect("twin")["Labels"] == {"a": "b"}
    assert run("cat /v/one", "data:/v") == "changed"
    wherry("volume", "rm", "data")  # its snapshots stay
    assert wherry.out("volume", "restore", minted, "third") == "third"
    assert tree(data(wherry, "third")) == before
    wherry("gc")
    assert wherry.out("volume", "snapshot", "ls", "-q", "--filter", "volume=data").split() == ["monday", minted]
    assert "clean" in wherry.out("system", "check")
    wherry("volume", "snapshot", "rm", "monday", minted)
    assert wherry.out("volume", "snapshot", "ls", "-q") == ""
    wherry("volume", "rm", "again", "twin", "third")
    assert os.listdir(wherry.root / "volumes") == []
    assert not (wherry.state / "csi-own.sock").exists()


def test_a_snapshot_is_of_one_instant(wherry: Wherry, busybox: str) -> None:
    """Two files that a container writes one after the other: the second is never ahead of the first."""
    step = "echo $i > /v/{0}.new; mv /v/{0}.new /v/{0}"
    line = f"i=0; while :; do i=$((i+1)); {step.format('a')}; {step.format('b')}; done"
    wherry("run", "-d", "--name", wherry.name(), "--network", "none", "-v", "data:/v", busybox, "sh", "-c", line)
    until(lambda: Path(data(wherry, "data"), "b").exists())
    for number in range(5):
        wherry("volume", "snapshot", "data", f"s{number}x")
        wherry("volume", "restore", f"s{number}x", f"v{number}x")
        a, b = (int(Path(data(wherry, f"v{number}x"), name).read_text()) for name in "ab")
        assert a - 1 <= b <= a
    assert wherry.inspect(wherry.name())["State"]["Status"] == "running"


def test_a_bind_volume_is_copied_into_a_plain_one(wherry: Wherry, run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/x").write_text("mine")
    wherry("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}/here", "bound")
    wherry("volume", "clone", "bound", "copy")
    run("echo other > /v/x", "copy:/v")
    assert (tmp_path / "here/x").read_text() == "mine"
    assert wherry.inspect("copy")["Options"] is None


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (("volume", "snapshot", "none"), "no such volume: none", ""),
        (("volume", "snapshot", "data", "s-1"), "snapshot s-1 exists", "choose another name"),
        (("volume", "snapshot", "data", "../x"), 'invalid snapshot name "../x"', "letter or a digit"),
        (("volume", "restore", "none", "new"), "no such volume snapshot: none", "snapshot ls"),
        (("volume", "restore", "s-1", "data"), "a volume data exists", "choose another name"),
        (("volume", "restore", "-o", "size=1g", "s-1", "new"), '"size" does not go with a directory', "leave -o out"),
        (("volume", "clone", "data", "a b"), 'invalid volume name "a b"', "letter or a digit"),
        (("volume", "resize", "data", "2G"), "it has no size of its own", "volume create -o size"),
        (("volume", "resize", "data", "big"), 'invalid value "big" for SIZE', "powers of 1024"),
        (("volume", "export", "none"), "no such volume: none", ""),
        (("volume", "import", "data", "/no/such"), "cannot read /no/such", "readable tar"),
        (("volume", "import", "data", "/etc/passwd"), "not a tar", ""),
        (("volume", "snapshot", "rm", "none"), "no such volume snapshot: none", ""),
        (("volume", "create", "-o", "colour=red", "x1"), 'no option "colour"', "size=2G"),
        (("volume", "create", "-d", "nfs", "x1"), 'volume driver "nfs" is not there', "unix:///PATH"),
    ],
)
def test_refusals_teach(wherry: Wherry, words: tuple[str, ...], said: str, hint: str) -> None:
    wherry("volume", "create", "data")
    wherry("volume", "snapshot", "data", "s-1")
    done = wherry(*words, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert f"hint: {hint}" in done.stderr or (hint and hint in done.stderr.partition("hint:")[2]) or not hint
    assert wherry.out("volume", "ls", "-q") == "data"


# ---- tars


def test_export_is_what_gnu_tar_reads(wherry: Wherry, run: Callable[..., str], tmp_path: Path) -> None:
    run(FILL, "data:/v")
    os.setxattr(f"{data(wherry, 'data')}/one", "user.colour", b"red\0blue")
    wherry("volume", "export", "-o", tmp_path / "out.tar", "data")
    (tmp_path / "read").mkdir()
    gnu("-C", tmp_path / "read", "--xattrs", "--xattrs-include=*", "-xpf", tmp_path / "out.tar")
    assert tree(tmp_path / "read") == tree(data(wherry, "data"))


@pytest.mark.parametrize("form", ["--format=pax", "--format=gnu", "-z", "-j", "-J"])
def test_import_takes_what_gnu_tar_writes(wherry: Wherry, run: Callable[..., str], tmp_path: Path, form: str) -> None:
    run(FILL, "data:/v")
    source = data(wherry, "data")
    os.mkdir(f"{source}/{'n' * 120}")
    Path(source, "n" * 120, "m" * 120).write_text("long")
    whole = ("--format=pax", "--xattrs") if form.startswith("-") and len(form) == 2 else (form,)
    gnu(*whole, *((form,) if len(form) == 2 else ()), "-C", source, "-cf", tmp_path / "in.tar", ".")
    wherry("volume", "create", "copy")
    wherry("volume", "import", "copy", tmp_path / "in.tar")
    got, wanted = tree(data(wherry, "copy")), tree(source)
    if form == "--format=gnu":  # whole seconds
        got, wanted = ({name: (*f[:3], f[3] // 10**9, *f[4:6], f[7]) for name, f in t.items()} for t in (got, wanted))
    assert got == wanted


def test_a_tar_goes_through_pipes(wherry: Wherry, run: Callable[..., str], tmp_path: Path) -> None:
    run(FILL, "data:/v")
    wherry("volume", "create", "copy")
    with open(tmp_path / "pipe.tar", "wb") as file:
        assert wherry.popen("volume", "export", "data", stdout=file).wait(60) == 0
    with open(tmp_path / "pipe.tar", "rb") as file:
        assert wherry.popen("volume", "import", "copy", "-", stdin=file).wait(60) == 0
    assert tree(data(wherry, "copy")) == tree(data(wherry, "data"))


def test_a_tar_brings_no_marks_of_overlayfs(wherry: Wherry, tmp_path: Path) -> None:
    """They would redirect a directory of whoever stacks the volume; other attributes come along."""
    member = tarfile.TarInfo("sub")
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    marks = ("trusted.overlay.redirect", "user.overlay.redirect", "trusted.mine", "user.colour")
    member.pax_headers = {f"SCHILY.xattr.{name}": "/etc" for name in marks}
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    wherry("volume", "create", "data")
    wherry("volume", "import", "data", tmp_path / "in.tar")
    assert sorted(os.listxattr(f"{data(wherry, 'data')}/sub")) == ["trusted.mine", "user.colour"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_stays_inside(wherry: Wherry, tmp_path: Path, name: str) -> None:
    wherry("volume", "create", "data")
    (tmp_path / "bad.tar").write_bytes(HOSTILE[name])
    done = wherry("volume", "import", "data", tmp_path / "bad.tar", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    inside = data(wherry, "data")
    out = [path for path in (Path("/escaped"), *wherry.root.rglob("escaped")) if path.exists()]
    assert out == []
    assert not os.path.exists(f"{inside}/hard")


def test_device_nodes_stay_out(wherry: Wherry, tmp_path: Path) -> None:
    wherry("volume", "create", "data")
    (tmp_path / "in.tar").write_bytes(packed(("null", tarfile.CHRTYPE, ""), ("file", tarfile.REGTYPE, "")))
    done = wherry("volume", "import", "data", tmp_path / "in.tar")
    assert "1 device nodes" in done.stderr
    assert os.listdir(data(wherry, "data")) == ["file"]


def test_the_plain_way_loads_no_grpc(wherry: Wherry, busybox: str) -> None:
    """Neither a volume without a size nor a container with it has anything to do with drivers."""
    words = (("volume", "create", "data"), ("run", "--rm", "--network", "none", "-v", "data:/v", busybox, "true"),
             ("volume", "ls"), ("volume", "inspect", "data"), ("gc",), ("volume", "rm", "data"))  # fmt: skip
    for line in words:
        command = [sys.executable, "-X", "importtime", "-m", "wherry", *line]
        told = subprocess.run(command, env=wherry.env, capture_output=True, text=True, check=True).stderr
        loaded = {text.rpartition("|")[2].strip() for text in told.splitlines() if text.startswith("import time:")}
        assert "wherry.engine.engine" in loaded
        assert not {"grpc", "google.protobuf", "wherry.volume.csi", "wherry.engine.bringing"} & loaded


def test_what_is_mounted_in_a_volume_is_not_of_it(wherry: Wherry, tmp_path: Path) -> None:
    inner = tmp_path / "top/inner"
    inner.mkdir(parents=True)
    wherry("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}/top", "data")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "none", inner], check=True)
    try:
        (inner / "secret").write_text("of another file system")
        wherry("volume", "clone", "data", "twin")
    finally:
        subprocess.run(["umount", inner], check=True)
    assert [path.name for path in Path(data(wherry, "twin")).rglob("*")] == ["inner"]
    wherry("volume", "rm", "data", "twin")
