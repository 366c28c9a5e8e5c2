"""kill -9 in the middle of work on images: `system check` finds nothing wrong, and the work done again succeeds.

Half of the moments are counted (the Nth time that the process changes a file), half are times. WHERRY_IMAGE_KILLS says
how many (scripts/soak: 200), WHERRY_SEED repeats them. A kind of work is one row of WORKS.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.registry import Registry
from helpers.wherry import Wherry
from image_support import Image, entry, folder, skopeo_push, tar
from wherry.engine.build.values import BuildOptions
from wherry.engine.engine import Engine
from wherry.errors import WherryError
from wherry.model import Place

KILLS = int(os.environ.get("WHERRY_IMAGE_KILLS", "20"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
CHANGES = frozenset((
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "os.utime",
))  # fmt: skip


class Scene(NamedTuple):
    """What there is to work with."""

    wherry: Wherry
    busybox: str
    remote: str  # an image in a registry
    archive: Path
    box: str  # a container with changes

    def engine(self) -> Engine:
        return Engine(Place(str(self.wherry.root), str(self.wherry.state), str(self.wherry.config)))


class Work(NamedTuple):
    """`before` brings the state in which `act` has something to do; `done` tells whether it was done."""

    before: Callable[[Engine, Scene], object]
    act: Callable[[Engine, Scene], object]
    done: Callable[[Engine, Scene], bool]


def without(*names: str) -> Callable[[Engine, Scene], object]:
    """No image of these names, and nothing of it in the store."""

    def remove(engine: Engine, scene: Scene) -> None:
        for name in names:
            try:
                engine.remove_image(name.format(remote=scene.remote), force=True)
            except WherryError:
                continue
        engine.image_prune()

    return remove


def has(name: str) -> Callable[[Engine, Scene], bool]:
    return lambda engine, scene: bool(engine.inspect_image(name.format(remote=scene.remote))["Id"])


def load(engine: Engine, scene: Scene) -> None:
    engine.load(str(scene.archive))


def rmi(engine: Engine, scene: Scene) -> None:
    """Also where the killed one came as far as to the name."""
    with contextlib.suppress(WherryError):
        engine.remove_image("x/loaded:1")
    assert gone(engine, scene)


def prune(engine: Engine, _scene: Scene) -> None:
    engine.image_prune(all=True)


def build(engine: Engine, scene: Scene) -> None:
    context = str(scene.archive.with_name("context"))
    engine.build(BuildOptions(context, tags=("built:1",), no_cache=True, network="none"))


def gone(engine: Engine, _scene: Scene) -> bool:
    return not engine.images(filters={"reference": ["x/loaded"]})


WORKS = {
    "pull": Work(without("{remote}"), lambda engine, scene: engine.pull(scene.remote), has("{remote}")),
    "load": Work(without("x/loaded:1"), load, has("x/loaded:1")),
    "commit": Work(without("made:1"), lambda engine, scene: engine.commit(scene.box, "made:1"), has("made:1")),
    "build": Work(without("built:1"), build, has("built:1")),
    "rmi": Work(load, rmi, gone),
    "prune": Work(load, prune, gone),
}


@pytest.fixture
def scene(wherry: Wherry, busybox: str, registry: Registry, tmp_path: Path) -> Scene:
    layers = [tar(folder("d"), *[entry(f"d/{n}-{i}", os.urandom(2000)) for i in range(150)]) for n in range(3)]
    image = Image(*layers)
    skopeo_push(image.layout(tmp_path / "layout"), "latest", f"{registry.host}/killed:1")
    wherry("load", "-q", busybox)
    box = wherry.name("box")
    script = "cp -r /bin /copy; rm /bin/ls; for i in $(seq 99); do echo $i > /f$i; done"
    wherry("run", "--name", box, "busybox", "sh", "-c", script)
    wherry("load", "-q", f"oci:{image.layout(tmp_path / 'layout2', 'x/loaded:1')}")
    archive = tmp_path / "archive.tar"
    wherry("save", "-o", archive, "x/loaded:1")
    wherry("rmi", "x/loaded:1")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text("FROM busybox\nCOPY big /big\nRUN echo done > /done\n")
    (tmp_path / "context/big").write_bytes(os.urandom(300_000))
    return Scene(wherry, busybox, f"{registry.host}/killed:1", archive, box)


def child(scene: Scene, work: Work, changes: int, report: Path | None = None) -> int:
    """Do the work in a process of its own, which kills itself at the Nth change of a file (0: never)."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        seen = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                seen += 1
                if seen == changes:
                    os.kill(os.getpid(), signal.SIGKILL)

        engine = scene.engine()
        sys.addaudithook(watch)
        work.act(engine, scene)
        engine.close()
        if report is not None:
            report.write_text(str(seen))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def measure(scene: Scene, work: Work, report: Path) -> tuple[int, float]:
    """How many changes and seconds the work takes."""
    prepare(scene, work)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child(scene, work, 0, report), 0)[1]) == 0
    return int(report.read_text()), time.monotonic() - began


def prepare(scene: Scene, work: Work) -> None:
    engine = scene.engine()
    work.before(engine, scene)
    engine.close()


def kill_once(scene: Scene, work: Work, chance: random.Random, total: int, seconds: float) -> bool:
    prepare(scene, work)
    counted = chance.random() < 0.5
    pid = child(scene, work, chance.randint(1, total) if counted else 0)
    if not counted:
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def settled(scene: Scene, work: Work, what: str) -> None:
    """What `system check` says now, the work again, and that the next sweep leaves nothing."""
    engine = scene.engine()
    try:
        report = engine.system_check()
        assert report["Findings"] == [], what
        work.act(engine, scene)
        assert work.done(engine, scene), what
        engine.gc()
        report = engine.system_check()
        assert (report["Findings"], report["Leftovers"]) == ([], []), what
    finally:
        engine.close()


@pytest.mark.seconds(120 + 5 * KILLS)
def test_killing_work_on_images_at_random_moments(scene: Scene, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    sizes = {name: measure(scene, work, tmp_path / name) for name, work in WORKS.items()}
    killed = 0
    for number in range(KILLS):
        name = list(WORKS)[number % len(WORKS)]
        dead = kill_once(scene, WORKS[name], chance, *sizes[name])
        killed += dead
        settled(scene, WORKS[name], f"{name} of {sizes[name]}, kill {number}, WHERRY_SEED={SEED}")
    assert killed > KILLS / 2, sizes
