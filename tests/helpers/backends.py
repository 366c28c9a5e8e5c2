"""The contract of a backend of the CSI driver, as tests that hold for each of them on each pool: `Contract`.

A test file makes its class from it and gives the fixture `place`; the testbed and the machine itself run the same.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry_csi import kernel, mounts, tree
from wherry_csi.backend import Backend, Shape
from wherry_csi.backend.all import BACKENDS, probe
from wherry_csi.errors import CsiError

from .tools import run

__all__ = ["Contract", "Pool", "Volume"]

MIB = 1 << 20
_numbers = itertools.count()


class Pool:
    """A file system on a loop device of the test's own, or a directory that is there (`Pool(path)`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def made(cls, directory: Path, mkfs: str, megabytes: int, *options: str) -> Iterator[Pool]:
        image, path = directory / "pool.img", directory / "pool"
        with open(image, "wb") as file:
            file.truncate(megabytes * MIB)
        run(*mkfs.split(), image)
        path.mkdir()
        run("mount", "-o", ",".join(["loop", *options]), image, path)
        try:
            yield cls(path)
        finally:
            run("umount", path)
            image.unlink()


class Volume:
    """A home in a pool, what is kept in it, and where it is staged."""

    def __init__(self, place: Place, name: str, shape: Shape) -> None:
        self.backend, self.shape, self.name = place.backend, shape, name
        os.mkdir(name, dir_fd=place.pool)
        self.home = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place.pool)
        # ext4's quota has its own errno; XFS knows that a project is like a disk
        self._full = errno.EDQUOT if (place.backend.name, place.facts.fs) == ("directory", "ext4") else errno.ENOSPC
        self.path = place.staging / name
        self.path.mkdir()

    def stage(self, *options: str) -> Volume:
        self.backend.stage(self.home, self.shape, str(self.path), options)
        return self

    def unstage(self) -> None:
        self.backend.unstage(self.home, self.shape, str(self.path))

    def grow(self, size: int) -> None:
        new = self.shape._replace(size=size)
        self.backend.grow(self.home, self.shape, new)
        self.shape = new

    def write(self, data: bytes, offset: int = 0, name: str = "file") -> None:
        """Into a file of it, or into the block volume; synced."""
        with self._opened(name, os.O_RDWR | os.O_CREAT) as fd:
            assert os.pwrite(fd, data, offset) == len(data)
            os.fsync(fd)

    def read(self, length: int, offset: int = 0, name: str = "file") -> bytes:
        with self._opened(name, os.O_RDONLY) as fd:
            return os.pread(fd, length, offset)

    @contextlib.contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        source = self.backend.source(self.home, self.shape, str(self.path), False)
        fd = os.open(source if self.shape.access == "block" else f"{source}/{name}", flags, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def fill(self) -> int:
        """Write until there is no room: the number of bytes that went in."""
        with self._opened("filler", os.O_WRONLY | os.O_CREAT) as fd:
            with pytest.raises(OSError, match=r"No space|quota") as caught:
                _write_on(fd)
            assert caught.value.errno == self._full
            return os.fstat(fd).st_size

    @property
    def usage(self) -> Any:
        return self.backend.usage(self.home, self.shape)

    @property
    def trouble(self) -> str:
        return self.backend.trouble(self.home, self.shape)

    @property
    def staged(self) -> bool:
        return self.backend.staged(self.home, self.shape)


def _write_on(fd: int) -> None:
    while True:
        os.write(fd, b"\xa5" * 65536)


class Place:
    """A pool, a backend and a kind of volume; it makes volumes and takes them away."""

    def __init__(self, pool: Path, staging: Path, backend: Backend, access: str, fs: str) -> None:
        self.pool = os.open(pool, os.O_RDONLY | os.O_DIRECTORY)
        self.path, self.staging, self.backend, self.access, self.fs = pool, staging, backend, access, fs
        self.facts = probe(self.pool)
        self.volumes: list[Volume] = []
        if problem := backend.problem(self.facts, access, fs):
            pytest.skip(problem)

    def shape(self, size: int, *, thick: bool = False) -> Shape:
        project = 5000 + len(self.volumes) if self.backend.name == "directory" else 0
        return Shape(self.backend.fit(size, self.access, self.fs), self.access, self.fs, thick, project)

    def empty(self, size: int = 64 * MIB, *, thick: bool = False) -> Volume:
        """A home with nothing in it."""
        volume = Volume(self, f"volume{next(_numbers)}", self.shape(size, thick=thick))
        self.volumes.append(volume)
        return volume

    def make(self, size: int = 64 * MIB, *, thick: bool = False) -> Volume:
        volume = self.empty(size, thick=thick)
        self.backend.make(volume.home, volume.shape)
        return volume

    def copy(self, source: Volume, size: int = 0) -> Volume:
        volume = self.empty(size or source.shape.size)
        self.backend.copy(source.home, source.shape, volume.home, volume.shape)
        return volume

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # all of it, whatever fails
            stack.callback(os.close, self.pool)
            for volume in self.volumes:
                stack.callback(self._take_away, volume)

    def _take_away(self, volume: Volume) -> None:
        while mounts.at(str(volume.path)):
            mounts.unmount(str(volume.path))
        volume.unstage()
        left = volume.staged
        os.close(volume.home)
        tree.remove(volume.name, self.pool)
        assert not left, "its device is still attached"


@contextlib.contextmanager
def placed(pool: Path, staging: Path, backend: str, access: str, fs: str) -> Iterator[Place]:
    place = Place(pool, staging, BACKENDS[backend], access, fs)
    try:
        yield place
    finally:
        place.close()


def code(action: Callable[[], object]) -> str:
    """The spec's code that it fails with."""
    with pytest.raises(CsiError) as caught:
        action()
    assert len(str(caught.value)) > 20, "a sentence"
    return caught.value.code


class Contract:
    """What the docstrings of wherry_csi.backend promise."""

    def test_a_new_volume_is_empty_and_of_its_size(self, place: Place) -> None:
        volume = place.make()
        assert volume.trouble == ""
        assert not volume.staged
        volume.stage()
        assert volume.staged
        assert volume.shape.size - 72 * MIB <= volume.usage.total <= volume.shape.size  # XFS has a log of 64 MiB
        assert volume.usage.available >= volume.shape.size * 0.7
        if place.access == "mount":
            assert os.listdir(volume.path) == []
            assert "nodev" in mounts.at(str(volume.path))[-1].options
            seen = os.statvfs(volume.path)
            assert seen.f_blocks * seen.f_frsize == volume.usage.total
        else:
            assert volume.read(volume.shape.size).strip(b"\0") == b""

    def test_what_was_written_is_there_after_unstage_and_stage(self, place: Place) -> None:
        volume = place.make().stage()
        volume.write(b"kept" * 5000, 8192)
        volume.unstage()
        assert not volume.staged
        assert volume.stage().read(20000, 8192) == b"kept" * 5000
        assert volume.trouble == ""

    def test_stage_and_unstage_may_be_repeated(self, place: Place) -> None:
        volume = place.make()
        for _ in range(2):
            volume.stage()
            assert len(mounts.at(str(volume.path))) == (place.access == "mount")
        volume.write(b"x")
        for _ in range(2):
            volume.unstage()
            assert not mounts.at(str(volume.path))
        assert not volume.staged
        assert place.backend.device(volume.home, volume.shape) is None

    def test_a_killed_make_or_copy_is_made_anew(self, place: Place) -> None:
        source, volume = place.make().stage(), place.empty()
        source.write(b"source")
        for name in ("image", "data", "links"):
            with contextlib.suppress(OSError), open(place.path / volume.name / name, "wb") as file:
                file.write(b"half made" * 1000)
        place.backend.make(volume.home, volume.shape)
        assert volume.trouble == ""
        volume.stage().write(b"garbage", 4096, "old")
        volume.unstage()
        place.backend.copy(source.home, source.shape, volume.home, volume.shape)
        assert volume.trouble == ""
        assert volume.stage().read(6) == b"source"
        assert place.access == "block" or os.listdir(volume.path) == ["file"]

    def test_a_foreign_mount_is_left_where_it_is(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("nothing is mounted at a block volume's staging path")
        volume = place.make()
        run("mount", "-t", "tmpfs", "foreign", volume.path)
        assert code(volume.stage) == "FAILED_PRECONDITION"
        assert code(volume.unstage) == "FAILED_PRECONDITION"
        assert mounts.at(str(volume.path))[-1].source == "foreign"
        run("umount", volume.path)
        assert not volume.staged
        source = place.backend.source
        assert code(lambda: source(volume.home, volume.shape, str(volume.path), False)) == "FAILED_PRECONDITION"

    def test_a_symlink_is_no_staging_path(self, place: Place, tmp_path: Path) -> None:
        if place.access == "block":
            pytest.skip("nothing is mounted at a block volume's staging path")
        volume = place.make()
        volume.path.rmdir()
        volume.path.symlink_to(tmp_path)
        with pytest.raises(OSError, match="symbolic"):
            volume.stage()
        assert not mounts.at(str(tmp_path))
        volume.path.unlink()
        volume.path.mkdir()

    def test_mount_options_are_the_askers(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("a block volume is not mounted")
        volume = place.make().stage("ro", "noatime", "noexec")
        assert {"ro", "noatime", "noexec", "nodev"} <= set(mounts.at(str(volume.path))[-1].options)
        volume.stage("noexec", "ro", "noatime")
        assert code(lambda: volume.stage("ro", "nosuid")) == "ALREADY_EXISTS"
        volume.unstage()
        for word in ("nosuchoption", "dev", "logdev=/dev/vda", "errors=panic", "journal_path=/dev/vda"):
            assert code(lambda word=word: volume.stage(word)) == "INVALID_ARGUMENT"  # type: ignore[misc]
        assert not volume.staged

    def test_a_copy_has_what_was_synced_and_goes_its_own_way(self, place: Place) -> None:
        source = place.make().stage()
        source.write(b"before" * 9000, 4096)
        copy = place.copy(source)
        source.write(b"after!" * 9000, 4096)
        assert copy.stage().read(54000, 4096) == b"before" * 9000
        copy.write(b"copy's" * 9000, 4096)
        assert source.read(54000, 4096) == b"after!" * 9000
        assert copy.trouble == source.trouble == ""

    def test_a_copy_may_be_larger(self, place: Place) -> None:
        source = place.make(64 * MIB).stage()
        source.write(b"data")
        source.unstage()
        copy = place.copy(source, source.shape.size + 128 * MIB)
        copy.stage()
        assert copy.read(4) == b"data"
        assert copy.usage.total >= copy.shape.size - 72 * MIB
        assert place.access == "mount" or copy.read(128 * MIB, source.shape.size).strip(b"\0") == b""

    def test_a_copy_of_a_volume_in_use_is_of_one_instant(self, place: Place) -> None:
        """Two places are written in turn, each time synced: the second is never ahead of the first."""
        if place.backend.name == "directory":
            pytest.skip("of each file, not of the volume")
        if place.access == "block" and not place.facts.reflink:
            pytest.skip("refused: test_a_busy_block_volume_is_not_copied_without_reflink")
        source = place.make().stage()
        stop = threading.Event()

        def writes() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                source.write(number.to_bytes(8, "little"), 8 * MIB, "first")
                source.write(number.to_bytes(8, "little"), 16 * MIB, "second")

        writer = threading.Thread(target=writes)
        writer.start()
        try:
            time.sleep(0.1)
            copies = [place.copy(source) for _ in range(3)]
        finally:
            stop.set()
            writer.join()
        for copy in copies:
            copy.stage()
            first = int.from_bytes(copy.read(8, 8 * MIB, "first"), "little")
            second = int.from_bytes(copy.read(8, 16 * MIB, "second"), "little")
            assert first > 0
            assert first - 1 <= second <= first
            copy.unstage()

    def test_it_grows_while_nobody_has_it(self, place: Place) -> None:
        volume = place.make().stage()
        volume.write(b"data")
        volume.unstage()
        volume.grow(volume.shape.size + 128 * MIB)
        assert volume.trouble == ""
        volume.stage()
        assert volume.usage.total >= volume.shape.size - 72 * MIB
        assert volume.read(4) == b"data"

    def test_it_grows_while_it_is_used(self, place: Place) -> None:
        volume = place.make().stage()
        volume.write(b"data")
        before = volume.usage.total
        for _ in range(2):
            volume.grow(volume.shape.size + 64 * MIB)
            try:
                place.backend.expand(volume.home, volume.shape)
            except CsiError as error:
                if place.fs != "ext4" or "CAP_SYS_RESOURCE" not in str(error):
                    raise
                pytest.skip("a mounted ext4 grows with CAP_SYS_RESOURCE, which this machine does not give")
        assert volume.usage.total >= before + 100 * MIB
        volume.write(b"more", volume.shape.size - 30 * MIB)
        assert volume.read(4) == b"data"
        assert volume.trouble == ""

    def test_full_is_enospc_and_no_neighbours_harm(self, place: Place) -> None:
        if place.access == "block":
            pytest.skip("a block volume ends where it ends")
        volume, neighbour = place.make(64 * MIB).stage(), place.make(64 * MIB).stage()
        neighbour.write(b"mine" * 1000)
        room = volume.usage.available
        written = volume.fill()
        assert written <= volume.shape.size
        assert written >= room - 4 * MIB
        assert volume.usage.available < MIB
        neighbour.write(b"more" * 100000, 4000)
        assert neighbour.read(8, 3996) == b"minemore"
        os.unlink(volume.path / "filler")
        volume.write(b"again" * 1000)
        assert volume.trouble == neighbour.trouble == ""

    def test_usage_is_exact(self, place: Place) -> None:
        volume = place.make().stage()
        before = volume.usage
        volume.write(b"\xa5" * (8 * MIB))
        if place.access == "mount":
            os.sync()
        after = volume.usage
        assert 8 * MIB <= after.used - before.used <= 8 * MIB + 256 * 1024
        assert before.available - after.available == after.used - before.used
        assert after.inodes_used - before.inodes_used == (place.access == "mount")
        assert place.backend.allocated(volume.home, volume.shape) >= 8 * MIB

    def test_what_fails_leaves_nothing_and_can_be_repeated(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each call that changes something fails once, at each place where it is made."""
        calls = [(kernel, name) for name in ("ioctl", "syncfs", "fsopen", "fsconfig", "fsmount", "mount_setattr")]
        calls += [(kernel, "move_mount"), (kernel, "open_tree"), (os, "ftruncate"), (os, "fsync"), (os, "mkdir")]
        source = place.make().stage()
        source.write(b"data")
        volume = place.empty()
        verbs = (
            lambda: place.backend.copy(source.home, source.shape, volume.home, volume.shape),
            lambda: place.backend.make(volume.home, volume.shape),
            volume.stage,
            volume.unstage,
        )
        for verb in verbs:
            for module, name in calls:
                _failed_everywhere(monkeypatch, module, name, verb, volume)
            verb()
        assert not volume.staged
        assert volume.stage().trouble == ""

    def test_nothing_stays_frozen_when_the_driver_is_killed(self, place: Place) -> None:
        volume = place.make().stage()
        if place.backend.name == "directory":
            group = place.backend.quiesced([(volume.home, volume.shape)])
            assert code(group.__enter__) == "FAILED_PRECONDITION"
            volume.unstage()
        program = (
            "import os, sys\n"
            "from wherry_csi.backend import Shape\n"
            "from wherry_csi.backend.all import BACKENDS\n"
            f"with BACKENDS[{place.backend.name!r}].quiesced([({volume.home}, {volume.shape!r})]):\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            pass_fds=(volume.home,),
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -9, done.stderr
        volume.stage()
        writer = threading.Thread(target=volume.write, args=(b"goes on",), daemon=True)
        writer.start()
        writer.join(20)
        assert not writer.is_alive(), "the file system is still frozen"

    def test_a_group_is_copied_at_one_instant(self, place: Place) -> None:
        first, second = place.make().stage(), place.make().stage()
        if place.backend.name == "directory":
            pytest.skip("directories in use are refused")
        for volume in (first, second):
            volume.write(b"group")
        with place.backend.quiesced([(volume.home, volume.shape) for volume in (first, second)]):
            writer = threading.Thread(target=first.write, args=(b"later",), daemon=True)
            if place.access == "mount":  # a block volume's writer is not held back, but noticed
                writer.start()
            copies = [place.copy(volume) for volume in (first, second)]
            assert place.access == "block" or writer.is_alive()
        if place.access == "mount":
            writer.join(20)
            assert first.read(5) == b"later"
        assert [copy.stage().read(5) for copy in copies] == [b"group", b"group"]

    def test_a_new_volume_has_no_bytes_of_a_deleted_one(self, place: Place) -> None:
        secret = b"SECRET-OF-ANOTHER"
        old = place.make().stage()
        old.write(secret * 100000)
        os.sync()
        old.unstage()
        place.volumes.remove(old)
        os.close(old.home)
        tree.remove(old.name, place.pool)
        old.path.rmdir()
        new = place.make(thick=True)
        if place.backend.name == "image":
            with open(place.path / new.name / "image", "rb") as file:
                while chunk := file.read(MIB):
                    assert secret not in chunk
        else:
            assert os.listdir(place.path / new.name / "data") == []

    def test_trouble_is_told_in_sentences(self, place: Place) -> None:
        volume = place.make()
        smaller = volume.shape._replace(size=volume.shape.size - 4096)
        assert str(volume.shape.size) in place.backend.trouble(volume.home, smaller)
        for name in tree.names(volume.home):
            tree.remove(name, volume.home)
        assert len(volume.trouble) > 20


def _failed_everywhere(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, verb: Callable[[], object], volume: Volume
) -> None:
    """Call `verb` with the first, the second, … call of module.name failing, until it makes no more of them."""
    real = getattr(module, name)
    for failing in range(1, 40):
        count = iter(range(1, 1000))

        def broken(*args: Any, failing: int = failing, count: Iterator[int] = count, **words: Any) -> Any:
            if next(count) == failing:
                raise OSError(errno.EIO, "injected")
            return real(*args, **words)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with contextlib.suppress(OSError, CsiError):
                verb()
        if volume.shape.access == "mount" and not mounts.at(str(volume.path)):
            assert not volume.staged, f"{name}, call {failing}: its device is left"
        if next(count) <= failing:
            return
