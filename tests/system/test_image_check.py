"""`system check` finds what is not whole, `--repair` mends it; `system df` is what du says; sweeps beside work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from helpers.badregistry import Handler, on, serving
from helpers.wherry import Wherry, until
from image_support import Image, entry, folder, need_format, needs_root, sha, tar
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.image.author import add_layer
from wherry.image.snapshot import Snapshotter
from wherry.image.store import ImageStore
from wherry.model import Place

pytestmark = [pytest.mark.root, needs_root]


def load(store: ImageStore, tmp_path: Path, name: str, *layers: bytes):
    return store.load(f"oci:{Image(*layers).layout(tmp_path / name, f'x/{name}:1')}")


# ---- check


def damaged_blob(root: Path, image) -> str:
    path = root / "images/blobs/sha256" / image.layers[0].digest[7:]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "another digest"


def shortened_blob(root: Path, image) -> str:
    path = root / "images/blobs/sha256" / image.layers[0].digest[7:]
    path.write_bytes(path.read_bytes()[:-1])
    return "bytes, not"


def missing_config(root: Path, image) -> str:
    (root / "images/blobs/sha256" / image.id[7:]).unlink()
    return "config.v1+json) is missing"


def missing_manifest(root: Path, image) -> str:
    (root / "images/blobs/sha256" / image.manifest[7:]).unlink()
    return "manifest is missing"


def layer_without_size(root: Path, image) -> str:
    (root / "layers" / image.config.diff_ids[0][7:] / "size.json").unlink()
    return "size.json"


def strange_layer(root: Path, _image) -> str:
    (root / "layers/strange").mkdir()
    return "no diff id"


def strange_blob(root: Path, _image) -> str:
    (root / "images/blobs/sha256/strange").write_bytes(b"x")
    return "is no blob"


@pytest.mark.parametrize(
    "damage",
    [damaged_blob, shortened_blob, missing_config, missing_manifest, layer_without_size, strange_layer, strange_blob],
)
def test_damage_is_found_and_mended(store, tmp_path, damage):
    image = load(store, tmp_path, "app", tar(folder("d"), entry("d/f", os.urandom(5000))))
    other = load(store, tmp_path, "other", tar(entry("g", b"two")))
    assert store.check().findings == ()
    words = damage(Path(store.root), image)
    report = store.check()
    assert any(words in finding.problem for finding in report.findings), report
    assert not any(other.manifest in finding for finding in report.findings)
    assert len(store.repair(report)) == len(report.findings)
    store.gc()
    assert store.check() == store.check(quick=True)
    assert store.check().findings == store.check().leftovers == ()
    assert load(store, tmp_path, "app", tar(entry("h", b"again"))).names == ("docker.io/x/app:1",)
    assert store.get("x/other:1").id == other.id


def test_a_layer_whose_file_system_is_gone_is_no_empty_layer(helper, tmp_path):
    need_format("erofs", tmp_path, helper)
    store = ImageStore(str(tmp_path / "root"), helper=helper, snapshot_format="erofs")
    image = load(store, tmp_path, "app", tar(entry("f", b"x")))
    layer = Path(store.root, "layers", image.config.diff_ids[0][7:])
    assert store.check().findings == ()
    (layer / "layer.erofs").unlink()
    report = store.check()
    assert [finding.kind for finding in report.findings] == ["layer"]
    assert len(store.repair(report)) == 1
    assert not layer.exists()


def test_a_quick_check_reads_no_blobs(store, tmp_path):
    image = load(store, tmp_path, "app", tar(entry("f", os.urandom(5000))))
    damaged_blob(Path(store.root), image)
    assert store.check(quick=True).findings == ()


def test_a_snapshot_without_its_layer_is_found(store, tmp_path):
    image = load(store, tmp_path, "app", tar(entry("f", b"1")))
    snapshots = Snapshotter(store.root)
    snapshots.make("box", image.config.diff_ids)
    shutil.rmtree(Path(store.root, "layers", image.config.diff_ids[0][7:]))
    (finding,) = store.check().findings
    assert (finding.kind, finding.subject) == ("snapshot", "box")
    snapshots.remove("box")
    assert store.check().findings == ()


def test_the_verb(wherry: Wherry, busybox: str):
    assert wherry("system", "check").stdout.endswith("clean\n")
    wherry("load", "-q", busybox)
    box, volume = wherry.name("box"), wherry.name("vol")
    wherry("create", "--name", box, "-v", f"{volume}:/v", "busybox", "true")
    assert json.loads(wherry("system", "check", "--format", "json").stdout)["Findings"] == []
    cid = wherry.inspect(box)["Id"]
    shutil.rmtree(wherry.root / "snapshots" / cid)
    (wherry.root / "containers" / ("0" * 64)).mkdir()
    done = wherry("system", "check", check=False)
    assert done.returncode == 1
    assert "its snapshot is missing" in done.stdout
    assert "left over: " in done.stdout
    wherry("rm", "-f", box)
    wherry("system", "check", "--repair")
    done = wherry("system", "check")
    assert "left over" not in done.stdout


# ---- df


ROOMS = {
    "Images": ("images", "ingest", "layers", "leases"),
    "Containers": ("containers", "snapshots"),
    "Local Volumes": ("volumes",),
}


def rooms(wherry: Wherry) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each kind by us and by du; the database is open meanwhile, as its log is a part of it."""
    engine = Engine(Place(str(wherry.root), str(wherry.state), str(wherry.config)))
    try:
        found = {name: room["Size"] for name, room in engine.system_df()["Usage"].items()}
        counted = {name: du(*(wherry.root / part for part in parts)) for name, parts in ROOMS.items()}
        return found, counted | {"Build Cache": 0, "Other": du(wherry.root) - sum(counted.values())}
    finally:
        engine.close()


def du(*paths: Path) -> int:
    command = ["du", "-s", "-x", "-B1", "-c", *(path for path in paths if path.exists())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout.splitlines()[-1].split()[0])


def test_df_is_what_du_says(wherry: Wherry, busybox: str):
    wherry("load", "-q", busybox)
    box, dead = wherry.name("box"), wherry.name("dead")
    fill = "dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; ln /big /big2; echo x > /v/f; echo log"
    wherry("run", "--name", dead, "-v", f"{wherry.name('vol')}:/v", "busybox", "sh", "-c", fill)
    wherry("commit", dead, "made:1")
    wherry("run", "-d", "--name", box, "busybox", "sleep", "1000")
    sizes, counted = rooms(wherry)
    assert sizes == counted
    assert sizes["Containers"] > 3 << 20 < sizes["Images"]
    said = wherry("system", "df", "-v").stdout
    assert "UNIQUE SIZE" in said
    assert "Total on disk: " in said
    wherry("rm", "-f", box, dead)
    wherry("image", "prune", "-a", "-f")
    assert rooms(wherry)[0]["Images"] < 100_000


# ---- sweeps beside living work


def orphan(store: ImageStore, tmp_path: Path, name: str) -> tuple[str, str]:
    """A blob and a layer that no image names: (digest, diff id)."""
    record = load(store, tmp_path, name, tar(entry(name, os.urandom(3000))))
    layer = record.layers[0].digest, record.config.diff_ids[0]
    store.blobs.change(lambda entries: [e for e in entries if e.digest != record.manifest])
    return layer


def there(store: ImageStore, digest: str, diff_id: str) -> tuple[bool, bool]:
    return os.path.exists(store.blobs.path(digest)), os.path.isdir(f"{store.root}/layers/{diff_id[7:]}")


def test_a_sweep_beside_a_lease_takes_what_it_does_not_use(store, tmp_path):
    used, unused = orphan(store, tmp_path, "used"), orphan(store, tmp_path, "unused")
    kept = load(store, tmp_path, "kept", tar(entry("kept", b"1")))
    time.sleep(0.05)  # the clock of file systems ticks every few milliseconds
    with store.blobs.lease():
        store.blobs.use(*used)
        made = add_layer(store.blobs, lambda out: out(tar(entry("new", b"2"))))
        assert store.gc() >= 3000
        assert there(store, *used) == (True, True)
        assert there(store, *unused) == (False, False)
        assert os.path.exists(store.blobs.path(made.descriptor.digest))
    assert store.gc() >= 3000
    assert there(store, *used) == (False, False)
    assert not os.path.exists(store.blobs.path(made.descriptor.digest))
    assert store.get("x/kept:1").id == kept.id
    assert store.check().findings == ()


def test_a_sweep_beside_a_pull_that_waits_for_its_registry(store, tmp_path):
    """A layer is there already, another does not come: garbage goes, the pull is not disturbed."""
    garbage = orphan(store, tmp_path, "garbage")
    layers = [tar(entry(f"layer{n}", os.urandom(50_000))) for n in range(3)]
    image = Image(*layers)
    released = threading.Event()
    pulled: list[object] = []

    def late(handler: Handler) -> None:
        released.wait(60)
        handler.serve()

    time.sleep(0.05)
    with serving(image) as server:
        server.rules = [on(image.layers[2]["digest"], late)]
        thread = threading.Thread(target=lambda: pulled.append(store.pull(f"{server.address}/a/b:1")))
        thread.start()
        first = [Path(store.root, "layers", sha(layer)[7:]) for layer in layers[:2]]
        until(lambda: all(path.is_dir() for path in first), 30)
        assert store.gc() >= 3000
        assert there(store, *garbage) == (False, False)
        assert all(path.is_dir() for path in first)
        assert store.check().findings == store.check().leftovers == ()  # what is on its way is no leftover
        released.set()
        thread.join(60)
    assert [record.config.diff_ids for record in pulled] == [tuple(sha(layer) for layer in layers)]
    assert store.check().findings == ()
    assert len(server.requests(image.layers[0]["digest"])) == 1  # nothing was fetched twice


def test_a_dead_process_keeps_nothing(store, tmp_path):
    used = orphan(store, tmp_path, "used")
    pid = os.fork()
    if pid == 0:
        try:
            with store.blobs.lease():
                store.blobs.use(*used)
                (tmp_path / "ready").write_bytes(b"")
                signal.pause()
        finally:
            os._exit(0)
    until((tmp_path / "ready").exists)
    store.gc()
    assert there(store, *used) == (True, True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store.gc()
    assert there(store, *used) == (False, False)
    assert os.listdir(f"{store.root}/leases") == []


def test_no_name_is_given_to_what_was_swept(store, tmp_path):
    record = load(store, tmp_path, "app", tar(entry("f", b"1")))
    descriptor = store.blobs.entries()[0]
    store.remove("x/app:1")
    with pytest.raises(WherryError) as caught:
        store.blobs.name(descriptor, ["docker.io/x/app:2"])
    assert caught.value.kind is Kind.NOT_FOUND
    assert store.list() == []
    assert record.id


def test_pulls_removals_and_sweeps_at_once(tmp_path, helper):
    """Processes that load and remove images with shared layers, and others that sweep: what is named is whole."""
    root, seconds = str(tmp_path / "root"), float(os.environ.get("WHERRY_RACE_SECONDS", "6"))
    base = tar(entry("base", os.urandom(200_000)))
    sources = [
        Image(base, tar(entry(f"own{n}", os.urandom(50_000)))).layout(tmp_path / f"l{n}", f"x/race{n}:1")
        for n in range(3)
    ]
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        store = ImageStore(root, helper=helper)
        rounds = 0
        while time.monotonic() < end:
            rounds += 1
            record = store.load(f"oci:{sources[number]}")
            key = f"box-{number}-{rounds}"
            snapshots = Snapshotter(root)
            snapshots.make(key, record.config.diff_ids)  # NOT_FOUND here would be a sweep that took what is named
            assert all(os.path.isdir(path) for path in snapshots.lower_paths(key))
            store.remove(f"x/race{number}:1")
            assert all(os.path.isdir(path) for path in snapshots.lower_paths(key)), "a layer of a snapshot went"
            snapshots.remove(key)

    def sweep(_number: int) -> None:
        store = ImageStore(root, helper=helper)
        while time.monotonic() < end:
            store.gc()
            assert store.check(quick=True).findings == ()

    assert _together([(work, n) for n in range(3)] + [(sweep, 0), (sweep, 1)]) == [0] * 5
    store = ImageStore(root, helper=helper)
    store.gc()
    report = store.check()
    assert report.findings == report.leftovers == ()
    assert report.counts == {"images": 0, "blobs": 0, "layers": 0, "snapshots": 0}


def _together(jobs) -> list[int]:
    pids = []
    for job, number in jobs:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                job(number)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_threads_of_one_store_have_leases_of_their_own(store, tmp_path):
    source = Image(tar(entry("f", os.urandom(100_000)))).layout(tmp_path / "l", "x/thread:1")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                store.load(f"oci:{source}")
                store.gc()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert store.check().findings == ()
    assert os.listdir(f"{store.root}/leases") == []
