"""What plugins are told of each verb, in which order, and what they make of it; the verbs' own work is put aside, and
done for true in tests/system/test_nri.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.nriplugin import NriPlugin, Refusal
from helpers.wherry import until
from wherry.daemon.nri import api_pb2 as pb
from wherry.daemon.nri.engine import PluggedEngine
from wherry.engine.engine import Engine
from wherry.engine.pods.values import Held, Member, MemberOptions, Pod, PodOptions
from wherry.engine.undo import Undo
from wherry.errors import Kind, WherryError
from wherry.model import Json, Place

CONFIG: Json = {
    "process": {"args": ["app"], "env": ["A=1"]}, "mounts": [],
    "linux": {"resources": {"devices": []}, "namespaces": []},
}  # fmt: skip


class Tail:
    """Events of the engine, as they are given."""

    def __init__(self) -> None:
        self.missed = False
        self.given: list[Json] = []

    def more(self) -> list[Json]:
        found, self.given = self.given, []
        return found


class World:
    """Pods and containers in memory, in the stead of the engine's verbs."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.members: dict[str, Member] = {}
        self.configs: dict[str, Json] = {}
        self.tail = Tail()
        self.late = ""  # a verb that fails at its end

    def patch(self, engine: PluggedEngine, patch: pytest.MonkeyPatch) -> None:
        hooks = engine._house.hooks
        for name in ("run_pod", "stop_pod", "remove_pod", "update_pod", "create_member", "start", "stop_member",
                     "remove_member", "update_member", "pod", "member"):  # fmt: skip
            verb = getattr(self, f"_{name}")
            patch.setattr(Engine, name, lambda _, *args, verb=verb, **more: verb(hooks, *args, **more))
        patch.setattr(Engine, "pods", lambda _: list(self.pods.values()))
        patch.setattr(Engine, "members", lambda _: list(self.members.values()))
        patch.setattr(Engine, "bundle_config", lambda _, ref: self.configs[ref])
        patch.setattr(Engine, "changes", lambda _: self.tail)

    def _run_pod(self, hooks: Any, options: PodOptions) -> str:
        pod = Pod(options.name, options, 1.0, Held(options.name, "/ns/net", "", ""))
        with Undo() as undo:
            undo.add(hooks.lost_pod, pod)
            hooks.run_pod(pod)
            self._fail("run_pod")
            self.pods[pod.id] = pod
        return pod.id

    def _fail(self, verb: str) -> None:
        if self.late == verb:
            raise WherryError(Kind.INTERNAL, "told to fail")

    def _stop_pod(self, hooks: Any, ref: str) -> None:
        pod = self.pods.get(ref)
        if pod is not None and pod.ready:
            for member in [one for one in self.members.values() if one.pod == ref]:
                self._stop_member(hooks, member.id, 0)
            hooks.stop_pod(pod)
            self.pods[ref] = pod._replace(held=None)

    def _remove_pod(self, hooks: Any, ref: str) -> None:
        self._stop_pod(hooks, ref)
        self.pods.pop(ref, None)

    def _update_pod(self, _hooks: Any, ref: str, resources: Json, _overhead: Json) -> None:
        pod = self.pods[ref]
        self.pods[ref] = pod._replace(options=pod.options._replace(resources=resources))

    def _create_member(self, hooks: Any, ref: str, options: MemberOptions) -> str:
        if options.name in self.members:
            return options.name
        member = Member(options.name, ref, options, "sha256:1", 1.0, "creating")
        with Undo() as undo:
            undo.add(hooks.lost_member, member.id)
            member, config = hooks.create_member(self.pods[ref], member, CONFIG)
            self._fail("create_member")
            self.configs[member.id], self.members[member.id] = config, member._replace(state="created")
        return member.id

    def _start(self, _hooks: Any, ref: str, **_more: Any) -> None:
        self._fail("start")
        self.members[ref] = self.members[ref]._replace(state="running", pid=7)

    def _stop_member(self, _hooks: Any, ref: str, _timeout: int) -> None:
        if ref in self.members:
            self.members[ref] = self.members[ref]._replace(state="exited", pid=0, code=137)

    def _remove_member(self, _hooks: Any, ref: str) -> None:
        self.members.pop(ref, None)

    def _update_member(self, _hooks: Any, ref: str, resources: Json, _notes: Mapping[str, str]) -> None:
        member = self._member(None, ref)
        self.members[ref] = member._replace(options=member.options._replace(resources=resources))

    def _pod(self, _hooks: Any, ref: str) -> Pod:
        return self._got(self.pods, ref)

    def _member(self, _hooks: Any, ref: str) -> Member:
        return self._got(self.members, ref)

    def _got(self, table: dict[str, Any], ref: str) -> Any:
        if ref not in table:
            raise WherryError(Kind.NOT_FOUND, ref)
        return table[ref]


class Stage:
    """An engine with plugins, and its world."""

    def __init__(self, engine: PluggedEngine, world: World, path: Path) -> None:
        self.engine, self.world, self.path = engine, world, path

    def plugin(self, index: str = "10", **handlers: Any) -> NriPlugin:
        return NriPlugin(self.path, "p", index, handlers)

    @contextmanager
    def join(self, plugin: NriPlugin) -> Iterator[NriPlugin]:
        there = self.engine._plugins._plugins
        before = len(there)
        with plugin:
            plugin.joined()
            until(lambda: len(there) == before + 1, 5)
            yield plugin

    def pod(self, name: str = "web") -> str:
        return self.engine.run_pod(PodOptions(name, "shop", "u"))

    def member(self, name: str = "app", **more: Any) -> str:
        return self.engine.create_member("web", MemberOptions(name, "img", **more))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    path, world = tmp_path / "nri.sock", World()
    place = Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "wherry.toml"))
    engine = PluggedEngine(place, print, str(path), 2)
    world.patch(engine, monkeypatch)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(engine.serve(), loop).result(10)
    yield Stage(engine, world, path)
    asyncio.run_coroutine_threadsafe(engine.leave(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def methods(plugin: NriPlugin) -> list[str]:
    """What it was told, but for being asked as a validator."""
    return [method for method, _ in plugin.events if method != "ValidateContainerAdjustment"]


def refuse(_: object) -> None:
    raise Refusal("no")


LIFE = ["RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
        "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"]  # fmt: skip


def test_a_life_is_told_in_order_and_once(stage: Stage) -> None:
    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        stage.member()
        stage.member()  # the same again
        stage.engine.start("app")
        for _ in range(2):
            stage.engine.stop_member("app", 1)
        for _ in range(2):
            stage.engine.remove_member("app")
        for _ in range(2):
            stage.engine.stop_pod("web")
        for _ in range(2):
            stage.engine.remove_pod("web")
        assert methods(plugin) == LIFE
        start = plugin.told("StartContainer")[0]
        assert (start.pod.name, start.container.id, list(start.container.args)) == ("web", "app", ["app"])
        assert start.container.state == pb.CONTAINER_CREATED
        assert plugin.told("PostStartContainer")[0].container.pid == 7
        assert plugin.told("StopContainer")[0].container.exit_code == 137
        assert plugin.told("StopPodSandbox")[0].pod.linux.namespaces[0].path == "/ns/net"


def test_the_end_of_a_pod_is_told_container_by_container(stage: Stage) -> None:
    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        for name in ("a", "b"):
            stage.engine.start(stage.member(name))
        plugin.events.clear()
        stage.engine.stop_pod("web")
        assert methods(plugin) == ["StopContainer", "StopContainer", "StopPodSandbox"]
        stage.engine.remove_pod("web")
        assert methods(plugin)[3:] == ["RemoveContainer", "RemoveContainer", "RemovePodSandbox"]


def test_an_end_that_nobody_asked_for_is_told(stage: Stage) -> None:
    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        stage.engine.start(stage.member())
        stage.world._stop_member(None, "app", 0)
        stage.world.tail.given.append({"Type": "container", "Action": "die", "Actor": {"ID": "app"}, "pod": "web"})
        until(lambda: "StopContainer" in methods(plugin), 5)
        stage.engine.remove_member("app")
        assert methods(plugin)[-2:] == ["StopContainer", "RemoveContainer"]


def test_what_a_plugin_refuses_is_taken_back(stage: Stage) -> None:
    with stage.join(stage.plugin("10")) as first, stage.join(stage.plugin("20", RunPodSandbox=refuse)) as second:
        with pytest.raises(WherryError, match="20-p refuses RunPodSandbox: no"):
            stage.pod()
        assert methods(first) == methods(second) == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
        assert not stage.world.pods
        second.handlers.clear()
        stage.pod()
        second.handlers["CreateContainer"] = refuse
        with pytest.raises(WherryError, match="20-p refuses CreateContainer: no"):
            stage.member()
        assert not stage.world.members
        assert methods(first)[4:] == ["CreateContainer", "StopContainer", "RemoveContainer"]
        second.handlers = {"StartContainer": refuse}
        stage.member()
        with pytest.raises(WherryError, match="20-p refuses StartContainer: no"):
            stage.engine.start("app")
        assert stage.world.members["app"].state == "created"
        second.handlers = dict.fromkeys(LIFE[5:], refuse)
        stage.engine.remove_pod("web")  # what has happened cannot be refused
        assert not stage.world.pods


def test_what_fails_later_is_taken_back_too(stage: Stage) -> None:
    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        stage.world.late = "create_member"
        with pytest.raises(WherryError, match="told to fail"):
            stage.member()
        assert methods(plugin)[1:] == ["CreateContainer", "StopContainer", "RemoveContainer"]
        stage.world.late = ""
        stage.member()
        assert stage.engine._gate._inside == set()
        assert stage.engine._drafts == {}


def test_adjustments_of_two_plugins(stage: Stage) -> None:
    def adjust(request: Any) -> Any:
        key = f"SAW_{len(request.container.env)}"
        made = pb.ContainerAdjustment(env=[pb.KeyValue(key=key, value="1")])
        made.linux.resources.cpu.cpus = "0" if key == "SAW_1" else ""
        return pb.CreateContainerResponse(adjust=made)

    with stage.join(stage.plugin("20", CreateContainer=adjust)), stage.join(stage.plugin("10", CreateContainer=adjust)):
        stage.pod()
        stage.member(resources={"cpu": {"shares": 5}})
        assert stage.world.configs["app"]["process"]["env"] == ["A=1", "SAW_1=1", "SAW_2=1"]
        assert stage.world.members["app"].options.resources == {"cpu": {"shares": 5, "cpus": "0"}}
        assert CONFIG["process"]["env"] == ["A=1"]


def update(ref: str, cpus: str, *, lenient: bool = False) -> pb.ContainerUpdate:
    made = pb.ContainerUpdate(container_id=ref, ignore_failure=lenient)
    made.linux.resources.cpu.cpus = cpus
    return made


def test_updates_of_others_while_one_is_made(stage: Stage) -> None:
    wanted = [update("old", "3"), update("gone", "3", lenient=True)]
    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        stage.member("old")
        plugin.handlers["CreateContainer"] = lambda _: pb.CreateContainerResponse(update=wanted)
        stage.member("new")
        assert stage.world.members["old"].options.resources == {"cpu": {"cpus": "3"}}
        wanted[1].ignore_failure = False
        with pytest.raises(WherryError) as caught:
            stage.member("third")
        assert caught.value.kind is Kind.NOT_FOUND
        assert set(stage.world.members) == {"old", "new"}


def test_an_update_is_what_plugins_make_of_it(stage: Stage) -> None:
    def change(request: Any) -> Any:
        assert request.linux_resources.cpu.shares.value == 9
        return pb.UpdateContainerResponse(update=[update("app", "1"), update("other", "2")])

    with stage.join(stage.plugin(UpdateContainer=change)) as plugin:
        stage.pod()
        stage.member()
        stage.member("other")
        stage.engine.update_member("app", {"cpu": {"shares": 9}}, {})
        assert stage.world.members["app"].options.resources == {"cpu": {"shares": 9, "cpus": "1"}}
        assert stage.world.members["other"].options.resources == {"cpu": {"cpus": "2"}}
        assert methods(plugin)[-2:] == ["UpdateContainer", "PostUpdateContainer"]
        plugin.handlers["UpdateContainer"] = refuse
        with pytest.raises(WherryError, match="refuses UpdateContainer"):
            stage.engine.update_member("app", {"cpu": {"shares": 1}}, {})
        assert stage.world.members["app"].options.resources == {"cpu": {"shares": 9, "cpus": "1"}}


def test_what_a_plugin_does_from_within_an_event(stage: Stage) -> None:
    """It may ask for updates while it is asked; an eviction is told when its turn comes."""

    def handle(_: object) -> None:
        wanted = pb.UpdateContainersRequest(
            update=[update("app", "7"), update("none", "1")],
            evict=[pb.ContainerEviction(container_id="app", reason="for room")],
        )
        told = plugin.call("UpdateContainers", wanted, pb.UpdateContainersResponse)
        assert [one.container_id for one in told.failed] == ["none"]

    with stage.join(stage.plugin()) as plugin:
        stage.pod()
        stage.member()
        plugin.handlers["UpdatePodSandbox"] = handle
        stage.engine.update_pod("web", {"cpu": {"shares": 4}}, {})
        assert stage.world.members["app"].options.resources == {"cpu": {"cpus": "7"}}
        until(lambda: "StopContainer" in methods(plugin), 5)
        assert stage.world.members["app"].state == "exited"
        assert not plugin.gone.is_set()
        asked, after = plugin.told("UpdatePodSandbox")[0], plugin.told("PostUpdatePodSandbox")[0]
        assert asked.linux_resources.cpu.shares.value == after.pod.linux.pod_resources.cpu.shares.value == 4


def test_validators_see_what_others_made(stage: Stage) -> None:
    def adjust(_: object) -> Any:
        return pb.CreateContainerResponse(adjust=pb.ContainerAdjustment(annotations={"a": "1"}))

    def judge(request: Any) -> Any:
        assert request.adjust.annotations == {"a": "1"}
        assert "a" not in request.container.annotations
        owners = request.owners.owners[request.container.id].compound[pb.Annotations].owners
        return pb.ValidateContainerAdjustmentResponse(reject=owners == {"a": "10-p"}, reason="seen")

    with stage.join(stage.plugin(CreateContainer=adjust, ValidateContainerAdjustment=judge)):
        stage.pod()
        with pytest.raises(WherryError, match="rejects what plugins made of the container: seen"):
            stage.member()
        assert not stage.world.members


def test_who_comes_later_learns_of_everything(stage: Stage) -> None:
    stage.pod()
    stage.pod("stopped")
    stage.engine.stop_pod("stopped")
    for name in ("running", "created", "ended"):
        stage.member(name)
    stage.engine.start("running")
    stage.engine.stop_member("ended", 0)
    with stage.join(stage.plugin()) as plugin:
        assert [pod.id for pod in plugin.synchronized.pods] == ["web"]
        states = {one.id: one.state for one in plugin.synchronized.containers}
        assert states == {"running": pb.CONTAINER_RUNNING, "created": pb.CONTAINER_CREATED}
        stage.engine.remove_pod("web")
        told = [(method, request.container.id) for method, request in plugin.events if "Container" in method]
        assert told == [
            ("StopContainer", "running"), ("StopContainer", "created"), ("RemoveContainer", "running"),
            ("RemoveContainer", "created"), ("RemoveContainer", "ended"),
        ]  # fmt: skip
    stage.pod("after")
