"""commit, export, import, history, untag, save and load as verbs: docker's words, flags and refusals."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from helpers import tools
from helpers.wherry import Wherry, until
from wherry.engine import frozen
from wherry.engine.house import House
from wherry.model import Place

pytestmark = pytest.mark.root


@pytest.fixture
def box(wherry: Wherry, busybox: str) -> str:
    """A container that changed something."""
    wherry("load", "-q", busybox)
    name = wherry.name("box")
    script = "echo data > /data; rm -r /var/www; echo in-volume > /v/f; chown 33:33 /data; chmod 4711 /data"
    flags = (
        "-e",
        "GIVEN=yes",
        "-l",
        "own=1",
        "-u",
        "0",
        "--expose",
        "81",
        "-v",
        f"{wherry.name('v')}:/v",
        "-w",
        "/tmp",
    )
    wherry("run", "--name", name, *flags, "busybox", "sh", "-c", script)
    return name


def config(wherry: Wherry, image: str) -> dict:
    return wherry.inspect(image)["Config"]


def test_commit_keeps_what_the_container_was_asked(wherry: Wherry, box: str) -> None:
    said = wherry.out("commit", "-a", "Me <me@x>", "-m", "why not", box, "registry.example/made")
    made = wherry.inspect("registry.example/made:latest")
    assert said == made["Id"]
    found = made["Config"]
    assert "GIVEN=yes" in found["Env"]
    assert found["Cmd"][:2] == ["sh", "-c"]
    assert found["Labels"] == {"own": "1"}
    assert found["WorkingDir"] == "/tmp"
    assert "81/tcp" in found["ExposedPorts"]
    rows = [json.loads(line) for line in wherry.out("history", "--no-trunc", "--format", "json", said).splitlines()]
    assert rows[0]["ID"] == said
    assert rows[0]["Comment"] == "why not"
    assert rows[0]["CreatedBy"].startswith("sh -c echo data")
    assert rows[1]["ID"] == "<missing>"
    shown = wherry("run", "--rm", said, "sh", "-c", "stat -c '%u %a' /data; cat /data; ls /v /var").stdout
    assert shown.split() == ["33", "4711", "data", "/v:", "/var:", "tmp"]  # the volume is not part of it


def test_changes_and_nameless_commits(wherry: Wherry, box: str) -> None:
    changes = (
        "-c",
        'ENTRYPOINT ["cat"]',
        "-c",
        'CMD ["/data"]',
        "--change",
        "ENV GIVEN=no MORE='a b'",
        "-c",
        "USER 33",
    )
    identity = wherry.out("commit", *changes, box)
    assert wherry("run", "--rm", identity).stdout == "data\n"
    found = config(wherry, identity)
    assert {"GIVEN=no", "MORE=a b"} <= set(found["Env"])
    assert found["User"] == "33"
    assert wherry.inspect(identity)["RepoTags"] == []
    assert "<none>" in wherry("images").stdout
    refused = wherry("commit", "-c", "RUN x", box, "never", check=False)
    assert refused.returncode == 1
    assert "is not a valid change" in refused.stderr
    assert wherry("commit", "nosuch", "x", check=False).returncode == 1
    assert wherry("commit", box, "UPPER", check=False).returncode == 1
    wherry("image", "prune", "-f")
    assert wherry("image", "inspect", identity, check=False).returncode == 1


def test_a_running_container_goes_on_after_its_commit(wherry: Wherry, busybox: str) -> None:
    wherry("load", "-q", busybox)
    name = wherry.name("box")
    wherry("run", "-d", "--name", name, "busybox", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; done")
    for flags in ((), ("--pause=false",)):
        identity = wherry.out("commit", *flags, name)
        assert wherry.inspect(name)["State"]["Status"] == "running"
        assert wherry("run", "--rm", identity, "sh", "-c", "test -e /count && echo yes").stdout == "yes\n"
    events = wherry(
        "events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}", timeout=20, check=False
    ).stdout
    assert events.count("pause") >= 2 or not events


def test_a_killed_commit_leaves_no_frozen_container(wherry: Wherry, busybox: str) -> None:
    wherry("load", "-q", busybox)
    name, users = wherry.name("box"), wherry.name("users")
    for one in (name, users):
        wherry("run", "-d", "--name", one, "busybox", "sleep", "1000")
    wherry("pause", users)
    cid = wherry.inspect(name)["Id"]
    pid = os.fork()
    if pid == 0:
        try:
            house = House(Place(str(wherry.root), str(wherry.state), str(wherry.config)))
            with frozen.while_held(house, cid):
                signal.pause()  # as a commit that writes for long
        finally:
            os._exit(0)
    until(lambda: wherry.inspect(name)["State"]["Status"] == "paused")
    wherry("run", "--rm", "busybox", "true")  # its sweep leaves alone what is at work
    assert wherry.inspect(name)["State"]["Status"] == "paused"
    assert wherry("commit", name).returncode == 0  # a paused container is committed as it stands
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wherry("run", "--rm", "busybox", "true")
    assert wherry.inspect(name)["State"]["Status"] == "running"
    assert wherry.inspect(users)["State"]["Status"] == "paused"
    wherry("unpause", users)


def test_a_commit_of_a_commit_stacks(wherry: Wherry, box: str) -> None:
    wherry("commit", box, "one:1")
    second = wherry.name("second")
    wherry("run", "--name", second, "one:1", "sh", "-c", "rm /data; echo two > /two")
    wherry("commit", second, "two:2")
    assert len(wherry.inspect("two:2")["RootFS"]["Layers"]) == len(wherry.inspect("one:1")["RootFS"]["Layers"]) + 1
    assert wherry("run", "--rm", "two:2", "sh", "-c", "cat /two; test -e /data || echo gone").stdout == "two\ngone\n"
    assert wherry("system", "check").returncode == 0


def test_export_is_the_whole_root_and_import_takes_it(wherry: Wherry, box: str, tmp_path: Path) -> None:
    wherry("export", "-o", tmp_path / "root.tar", box)
    piped = subprocess.run(
        [*_command(wherry), "export", box], env=wherry.env, check=True, capture_output=True, timeout=60
    )
    assert piped.stdout == (tmp_path / "root.tar").read_bytes()
    with tarfile.open(tmp_path / "root.tar") as archive:
        names = {member.name: member for member in archive.getmembers()}
    assert (names["data"].uid, names["data"].mode) == (33, 0o4711)
    assert names["bin/busybox"].size or names["bin/busybox"].islnk()
    assert "v/f" not in names
    assert "proc" in names
    assert not any(name.startswith("proc/") for name in names)
    for number, pack in enumerate(("cat", "gzip", "zstd -q", "bzip2", "xz")):
        tools.need(pack.split()[0])
        packed = subprocess.run(pack.split(), input=piped.stdout, capture_output=True, check=True, timeout=60).stdout
        (tmp_path / "packed").write_bytes(packed)
        flags = ("-m", "from a tar", "-c", 'CMD ["cat", "/data"]', "--platform", "linux/amd64")
        identity = wherry.out("import", *flags, tmp_path / "packed", f"imported:{number}")
        assert wherry("run", "--rm", f"imported:{number}").stdout == "data\n"
        assert wherry.inspect(identity)["RootFS"]["Layers"] == wherry.inspect("imported:0")["RootFS"]["Layers"]
        assert "from a tar" in wherry("history", f"imported:{number}").stdout


def _command(wherry: Wherry) -> list[str]:
    from helpers.wherry import COMMAND

    return list(COMMAND)


@pytest.mark.parametrize("content", [b"", b"no tar " * 200, b"\x1f\x8b\x08 broken", b"\x28\xb5\x2f\xfd broken"])
def test_import_and_load_of_rubbish_leave_nothing(wherry: Wherry, busybox: str, tmp_path: Path, content: bytes) -> None:
    wherry("load", "-q", busybox)
    (tmp_path / "rubbish").write_bytes(content)
    before = sorted(path for path in wherry.root.rglob("*") if "blobs" in path.parts or "layers" in path.parts)
    for words in (("import", tmp_path / "rubbish", "never:1"), ("load", "-q", "-i", tmp_path / "rubbish")):
        done = wherry(*words, check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) <= 2, done.stderr
        assert "Traceback" not in done.stderr
    with open(tmp_path / "rubbish", "rb") as file:
        piped = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        assert wherry.popen("load", stdin=piped.stdout, stderr=subprocess.DEVNULL).wait(60) == 1
        piped.wait(10)
    assert sorted(p for p in wherry.root.rglob("*") if "blobs" in p.parts or "layers" in p.parts) == before
    assert wherry.out("images", "-q").count("\n") == 0
    assert wherry("system", "check").stdout.endswith("clean\n")


def test_a_hostile_archive_through_a_pipe(wherry: Wherry, tmp_path: Path) -> None:
    """A blob that is not what its name says, one that is cut, and members that climb: refused, nothing kept."""
    for name, size, data in (
        ("blobs/sha256/" + "0" * 64, 5, b"wrong"),
        ("../../../../etc/evil", 4, b"evil"),
        ("oci-layout", 1 << 40, b"short"),
    ):
        out = io.BytesIO()
        info = tarfile.TarInfo(name)
        info.size = size
        out.write(info.tobuf() + data + bytes(-len(data) % 512))
        (tmp_path / "evil.tar").write_bytes(out.getvalue())
        with open(tmp_path / "evil.tar", "rb") as file:
            piped = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
            loader = wherry.popen("load", stdin=piped.stdout, stderr=subprocess.PIPE)
            _, said = loader.communicate(timeout=60)
            piped.wait(10)
        assert loader.returncode == 1
        assert b"Traceback" not in said
    assert not Path("/etc/evil").exists()
    assert wherry.out("images", "-q") == ""
    wherry("gc")
    assert "left over" not in wherry("system", "check").stdout.replace("sha256-", "")


def test_untag_keeps_the_image(wherry: Wherry, busybox: str) -> None:
    wherry("load", "-q", busybox)
    identity = wherry.inspect("busybox")["Id"]
    wherry("tag", "busybox", "x/one:1")
    wherry("tag", "busybox", "x/two:2")
    wherry("untag", "busybox", "x/one:1")
    assert sorted(wherry.inspect(identity)["RepoTags"]) == ["busybox:latest", "x/two:2"]
    assert wherry("untag", "busybox", "x/never:1", check=False).returncode == 1
    wherry("untag", "busybox")
    assert wherry.inspect(identity)["RepoTags"] == []
    assert wherry("run", "--rm", identity, "echo", "still").stdout == "still\n"
    assert wherry.out("images", "-q", "--no-trunc", "--filter", "dangling=true") == identity


def test_what_is_saved_under_which_name(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    wherry("load", "-q", busybox)
    wherry("tag", "busybox", "busybox:2")
    identity = wherry.inspect("busybox")["Id"]
    whole = ["docker.io/library/busybox:2", "docker.io/library/busybox:latest"]
    for words, names in (
        (("busybox",), whole),
        (("busybox:2",), whole[:1]),
        ((identity,), []),
        (("busybox:2", "busybox"), whole),
    ):
        wherry("save", "-o", tmp_path / "saved.tar", *words)
        with tarfile.open(tmp_path / "saved.tar") as archive:
            members = archive.getnames()
            manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert [sorted(entry["RepoTags"]) for entry in manifest] == [names]
        assert len(members) == len(set(members))
    assert wherry("save", "-o", tmp_path / "never.tar", "busybox", "nosuch", check=False).returncode == 1
    assert not (tmp_path / "never.tar").exists()
    assert sorted(os.listdir(tmp_path / ".")) == sorted({"saved.tar", *os.listdir(tmp_path)} - {"never.tar"})


def test_archives_are_kept_from_terminals(wherry: Wherry, busybox: str) -> None:
    wherry("load", "-q", busybox)
    for words in (("save", "busybox"), ("load",)):
        ours, theirs = pty.openpty()
        try:
            done = wherry.popen(*words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
            _, said = done.communicate(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)
        assert done.returncode == 1
        assert b"terminal" in said


def test_a_save_that_is_killed_or_has_no_room_leaves_no_archive(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    wherry("load", "-q", busybox)
    (tmp_path / "old.tar").write_bytes(b"old")
    box = wherry.name("box")
    wherry("create", "--name", box, "busybox", "true")
    for words in (("save", "-o", "/dev/full", "busybox"), ("export", "-o", "/dev/full", box)):
        done = wherry(*words, check=False)
        assert done.returncode == 1
        assert "No space left" in done.stderr
    assert wherry("export", "-o", tmp_path / "no/such/place", box, check=False).returncode == 1
    assert os.listdir(tmp_path) == [name for name in os.listdir(tmp_path) if not name.endswith(".tmp")]
    wherry("save", "-o", tmp_path / "old.tar", "busybox")
    assert (tmp_path / "old.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "old.tar") as archive:
        assert "index.json" in archive.getnames()
