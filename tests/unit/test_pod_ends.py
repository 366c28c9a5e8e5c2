"""Pods and their containers where a step fails or hangs: who is kept waiting, what is told, who finishes it. Without
namespaces: what they hold is a CNI attachment, whose plugin does as it is told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.engine import start
from wherry.engine.db import Container, PodRow
from wherry.engine.engine import Engine
from wherry.engine.pods import building, records, sandbox
from wherry.engine.pods.values import Held, MemberOptions, PodMount, PodOptions
from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Attachment, Place

POD, CONTAINER = "a" * 64, "c" * 64
PLUGIN = """#!/bin/sh
# tells that it was called, and whether whoever makes something would wait for it
echo $CNI_COMMAND >> {top}/calls
flock --shared --nonblock {top}/root/making.lock true || echo $CNI_COMMAND >> {top}/waits
[ -e {top}/fail ] && {{ echo '{{"cniVersion":"1.0.0","code":11,"msg":"told to fail"}}'; exit 1; }}
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion":"1.0.0","ips":[{{"address":"192.0.2.7/24"}}]}}'
exit 0
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A wherry with one CNI list, and one ready pod that owes a DEL."""
    (tmp_path / "plugin").write_text(PLUGIN.format(top=tmp_path))
    (tmp_path / "plugin").chmod(0o755)
    conflist = {"cniVersion": "1.0.0", "name": "podnet", "plugins": [{"type": "plugin"}]}
    (tmp_path / "10-podnet.conflist").write_text(json.dumps(conflist))
    settings = f'cni_conf = "{tmp_path}"\ncni_path = "{tmp_path}"\npod_cgroup_driver = "cgroupfs"\n'
    (tmp_path / "wherry.toml").write_text(f'cgroup_parent = "/none-{os.getpid()}"\n{settings}')
    made = Engine(Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "wherry.toml")))
    made.prepare()
    pod(made, POD)
    yield made
    made.close()


def pod(engine: Engine, pid: str, *, row: bool = True) -> None:
    house = engine._house
    for top in (house.place.root, house.place.state):
        os.makedirs(f"{top}/pods/{pid}")
    Path(f"{house.place.root}/pods/{pid}/lock").touch()
    Path(f"{house.place.root}/pods/{pid}/network").write_text('{"network": "podnet", "interface": "eth0"}')
    house.networks.attach(pid, f"{house.place.state}/netns/{pid}", Attachment("podnet"))
    if row:
        kept = {"options": records.encode(PodOptions("web", "shop", pid)), "ips": [], "cgroup_made": 0}
        house.db.add_pod(PodRow(pid, "shop", "web", pid, 0, 1.0, kept))
        records.store(house, Held(pid, "", "", ""))


def actions(engine: Engine) -> list[str]:
    found = engine.events(since=1, until=time.time() + 1, filters={"type": ["pod"]}, follow=False)
    return [event["Action"] for event in found]


def said(tmp_path: Path, file: str) -> list[str]:
    path = tmp_path / file
    return path.read_text().split() if path.exists() else []


def failed_stop(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(WherryError, match="told to fail"):
        engine.stop_pod(POD)
    (tmp_path / "fail").unlink()
    assert not engine.pod(POD).ready


# ---- stops


def test_a_stop_is_told_when_it_is_done_and_once(engine: Engine, tmp_path: Path) -> None:
    failed_stop(engine, tmp_path)
    assert actions(engine) == []
    for _ in range(2):
        engine.stop_pod(POD)
        assert actions(engine) == ["stop"]


def test_a_stop_that_was_begun_is_finished_by_the_next_sweep(engine: Engine, tmp_path: Path) -> None:
    assert engine.sweep()["pods"] == []
    assert engine.pod(POD).ready
    failed_stop(engine, tmp_path)
    with held_by_another(engine):
        assert engine.sweep()["pods"] == []
    assert engine.sweep()["pods"] == [POD]
    assert actions(engine) == ["stop"]
    assert not os.path.exists(records.run_directory(engine._house, POD))
    assert engine.sweep()["pods"] == []


def held_by_another(engine: Engine) -> Any:
    return files.flock(f"{engine.place.root}/pods/{POD}/lock", 0, shared=True)


def test_no_sweep_stops_a_pod_that_is_made_at_that_moment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = records.load(engine._house, POD)
    assert ready is not None
    records.forget(engine._house, POD)
    lock = records.lock

    def late(*words: Any, **options: Any) -> Any:
        records.store(engine._house, ready)  # between the sweep's look and its lock
        return lock(*words, **options)

    monkeypatch.setattr(records, "lock", late)
    assert not sandbox.finish(engine._house, POD)
    assert engine.pod(POD).ready


# ---- sweeps


def orphan(engine: Engine, cid: str) -> None:
    """What a killed command left of a container, with an attachment."""
    house = engine._house
    netns = Path(f"{house.place.state}/netns/{cid}")
    netns.parent.mkdir(exist_ok=True)
    netns.touch()
    house.networks.attach(cid, str(netns), Attachment("podnet"))
    for path in (house.container_dir(cid), house.state_dir(cid)):
        os.makedirs(path)


def test_what_hangs_on_an_orphan_s_network_keeps_nobody_waiting(engine: Engine, tmp_path: Path) -> None:
    pod(engine, "b" * 64, row=False)
    orphan(engine, CONTAINER)
    (tmp_path / "fail").touch()
    engine.sweep()
    assert said(tmp_path, "calls").count("DEL") >= 2
    (tmp_path / "fail").unlink()
    orphan(engine, "d" * 64)
    engine.sweep()
    assert said(tmp_path, "waits") == []
    attached = {joined.container_id for joined in engine._house.networks.attached()}
    assert attached == {POD, CONTAINER}, "the living keep what they have; what could not be given back, gc tries again"


def test_an_orphan_that_somebody_removes_is_left_to_him(engine: Engine) -> None:
    house = engine._house
    os.makedirs(house.container_dir(CONTAINER))
    with files.flock(f"{house.container_dir(CONTAINER)}/lock", 0):
        engine.sweep()
        assert os.path.isdir(house.container_dir(CONTAINER))
    engine.sweep()
    assert not os.path.exists(house.container_dir(CONTAINER))


# ---- containers


class Images:
    """Of the store: an image that takes its time to be unpacked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.unpacked: list[str] = []

    def get(self, name: str) -> str:
        return name

    def ensure_unpacked(self, record: str) -> None:
        with records.lock(self._engine._house, POD, 0):  # as a stop of the pod takes it
            self.unpacked.append(record)


def test_a_stop_does_not_wait_while_images_are_unpacked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    house = engine._house
    images = Images(engine)
    house.__dict__["images"] = images

    def make(*_words: Any) -> str:
        with pytest.raises(WherryError) as error, records.lock(house, POD, 0):
            pass
        assert error.value.kind is Kind.CONFLICT, "from here on it waits"
        return CONTAINER

    monkeypatch.setattr(building, "_make", make)
    volume = PodMount("/data", "", readonly=True, image="sha256:2")
    asked = MemberOptions("c", "sha256:1", mounts=(volume, PodMount("/tmp", "/tmp")))
    assert building.create(house, POD, asked) == CONTAINER
    assert images.unpacked == ["sha256:1", "sha256:2"]
    engine.stop_pod(POD)
    with pytest.raises(WherryError) as error:
        building.create(house, POD, asked)
    assert error.value.kind is Kind.CONFLICT
    assert len(images.unpacked) == 2, "nothing is unpacked for a pod that is not ready"


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied", "/x"), KeyError("x")])
def test_whatever_fails_a_start_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    house = engine._house
    asked = MemberOptions("c", "sha256:1")
    kept = {"member": {"name": "c", "image": "sha256:1"}, "user": {"uid": 0, "gid": 0, "gids": []},
            "options": {"image": "x"}}  # fmt: skip
    house.db.add_container(Container(CONTAINER, "c", 1.0, "sha256:1", kept, POD))
    os.makedirs(house.container_dir(CONTAINER))

    def fail(*_words: Any, **_options: Any) -> None:
        raise problem

    monkeypatch.setattr(start, "_launch", fail)
    with pytest.raises(type(problem)):
        engine.start(CONTAINER)
    told = engine.member(CONTAINER)
    assert (told.options, told.state, told.reason, told.code) == (asked, "exited", "StartError", 128)
    assert type(problem).__name__ in told.message
    assert told.finished > 0


def test_nothing_is_remembered_of_what_is_removed(engine: Engine) -> None:
    house = engine._house
    house.db.add_container(Container(CONTAINER, "c", 1.0, "sha256:1", {"options": {"image": "x"}}, POD))
    os.makedirs(house.container_dir(CONTAINER))
    house.measured[CONTAINER] = time.monotonic() + 60, (1, 1)
    engine.remove_member(CONTAINER)
    assert house.measured == {}
