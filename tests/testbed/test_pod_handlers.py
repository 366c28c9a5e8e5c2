"""RuntimeClass handlers: containers of pods that crun and runc make, in our monitor's care. On pure cgroup v2, which is
what those two want of a host."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.wherry import Wherry, until
from wherry.engine.engine import Engine
from wherry.engine.pods.values import Member, MemberOptions, PodMount, PodOptions, PodSecurity
from wherry.engine.values import ExecOptions
from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, ATTACH_STDOUT, Place

PROGRAMS = {name: found for name in ("crun", "runc") if (found := shutil.which(name, path="/usr/bin:/usr/sbin"))}
LIMITS = {"memory": {"limit": 64 << 20}, "cpu": {"quota": 50000, "period": 100000}}


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    if request.param not in PROGRAMS:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def engine(wherry: Wherry, busybox: str) -> Iterator[Engine]:
    lines = "".join(f'{name} = "{program}"\n' for name, program in PROGRAMS.items())
    with open(wherry.config, "a", encoding="utf-8") as file:
        file.write(f'pod_cgroup_driver = "cgroupfs"\n[handlers]\n{lines}')
    made = Engine(Place(str(wherry.root), str(wherry.state), str(wherry.config)))
    made.load(busybox)
    yield made
    for pod in made.pods():
        made.remove_pod(pod.id)
    made.close()


def pod_of(engine: Engine, wherry: Wherry, handler: str) -> str:
    options = PodOptions("p", "n", handler, network="host", cgroup_parent=f"{wherry.cgroup}/pods", handler=handler)
    return engine.run_pod(options)


def script(engine: Engine, pod: str, text: str, tmp_path: Path, **asked: Any) -> str:
    name = f"c{time.monotonic_ns()}"
    image = engine.image_records()[0].id
    options = MemberOptions(name, image, command=("sh", "-c", text), log=f"{tmp_path}/{name}.log", **asked)
    container = engine.create_member(pod, options)
    engine.start(container)
    return container


def ended(engine: Engine, container: str) -> Member:
    return until(lambda: (m := engine.member(container)).state == "exited" and m)  # type: ignore[no-any-return]


def log(engine: Engine, container: str) -> list[str]:
    text = Path(engine.member(container).options.log).read_text()
    return [line.partition(" ")[2] for line in text.splitlines()]


def test_a_life(engine: Engine, wherry: Wherry, handler: str, tmp_path: Path) -> None:
    pod = pod_of(engine, wherry, handler)
    (tmp_path / "data").mkdir()
    text = "id -u; cat /etc/hostname; touch /v/here; echo bad >&2; exit 7"
    mount = PodMount("/v", f"{tmp_path}/data")
    who = PodSecurity(user="1000", seccomp="default")
    container = script(engine, pod, text, tmp_path, mounts=(mount,), security=who)
    end = ended(engine, container)
    assert (end.code, end.reason) == (7, "Error"), log(engine, container)
    said = log(engine, container)
    assert "stdout F 1000" in said
    assert "stderr F bad" in said


def test_it_is_ours_while_it_runs(engine: Engine, wherry: Wherry, handler: str, tmp_path: Path) -> None:
    pod = pod_of(engine, wherry, handler)
    container = script(engine, pod, "trap 'exit 3' TERM; while :; do sleep 0.1; done", tmp_path, resources=LIMITS)
    found = engine.member(container)
    assert found.state == "running"
    assert found.cgroup.endswith(f"wherry-{container}")
    assert Path(found.cgroup, "memory.max").read_text().strip() == str(64 << 20)
    assert str(found.pid) in Path(found.cgroup, "cgroup.procs").read_text().split()
    running = engine.exec(container, ExecOptions(("cat", "/proc/1/cmdline")))
    output = b""
    while (frame := running.read()) is not None and frame[0] != ATTACH_EXIT:
        output += frame[1] if frame[0] == ATTACH_STDOUT else b""
    assert running.wait().code == 0
    assert output.startswith(b"sh\0-c\0")
    engine.update_member(container, {"memory": {"limit": 80 << 20}}, {})
    assert Path(found.cgroup, "memory.max").read_text().strip() == str(80 << 20)
    assert engine.usage()[container].memory
    engine.stop_member(container, 5)
    assert engine.member(container).code == 3
    engine.remove_member(container)
    assert not Path(found.cgroup).exists()


def test_it_is_killed(engine: Engine, wherry: Wherry, handler: str, tmp_path: Path) -> None:
    pod = pod_of(engine, wherry, handler)
    container = script(engine, pod, "trap '' TERM; while :; do sleep 0.1; done", tmp_path)
    begun = time.monotonic()
    engine.stop_member(container, 0)
    assert time.monotonic() - begun < 3
    assert engine.member(container).code == 137


def test_what_it_says_when_it_cannot(engine: Engine, wherry: Wherry, handler: str, tmp_path: Path) -> None:
    pod = pod_of(engine, wherry, handler)
    image = engine.image_records()[0].id
    container = engine.create_member(pod, MemberOptions("none", image, command=("no-such-command",)))
    with pytest.raises(WherryError, match="no-such-command"):
        engine.start(container)
    assert (engine.member(container).reason, engine.member(container).code) == ("StartError", 128)


def test_a_handler_that_nobody_set(engine: Engine, wherry: Wherry) -> None:
    with pytest.raises(WherryError) as caught:
        pod_of(engine, wherry, "kata")
    assert caught.value.kind in (Kind.INVALID, Kind.PRECONDITION, Kind.NOT_FOUND)
