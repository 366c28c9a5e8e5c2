"""The disk under the store: power cuts lose nothing that was acknowledged, a full disk is said and leaves no damage."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.badregistry import serving
from helpers.loopfs import LoopFs
from image_support import FORMATS, Image, entry, folder, need_format, needs_root, tar
from wherry.errors import Kind, WherryError
from wherry.image.author import add_image, add_layer, layers_of
from wherry.image.layertar import write_layer
from wherry.image.snapshot import Snapshotter
from wherry.image.store import ImageStore
from wherry.kernel.mount import opened, settle

pytestmark = [pytest.mark.root, needs_root]
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
CUTS = int(os.environ.get("WHERRY_POWER_CUTS", "4"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopFs]:
    with LoopFs(tmp_path, 160) as place:
        yield place


def layout(tmp_path: Path, name: str, size: int = 200_000) -> Path:
    files = [entry(f"d/{name}-{n}", os.urandom(size // 20)) for n in range(20)]
    return Image(tar(folder("d"), *files), tar(entry(f"top-{name}", os.urandom(1000)))).layout(
        tmp_path / name, f"x/{name}:1"
    )


def commit(store: ImageStore, base: str, name: str, *, big: int = 5000):
    """What `commit` does: a change over an image becomes an image."""
    snapshots, record = Snapshotter(store.root), store.get(base)
    settle(snapshots.below(record.config.diff_ids))
    snapshots.make("box", record.config.diff_ids)
    try:
        with opened(snapshots.mounts("box")) as fd:
            Path(f"/proc/self/fd/{fd}/changed").write_bytes(os.urandom(big))
        with store.blobs.lease():
            upper, lower = snapshots.upper("box"), snapshots.lower_paths("box")
            layer = add_layer(store.blobs, lambda out: write_layer(upper, lower, out))
            made = add_image(store, {"architecture": "amd64", "os": "linux"}, [*layers_of(record), layer], [name])
            store.ensure_unpacked(made)
            return made
    finally:
        snapshots.remove("box")


def everything(store: ImageStore) -> dict[str, str]:
    """Names with ids, for images that are whole: every file of every layer is there and can be read."""
    assert store.check().findings == ()
    found = {}
    for record in store.list():
        snapshots = Snapshotter(store.root)
        settle(snapshots.below(record.config.diff_ids))
        snapshots.make("look", record.config.diff_ids)
        with opened(snapshots.mounts("look")) as fd:
            for path in Path(f"/proc/self/fd/{fd}").rglob("*"):
                if path.is_file():
                    assert len(path.read_bytes()) == path.stat().st_size
                    assert path.stat().st_size or path.parent.name == "etc", f"{path} of {record.names} is empty"
        snapshots.remove("look")
        found |= dict.fromkeys(record.names, record.id)
    return found


def cut(disk: LoopFs, store: ImageStore) -> None:
    """A power cut takes the mounts of layers too."""
    store.unmount_layers()
    disk.cut()


@pytest.mark.parametrize("form", FORMATS)
def test_a_power_cut_after_the_answer_loses_nothing(tmp_path: Path, disk: LoopFs, helper, form: str) -> None:
    need_format(form, tmp_path, helper)
    store = ImageStore(str(disk.path / "root"), helper=helper, snapshot_format=form)
    sources = {name: layout(tmp_path, name) for name in ("one", "two")}
    steps: list[tuple[str, Callable[[], object]]] = [
        ("load", lambda: store.load(f"oci:{sources['one']}")),
        ("tag", lambda: store.tag("x/one:1", "x/tagged:2")),
        ("load again", lambda: store.load(f"oci:{sources['two']}")),
        ("commit", lambda: commit(store, "x/one:1", "x/made:1")),
        ("untag", lambda: store.untag(store.get("x/tagged:2"), ["x/tagged:2"])),
        ("rmi", lambda: store.remove("x/two:1")),
    ]
    for what, step in steps:
        step()
        before = {name: record.id for record in store.list() for name in record.names}
        cut(disk, store)
        assert everything(store) == before, what
    assert set(before) == {"docker.io/x/one:1", "docker.io/x/made:1"}
    store.gc()
    assert store.check().leftovers == ()
    store.unmount_layers()


@pytest.mark.seconds(60 + 20 * CUTS)
@pytest.mark.parametrize("form", FORMATS)
def test_power_cuts_at_random_moments_keep_what_was_acknowledged(
    tmp_path: Path, disk: LoopFs, helper, form: str
) -> None:
    need_format(form, tmp_path, helper)
    chance = random.Random(SEED)
    store = ImageStore(str(disk.path / "root"), helper=helper, snapshot_format=form)
    sources = [layout(tmp_path, f"image{n}") for n in range(3)]
    for number in range(CUTS):
        acknowledged = tmp_path / f"acknowledged{number}"
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                with open(acknowledged, "ab", buffering=0) as told:
                    for source in sources:
                        record = store.load(f"oci:{source}")
                        told.write(f"{record.names[0]} {record.id}\n".encode())
                        made = commit(store, record.id, f"{record.names[0]}-made")
                        told.write(f"{made.names[0]} {made.id}\n".encode())
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.02, 0.8))
        told = acknowledged.read_text() if acknowledged.exists() else ""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _await_all(pid)
        cut(disk, store)
        Snapshotter(store.root).sweep()
        for key in Snapshotter(store.root).keys():  # noqa: SIM118 - no mapping; containers' own are nobody's promise
            Snapshotter(store.root).remove(key)
        have = everything(store)
        for line in told.splitlines():
            name, _, identity = line.partition(" ")
            assert have.get(name) == identity, f"cut {number}, WHERRY_SEED={SEED}"
        for name in have:
            store.remove(name)
        store.gc()
        assert store.check().findings == ()


def _await_all(group: int) -> None:
    """Helpers of the killed process end by themselves. Until then they hold the mount: it would not go by umount."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-group, os.WNOHANG)
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


# ---- full


def pull(store: ImageStore, size: int) -> None:
    with serving(Image(tar(*[entry(f"f{n}", os.urandom(size // 20)) for n in range(20)]))) as server:
        store.pull(f"{server.address}/x/big:1")


class Work(NamedTuple):
    room: int  # bytes that it does not fit into
    act: Callable[[ImageStore, Path], object]


WORKS = {
    "load": Work(2_000_000, lambda store, tmp_path: store.load(f"oci:{layout(tmp_path, 'big', 6_000_000)}")),
    "pull": Work(5_000_000, lambda store, _: pull(store, 6_000_000)),
    "unpack": Work(9_000_000, lambda store, tmp_path: store.load(f"oci:{layout(tmp_path, 'big', 6_000_000)}")),
    "commit": Work(9_000_000, lambda store, _: commit(store, "x/small:1", "x/made:1", big=6_000_000)),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_full_disk_is_said_and_leaves_the_store_whole(tmp_path: Path, disk: LoopFs, helper, name: str) -> None:
    store, work = ImageStore(str(disk.path / "root"), helper=helper), WORKS[name]
    small = store.load(f"oci:{layout(tmp_path, 'small')}")
    filler = disk.fill(work.room)
    with pytest.raises(WherryError) as caught:
        work.act(store, tmp_path)
    assert caught.value.kind is Kind.EXHAUSTED, caught.value
    assert caught.value.hint
    assert everything(store) == {small.names[0]: small.id}
    store.gc()
    assert [path for path in store.check().leftovers if "/ingest/sha256-" not in path] == []  # a pull goes on from it
    filler.unlink()
    work.act(store, tmp_path)
    assert len(everything(store)) == 2
