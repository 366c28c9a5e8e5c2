"""A row that cannot be read: the others are listed as ever, it is told once in the log and by `system check`, and it
can be taken away."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.daemon.cri.catalog import Catalog
from wherry.daemon.cri.server import Server
from wherry.daemon.measures import Measures
from wherry.engine import fence
from wherry.engine.config import Settings
from wherry.engine.db import Container, PodRow, Unreadable
from wherry.engine.engine import Engine
from wherry.engine.pods import records
from wherry.engine.pods.values import PodOptions
from wherry.model import Json, Place

GOOD, BAD, MEMBER, LOST, PLAIN = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)
DAMAGES = ["", '{"options": {"na', "[1]", "{}", '{"options": 5, "member": 5, "user": 5, "ips": 5, "cgroup_made": ""}']


class Wherry:
    """Two pods, the first with two containers, and a container of no pod; what its engine warned of."""

    def __init__(self, top: Path) -> None:
        self.top, self.warnings = top, list[str]()
        (top / "wherry.toml").write_text(f'pod_cgroup_driver = "cgroupfs"\ncgroup_parent = "/none-{os.getpid()}"\n')
        place = Place(str(top / "root"), str(top / "state"), str(top / "wherry.toml"))
        self.engine = Engine(place, self.warnings.append)
        house = self.engine._house
        for pod in (GOOD, BAD):
            kept: Json = {"options": records.encode(PodOptions(pod[:4], "shop", pod)), "ips": [], "cgroup_made": 0}
            house.db.add_pod(PodRow(pod, "shop", pod[:4], pod, 0, 1.0, kept))
            os.makedirs(records.directory(house, pod))
            Path(records.directory(house, pod), "lock").touch()
        for cid, owner in ((MEMBER, GOOD), (LOST, GOOD), (PLAIN, "")):
            kept = {"member": {"name": "c", "image": "i"}, "user": {"uid": 0, "gid": 0, "gids": []}, "argv": ["x"],
                    "options": {"image": "i"}, "image_name": "i", "labels": {}, "exposed": [], "mounts": []}
            house.db.add_container(Container(cid, cid[:4], 1.0, "i", kept, owner))
            os.makedirs(house.container_dir(cid))

    def damage(self, table: str, ref: str, text: str) -> None:
        with sqlite3.connect(f"{self.engine.place.root}/wherry.db") as db:
            db.execute(f"UPDATE {table} SET config = ? WHERE id = ?", (text, ref))
        db.close()

    def listed(self) -> tuple[list[str], list[str]]:
        """As the CRI lists them."""

        async def work() -> tuple[list[str], list[str]]:
            catalog = Catalog(self.engine)
            catalog.start()
            await catalog.fresh()
            catalog.touch(BAD, LOST)
            await catalog.fresh()
            catalog.stop()
            return [entry.value.id for entry in catalog.pods()], [entry.value.id for entry in catalog.members()]

        return asyncio.run(work())


@pytest.fixture
def wherry(tmp_path: Path) -> Iterator[Wherry]:
    made = Wherry(tmp_path)
    yield made
    made.engine.close()


def test_all_are_listed_where_all_is_well(wherry: Wherry) -> None:
    assert [set(found) for found in wherry.listed()] == [{GOOD, BAD}, {MEMBER, LOST}]
    assert wherry.warnings == []
    assert not [found for found in wherry.engine.system_check()["Findings"] if "row" in found["Problem"]]


@pytest.mark.parametrize("text", DAMAGES)
def test_the_others_are_listed_and_it_is_told(wherry: Wherry, text: str) -> None:
    wherry.damage("pods", BAD, text)
    wherry.damage("containers", LOST, text)
    for _ in range(2):
        assert wherry.listed() == ([GOOD], [MEMBER])
    assert len(wherry.warnings) == 2, "once for each"
    assert all(any(f"{what} {ref[:12]}" in line and "cannot be read" in line for line in wherry.warnings)
               for what, ref in (("pod", BAD), ("container", LOST)))  # fmt: skip
    for get, ref in ((wherry.engine.pod, BAD), (wherry.engine.member, LOST)):
        with pytest.raises(Unreadable, match=ref[:12]):
            get(ref)
    found = {one["Subject"]: one["Cure"] for one in wherry.engine.system_check()["Findings"] if "row" in one["Problem"]}
    assert found == {"shop/bbbb": f"crictl rmp -f {BAD[:12]}", "dddd": "wherry rm -f dddd"}
    assert wherry.engine.sweep()["pods"] == []


@pytest.mark.parametrize("text", DAMAGES)
def test_it_can_be_taken_away(wherry: Wherry, text: str) -> None:
    wherry.damage("pods", GOOD, text)
    for cid in (LOST, PLAIN):
        wherry.damage("containers", cid, text)
    wherry.engine.stop_pod(GOOD)
    wherry.engine.remove(PLAIN, force=True)
    wherry.engine.remove_pod(GOOD)
    assert wherry.listed() == ([BAD], [])
    house = wherry.engine._house
    assert house.db.container_ids() == set()
    assert not [cid for cid in (LOST, PLAIN) if os.path.exists(house.container_dir(cid))]
    assert not os.path.exists(records.directory(house, GOOD))


def test_the_minutes_sweep_goes_on_whatever_it_meets(
    wherry: Wherry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def meet() -> None:
        raise KeyError("what nobody thought of")

    async def work() -> None:
        server = Server(Engine(wherry.engine.place), Settings(), Measures())
        monkeypatch.setattr(server._parts.engine, "sweep", meet)
        monkeypatch.setattr("wherry.daemon.cri.server._FIRST_SWEEPS", [0, 0])
        keeping = asyncio.ensure_future(server._keep())
        while caplog.text.count("could not be swept") < 2:
            await asyncio.sleep(0.01)
            assert not keeping.done()
        keeping.cancel()

    asyncio.run(asyncio.wait_for(work(), 10))
    assert "nobody thought of" in caplog.text


def test_nobody_takes_a_damaged_configuration_for_an_empty_one(wherry: Wherry) -> None:
    wherry.damage("containers", PLAIN, "{")
    row = wherry.engine._house.db.find(PLAIN)
    for look in (lambda: row.config["layers"], lambda: row.config.get("layers", ())):
        with pytest.raises(Unreadable, match=PLAIN[:12]):
            look()
    assert not fence.readable(wherry.engine._house, row)
    assert {one["Id"] for one in wherry.engine.containers(all=True)} == {MEMBER, LOST}
