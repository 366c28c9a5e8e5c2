"""Plugins at a real socket: how they come, in which order they are told, and that none of them can harm the node."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import gotools
from helpers.nriplugin import UNIMPLEMENTED, NriPlugin, Refusal
from helpers.wherry import until
from wherry.daemon.nri import api_pb2 as pb
from wherry.daemon.nri import plugins
from wherry.daemon.nri.gate import Gate
from wherry.daemon.nri.plugins import Plugins
from wherry.errors import Kind, WherryError

POD = pb.PodSandbox(id="p", name="web")
CONTAINER = pb.Container(id="c", name="app")
RUN = pb.RunPodSandboxRequest(pod=POD)


class Node:
    """What a node has, and what was done to it."""

    def __init__(self, containers: int = 1) -> None:
        self.gate = Gate()
        self.pods = [POD]
        self.containers = [pb.Container(id=f"c{number}", args=["x" * 1000]) for number in range(containers)]
        self.changed: list[tuple[str, str]] = []
        self.evicted: list[str] = []

    def still(self) -> AbstractContextManager[None]:
        return self.gate.still()

    def everything(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        return self.pods, self.containers

    def change(self, plugin: str, updates: Any) -> list[pb.ContainerUpdate]:
        self.changed += [(plugin, update.container_id) for update in updates]
        return [update for update in updates if update.container_id == "none"]

    def evict(self, _plugin: str, evictions: Any) -> None:
        self.evicted += [eviction.container_id for eviction in evictions]


class Served:
    """Plugins in a loop of their own thread."""

    def __init__(self, path: Path, node: Node, timeout: float) -> None:
        self.path, self.node = path, node
        self.plugins = Plugins(str(path), timeout, node)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def tell(self, method: str, request: Any, take: Any = None, then: Any = None) -> None:
        self.do(self.plugins.tell(method, lambda: request, take, then))

    def there(self) -> list[str]:
        return [plugin.name for plugin in self.plugins._plugins]


@contextmanager
def served(path: Path, containers: int = 1, timeout: float = 5) -> Iterator[Served]:
    it = Served(path / "nri" / "nri.sock", Node(containers), timeout)
    it._thread.start()
    try:
        it.do(it.plugins.start())
        yield it
        it.do(it.plugins.stop())
        assert not it.path.exists()
    finally:
        it.loop.call_soon_threadsafe(it.loop.stop)
        it._thread.join()
        it.loop.close()


def test_the_socket_is_roots_alone(tmp_path: Path) -> None:
    with served(tmp_path) as it:
        found = os.lstat(it.path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(it.path.parent).st_mode) == 0o700


def test_a_plugin_comes_and_is_told_all_that_is_there(tmp_path: Path) -> None:
    with served(tmp_path, timeout=2) as it, NriPlugin(it.path, "one", "10") as plugin:
        plugin.joined()
        assert (plugin.configured.runtime_name, plugin.configured.request_timeout) == ("wherry", 2000)
        assert [pod.id for pod in plugin.synchronized.pods] == ["p"]
        assert [one.id for one in plugin.synchronized.containers] == ["c0"]
        until(it.there, 5)
        it.tell("RunPodSandbox", RUN)
        assert plugin.told("RunPodSandbox") == [RUN]
    assert [method for method, _ in plugin.events] == ["RunPodSandbox"]


def test_more_than_a_message_holds_comes_in_parts(tmp_path: Path) -> None:
    with served(tmp_path, 9000) as it, NriPlugin(it.path, "one", "10") as plugin:
        plugin.joined()
        assert [one.id for one in plugin.synchronized.containers] == [f"c{number}" for number in range(9000)]
        assert len(plugin.synchronized.pods) == 1


@pytest.mark.parametrize("containers", [0, 3, 9000])
def test_a_plugin_by_nris_own_library(tmp_path: Path, containers: int) -> None:
    """Of one message in one piece, in two, and of several messages."""
    program = gotools.nri_plugin()
    with served(tmp_path, containers) as it:
        words = [program, it.path, "go", "30", tmp_path]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"Synchronize 1 {containers}\n"
            until(it.there, 5)
            answers: list[Any] = []
            it.tell("RunPodSandbox", RUN)
            it.tell("CreateContainer", pb.CreateContainerRequest(pod=POD, container=CONTAINER),
                    lambda _, told: answers.append(told))  # fmt: skip
            assert [process.stdout.readline() for _ in range(2)] == ["RunPodSandbox web\n", "CreateContainer app\n"]
            assert answers[0].adjust.annotations == {"by": "go"}
            assert it.there() == ["30-go"]
            process.terminate()
            process.wait(10)
            until(lambda: it.there() == [], 5)


def test_they_are_told_by_their_index_and_only_what_they_asked_for(tmp_path: Path) -> None:
    order: list[str] = []
    masks = {"20": 1 << (pb.RUN_POD_SANDBOX - 1), "05": 0, "10": 1 << (pb.STOP_POD_SANDBOX - 1)}
    with served(tmp_path) as it:
        made = [
            NriPlugin(it.path, "p", index, {"RunPodSandbox": lambda _, index=index: order.append(index)}, mask)
            for index, mask in masks.items()
        ]
        for plugin in made:
            plugin.__enter__().joined()
        until(lambda: len(it.there()) == 3, 5)
        it.tell("RunPodSandbox", RUN)
        assert order == ["05", "20"]
        assert it.there() == ["05-p", "10-p", "20-p"]
        assert made[2].events == []
        made[1].close()
        until(lambda: it.there() == ["10-p", "20-p"], 5)
        it.tell("RunPodSandbox", RUN)
        assert order == ["05", "20", "20"]
        for plugin in (made[0], made[2]):
            plugin.close()


def test_a_refusal_fails_the_event_and_the_plugin_stays(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise Refusal("not on this node")

    with served(tmp_path) as it, NriPlugin(it.path, "one", "10", {"RunPodSandbox": refuse}) as plugin:
        plugin.joined()
        until(it.there, 5)
        with pytest.raises(WherryError, match="NRI plugin 10-one refuses RunPodSandbox: not on this node") as caught:
            it.tell("RunPodSandbox", RUN)
        assert caught.value.kind is Kind.PRECONDITION
        assert it.there() == ["10-one"]


def test_one_that_hangs_is_let_go_and_those_after_it_are_told(tmp_path: Path) -> None:
    release = threading.Event()
    with (
        served(tmp_path, timeout=0.5) as it,
        NriPlugin(it.path, "hangs", "10", {"RunPodSandbox": lambda _: release.wait(20) and None}) as bad,
        NriPlugin(it.path, "good", "20") as good,
    ):
        bad.joined()
        good.joined()
        until(lambda: len(it.there()) == 2, 5)
        began = time.monotonic()
        it.tell("RunPodSandbox", RUN)
        assert 0.4 < time.monotonic() - began < 5
        assert len(good.told("RunPodSandbox")) == 1
        until(lambda: it.there() == ["20-good"] and bad.gone.is_set(), 5)
        release.set()


def test_plugins_made_before_an_event_had_a_call_get_a_state_change(tmp_path: Path) -> None:
    def unknown(_: object) -> None:
        raise Refusal("no such method", UNIMPLEMENTED)

    handlers = dict.fromkeys(("RunPodSandbox", "PostStartContainer", "UpdatePodSandbox"), unknown)
    with served(tmp_path) as it, NriPlugin(it.path, "old", "10", handlers) as plugin:
        plugin.joined()
        until(it.there, 5)
        it.tell("RunPodSandbox", RUN)
        it.tell("PostStartContainer", pb.PostStartContainerRequest(pod=POD, container=CONTAINER))
        it.tell("UpdatePodSandbox", pb.UpdatePodSandboxRequest(pod=POD))
        assert plugin.told("StateChange") == [
            pb.StateChangeEvent(event=pb.RUN_POD_SANDBOX, pod=POD),
            pb.StateChangeEvent(event=pb.POST_START_CONTAINER, pod=POD, container=CONTAINER),
        ]


def test_validators_are_asked_at_the_end(tmp_path: Path) -> None:
    asked: list[Any] = []

    def judge(request: Any) -> Any:
        asked.append(request)
        return pb.ValidateContainerAdjustmentResponse(reject=len(asked) > 1, reason="too many")

    request = pb.CreateContainerRequest(pod=POD, container=CONTAINER)
    mask = 1 << (pb.VALIDATE_CONTAINER_ADJUSTMENT - 1)

    def validation(everyone: list[pb.PluginInstance]) -> Any:
        return pb.ValidateContainerAdjustmentRequest(pod=POD, plugins=everyone)

    with (
        served(tmp_path, timeout=0.5) as it,
        NriPlugin(it.path, "judge", "90", {"ValidateContainerAdjustment": judge}, mask) as last,
        NriPlugin(it.path, "maker", "10", events=1 << (pb.CREATE_CONTAINER - 1)) as maker,
    ):
        last.joined()
        maker.joined()
        until(lambda: len(it.there()) == 2, 5)
        it.tell("CreateContainer", request, None, validation)
        assert [(one.index, one.name) for one in asked[0].plugins] == [("10", "maker"), ("90", "judge")]
        with pytest.raises(WherryError, match="rejects what plugins made of the container: too many"):
            it.tell("CreateContainer", request, None, validation)
        last.handlers["ValidateContainerAdjustment"] = lambda _: time.sleep(2)
        with pytest.raises(WherryError, match="validator 90-judge is gone"):
            it.tell("CreateContainer", request, None, validation)
        it.tell("CreateContainer", request, None, validation)  # one that is gone is asked no more


def test_what_a_plugin_wants_by_itself(tmp_path: Path) -> None:
    wanted = pb.UpdateContainersRequest(
        update=[pb.ContainerUpdate(container_id="c0"), pb.ContainerUpdate(container_id="none")],
        evict=[pb.ContainerEviction(container_id="c0", reason="full")],
    )
    synchronize = pb.SynchronizeResponse(update=[pb.ContainerUpdate(container_id="early")])
    with served(tmp_path) as it, NriPlugin(it.path, "one", "10", {"Synchronize": lambda _: synchronize}) as plugin:
        plugin.joined()
        until(lambda: it.node.changed == [("10-one", "early")], 5)
        told = plugin.call("UpdateContainers", wanted, pb.UpdateContainersResponse)
        assert [update.container_id for update in told.failed] == ["none"]
        until(lambda: it.node.evicted == ["c0"], 5)
        assert it.node.changed[1:] == [("10-one", "c0"), ("10-one", "none")]
        for method, code in (("Nothing", UNIMPLEMENTED), ("RegisterPlugin", 3)):
            with pytest.raises(Refusal) as caught:
                plugin.call(method, pb.RegisterPluginRequest(plugin_name="x", plugin_idx="00"), pb.Empty)
            assert caught.value.code == code


@pytest.mark.parametrize(("name", "index"), [("", "10"), ("a/b", "10"), ("one", "1"), ("one", "abc"), ("one", "١٢")])
def test_names_and_indexes_that_are_none(tmp_path: Path, name: str, index: str) -> None:
    with served(tmp_path) as it:
        plugin = NriPlugin(it.path, name, index)
        with pytest.raises(Refusal):
            plugin.__enter__()
        assert it.there() == []
        plugin.close()


def test_events_that_are_not_known_are_not_promised(tmp_path: Path) -> None:
    with served(tmp_path) as it, NriPlugin(it.path, "new", "10", events=1 << 20) as plugin:
        until(plugin.gone.is_set, 5)
        assert it.there() == []


NOISE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack(">II", 1, 0xFFFFFFFF),
    struct.pack(">IIIIBB", 2, 10, 0xFFFFFFF, 1, 1, 0),
    struct.pack(">IIIIBB", 2, 12, 2, 1, 1, 0) + b"\xff\xff",
    struct.pack(">IIIIBB", 1, 10, 0, 1, 1, 0),  # a request on the connection of ours
    struct.pack(">IIIIBB", 2, 10, 0, 1, 3, 0),
]


@pytest.mark.parametrize("noise", NOISE)
def test_noise_ends_its_own_connection_alone(tmp_path: Path, noise: bytes) -> None:
    with served(tmp_path) as it, NriPlugin(it.path, "good", "10") as good:
        good.joined()
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(it.path))
            bad.settimeout(3)
            bad.sendall(noise)
            assert bad.recv(100) == b""
        it.tell("RunPodSandbox", RUN)
        until(lambda: good.told("RunPodSandbox"), 5)


def test_who_says_nothing_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_REGISTRATION", 0.2)
    monkeypatch.setattr(plugins, "_PLUGINS_MAX", 2)
    with served(tmp_path) as it, socket.socket(socket.AF_UNIX) as quiet:
        quiet.connect(str(it.path))
        quiet.settimeout(5)
        assert quiet.recv(100) == b""
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in crowd:
            one.connect(str(it.path))
            one.settimeout(5)
        assert [one.recv(1) for one in crowd] == [b"", b"", b""]
        for one in crowd:
            one.close()


def test_one_that_reads_nothing_costs_a_bounded_memory(tmp_path: Path) -> None:
    """It has the deadline of one event; until then no more is kept for it than a few messages."""
    big = pb.RunPodSandboxRequest(pod=pb.PodSandbox(id="p", annotations={"a": "x" * (3 << 20)}))
    with served(tmp_path, timeout=0.5) as it:
        plugin = NriPlugin(it.path, "deaf", "10", {"RunPodSandbox": lambda _: time.sleep(3)})
        with plugin:
            plugin.joined()
            until(it.there, 5)
            for _ in range(5):
                it.tell("RunPodSandbox", big)
            until(lambda: it.there() == [], 5)


def test_what_does_not_fit_into_a_message_is_an_error_and_no_end(tmp_path: Path) -> None:
    with served(tmp_path) as it, NriPlugin(it.path, "one", "10") as plugin:
        plugin.joined()
        until(it.there, 5)
        with pytest.raises(WherryError, match="it cannot be told"):
            it.tell("RunPodSandbox", pb.RunPodSandboxRequest(pod=pb.PodSandbox(annotations={"a": "x" * (5 << 20)})))
        it.tell("RunPodSandbox", RUN)
        assert plugin.told("RunPodSandbox") == [RUN]


def test_what_is_being_made_is_waited_for_when_a_plugin_comes(tmp_path: Path) -> None:
    with served(tmp_path) as it:
        done = threading.Event()

        def make() -> None:
            it.node.gate.enter()
            time.sleep(0.3)
            it.node.containers.append(pb.Container(id="late"))
            it.node.gate.leave()
            it.node.gate.enter()  # not before the plugin is there
            done.set()
            it.node.gate.leave()

        release = threading.Event()
        maker = threading.Thread(target=make)
        maker.start()
        until(lambda: it.node.gate._inside, 5)
        with NriPlugin(it.path, "one", "10", {"Synchronize": lambda _: release.wait(5) and None}) as plugin:
            until(lambda: len(it.node.containers) == 2, 5)
            time.sleep(0.2)
            assert not done.is_set()
            release.set()
            plugin.joined()
            assert [one.id for one in plugin.synchronized.containers] == ["c0", "late"]
            until(done.is_set, 5)
            assert it.there() == ["10-one"]
        maker.join()
