"""Directory volumes under project quota, on ext4 and on XFS: the contract of backends, and that sizes hold."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import prctl
import pytest

pytest.register_assert_rewrite("helpers.backends")

from helpers.backends import MIB, Contract, Place, Pool, code, placed  # noqa: E402
from helpers.tools import need, run  # noqa: E402
from wherry_csi import quota, tree  # noqa: E402
from wherry_csi.backend.all import BACKENDS, probe  # noqa: E402

POOLS = {
    "ext4": ("mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota", "prjquota"),
    "xfs": ("mkfs.xfs -q -f", "prjquota"),
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """On the guest's own disk: a loop device cannot have an overlay or memory below it as a disk would."""
    command, option = POOLS[request.param]
    need(command.split()[0])
    directory = Path(f"/scratch/quota-{request.param}")
    directory.mkdir()
    with Pool.made(directory, command, 1600, option) as made:
        yield made


@pytest.fixture
def bounded() -> Iterator[None]:
    """Without CAP_SYS_RESOURCE, as containers are: who has it in the first user namespace is held by XFS, but not by
    ext4 (ignore_hardlimit() in fs/quota/dquot.c)."""
    prctl.cap_effective.sys_resource = False
    yield
    prctl.cap_effective.sys_resource = True


@pytest.fixture
def place(bounded: None, pool: Pool, tmp_path: Path) -> Iterator[Place]:
    with placed(pool.path, tmp_path, "directory", "mount", "") as found:
        yield found


@pytest.mark.parametrize("promise", [name for name in vars(Contract) if name.startswith("test_")])
def test_contract(promise: str, place: Place, request: pytest.FixtureRequest) -> None:
    """One function, for whoever relays results by functions."""
    method = getattr(Contract(), promise)
    method(**{name: request.getfixturevalue(name) for name in inspect.signature(method).parameters})


def test_the_pool_enforces_and_another_does_not(place: Place) -> None:
    assert place.facts.project_quota
    fd = os.open("/tmp", os.O_RDONLY)
    facts = probe(fd)
    os.close(fd)
    assert "quota" in BACKENDS["directory"].problem(facts, "mount", "")


def test_df_inside_shows_the_quota(place: Place) -> None:
    volume = place.make(64 * MIB).stage()
    volume.write(b"\xa5" * (10 * MIB))
    os.sync()
    total, used = (int(word) for word in run("df", "-B1", "--output=size,used", volume.path).stdout.split()[-2:])
    assert total == 64 * MIB
    assert abs(used - volume.usage.used) <= 8192
    assert volume.usage.total == total


def test_inodes_are_limited_too(place: Place) -> None:
    volume, neighbour = place.make(64 * MIB).stage(), place.make(64 * MIB).stage()
    limit = volume.usage.inodes
    made = 0
    with contextlib.suppress(OSError):
        while made <= limit:
            os.close(os.open(volume.path / str(made), os.O_CREAT | os.O_WRONLY))
            made += 1
    assert limit - 8 <= made < limit
    assert volume.usage.inodes_free <= 1
    neighbour.write(b"fine")


def test_an_unprivileged_writer_is_held_too(place: Place) -> None:
    volume = place.make(64 * MIB).stage()
    os.chmod(volume.path, 0o777)
    done = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "dd", "if=/dev/zero", "of=f", "bs=64k"],
        cwd=volume.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("No space" if place.facts.fs == "xfs" else "quota exceeded") in done.stderr
    assert 63 * MIB <= os.stat(volume.path / "f").st_size <= 64 * MIB


def test_more_is_written_as_soon_as_it_has_grown(place: Place) -> None:
    volume = place.make(64 * MIB).stage()
    volume.fill()
    volume.grow(128 * MIB)
    volume.write(b"\xa5" * (60 * MIB), name="second")
    assert volume.usage.total == 128 * MIB
    assert 124 * MIB <= volume.usage.used <= 128 * MIB


def test_what_is_moved_in_or_linked_counts(place: Place) -> None:
    """rename(2) and link(2) between projects: EXDEV, so mv copies."""
    volume, other = place.make(64 * MIB).stage(), place.make(64 * MIB).stage()
    other.write(b"\xa5" * (8 * MIB))
    raw = place.path / other.name / "data" / "file"
    for call in (os.rename, os.link):
        with pytest.raises(OSError, match="cross-device"):
            call(raw, place.path / volume.name / "data" / "stolen")
    assert volume.usage.used < MIB


def test_a_lost_project_or_limit_is_trouble(place: Place) -> None:
    volume = place.make(64 * MIB)
    quota.limit(volume.home, volume.shape.project, 0, 0)
    assert "quota" in volume.trouble
    volume.grow(volume.shape.size)
    assert volume.trouble == ""
    with tree.opened("data", volume.home) as fd:
        quota.assign(fd, 77)
    assert "77" in volume.trouble


def test_a_copy_is_charged_to_its_own_project(place: Place) -> None:
    source = place.make(64 * MIB).stage()
    source.write(b"\xa5" * (8 * MIB))
    copy = place.copy(source)
    os.sync()
    assert abs(place.backend.allocated(copy.home, copy.shape) - source.usage.used) < MIB
    assert not (place.path / copy.name / "links").exists()


def test_a_copy_that_does_not_fit_is_enospc(place: Place) -> None:
    source = place.make(64 * MIB).stage()
    source.write(b"\xa5" * (32 * MIB))
    small = place.empty(16 * MIB)
    with pytest.raises(OSError, match=r"No space|quota"):
        place.backend.copy(source.home, source.shape, small.home, small.shape)


def test_options_of_file_systems_are_refused(place: Place) -> None:
    assert code(lambda: place.make().stage("data=journal")) == "INVALID_ARGUMENT"
