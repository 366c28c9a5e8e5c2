"""wherryd is killed at any moment of a docker client's calls: no container is lost, no exit code missed, nothing left.

The count is WHERRY_DOCKER_KILLS's (scripts/soak: 1000); WHERRY_SEED repeats a run's moments.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers.dockerapi import Answer, DockerD
from helpers.rest import Rest
from helpers.wherry import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KILLS = int(os.environ.get("WHERRY_DOCKER_KILLS") or 15)
SEED = int(os.environ.get("WHERRY_SEED") or 0) or random.randrange(1 << 32)
PAUSE = "sleep 0.02"
#: counts aloud; TERM ends it with a code of its own
TALKER = ["sh", "-c", f"""trap 'echo bye; exit 5' TERM; n=0; while :; do echo "line $n"; n=$((n + 1)); {PAUSE}; done"""]
CREATED, RUNNING, EXITED, GONE = "created", "running", "exited", "gone"


@pytest.fixture
def docker(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[DockerD]:
    with DockerD(test_id, tmp_path) as made:
        made.load(busybox)
        yield made


def name(number: int) -> str:
    return f"life{number}"


def done(answer: Answer, *statuses: int) -> Answer:
    assert answer.status in statuses, answer
    return answer


def create(docker: DockerD, number: int) -> None:
    network = "none" if number % 2 else "bridge"
    body = {"Image": "busybox", "Cmd": TALKER, "HostConfig": {"NetworkMode": network}}
    done(docker.post(f"/containers/create?name={name(number)}", body), 201)


def start(docker: DockerD, number: int) -> None:
    done(docker.post(f"/containers/{name(number)}/start"), 204, 304)


def execute(docker: DockerD, number: int) -> None:
    asked = {"Cmd": ["sh", "-c", "sleep 0.05; echo said; exit 3"], "AttachStdout": True}
    made = done(docker.post(f"/containers/{name(number)}/exec", asked), 201).json()["Id"]
    assert done(docker.post(f"/exec/{made}/start", {"Detach": False}), 200).body.endswith(b"said\n")
    assert docker.get(f"/exec/{made}/json").json()["ExitCode"] == 3


def stop(docker: DockerD, number: int) -> None:
    done(docker.post(f"/containers/{name(number)}/stop?t=10"), 204, 304)


def remove(docker: DockerD, number: int) -> None:
    done(docker.delete(f"/containers/{name(number)}?force=1&v=1"), 204, 404)


class Step(NamedTuple):
    """A call that may be cut: the states before it and after it."""

    call: Callable[[DockerD, int], None]
    before: str
    after: str


#: a life in its order
LIFE = (
    Step(create, GONE, CREATED),
    Step(start, CREATED, RUNNING),
    Step(execute, RUNNING, RUNNING),
    Step(stop, RUNNING, EXITED),
    Step(remove, EXITED, GONE),
    Step(remove, RUNNING, GONE),
)
#: which steps go before one that is cut: a removal is cut of one that runs, too
EARLIER = {step: LIFE[: min(at, 4)] if step.before != RUNNING else LIFE[:2] for at, step in enumerate(LIFE)}


class Cut:
    """One call in a thread of its own, with wherryd killed while it is under way."""

    def __init__(self, docker: DockerD, step: Step, number: int) -> None:
        self._docker, self._step, self._number = docker, step, number
        self.answered = False
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with suppress(OSError, http.client.HTTPException, ValueError):  # the connection broke, or a JSON answer did
            try:
                self._step.call(self._docker, self._number)
                self.answered = True
            except AssertionError as error:
                self.failed = error

    def after(self, seconds: float) -> None:
        self._thread.start()
        time.sleep(seconds)
        self._docker.kill()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a client waits for a wherryd that is dead"


def states(docker: DockerD) -> dict[str, str]:
    found = docker.get("/containers/json?all=1").json()
    return {one["Names"][0][1:]: one["State"] for one in found}


def look(docker: DockerD, ref: str) -> Any:
    return done(docker.get(f"/containers/{ref}/json"), 200).json()


def typical(docker: DockerD) -> dict[Step, float]:
    """Seconds that each step takes, undisturbed; the second time, when all is warm."""
    took: dict[Step, float] = {}
    for number in (100_000, 100_002):  # on the bridge, both
        for steps in (LIFE[:5], (*LIFE[:2], LIFE[5])):
            for step in steps:
                begin = time.monotonic()
                step.call(docker, number)
                took[step] = time.monotonic() - begin
    return took


def check(docker: DockerD, step: Step, cut: Cut, number: int, story: str) -> str:
    """What was answered is true; what was not is before or after. Its state is returned."""
    if step.call is not execute:  # its stream may end before its end was told, and then it is asked for in vain
        assert cut.failed is None, (story, cut.failed)
    state = states(docker).get(name(number), GONE)
    allowed = {step.after} if cut.answered else {step.before, step.after}
    if step.call is remove and not cut.answered:
        allowed |= {EXITED, "removing"}  # killed, and not yet taken away
    assert state in allowed, (story, state, allowed)
    return state


def settle(docker: DockerD, step: Step, number: int, state: str, story: str) -> None:
    """The call again, as a client does, and on to the end of that life, whose code is known."""
    if state == step.before and step.call is not remove:
        step.call(docker, number)
    if step.call is stop:
        until(lambda: look(docker, name(number))["State"]["Status"] == EXITED)
        assert look(docker, name(number))["State"]["ExitCode"] == 5, story
        assert done(docker.post(f"/containers/{name(number)}/wait"), 200).json()["StatusCode"] == 5, story
        whole(docker, name(number), story)
    remove(docker, number)
    assert name(number) not in states(docker), story


def whole(docker: DockerD, ref: str, story: str) -> None:
    """No line of its log is missing."""
    raw = done(docker.get(f"/containers/{ref}/logs?stdout=1"), 200).body
    said = [line.split(b"line ")[-1].decode() for line in re.findall(rb"line \d+|bye", raw)]
    assert said == [*map(str, range(len(said) - 1)), "bye"], story


@pytest.mark.seconds(180 + 10 * KILLS)
def test_killed_while_it_works(docker: DockerD) -> None:
    """What is there goes on, too: a witness that talks, and one that ends by itself while nobody is there."""
    chance = random.Random(SEED)
    took = typical(docker)
    body = {"Image": "busybox", "Cmd": TALKER, "HostConfig": {"NetworkMode": "bridge"}}
    done(docker.post("/containers/create?name=witness", body), 201)
    done(docker.post("/containers/witness/start"), 204)
    pid, rest = look(docker, "witness")["State"]["Pid"], Rest(docker, PAUSE)
    for number in range(KILLS):
        step = LIFE[number % len(LIFE)]
        for earlier in EARLIER[step]:
            earlier.call(docker, number)
        quick = {"Image": "busybox", "Cmd": ["sh", "-c", f"sleep 0.3; exit {number % 200 + 1}"],
                 "HostConfig": {"NetworkMode": "none"}}  # fmt: skip
        done(docker.post("/containers/create?name=quick", quick), 201)
        done(docker.post("/containers/quick/start"), 204)
        cut, moment = Cut(docker, step, number), chance.uniform(0, 1.2 * took[step])
        what = f"{step.call.__name__} of {step.before} cut after {moment * 1000:.1f} ms"
        story = f"{what} (round {number}, WHERRY_SEED={SEED})"
        cut.after(moment)
        docker.restart()
        print(story, "answered" if cut.answered else "")
        state = check(docker, step, cut, number, story)
        assert done(docker.post("/containers/quick/wait"), 200).json()["StatusCode"] == number % 200 + 1, story
        done(docker.delete("/containers/quick"), 204)
        assert look(docker, "witness")["State"]["Pid"] == pid, story
        settle(docker, step, number, state, story)
        assert not (left := rest.left()), f"{story}:\n" + "\n".join(left)
    done(docker.post("/containers/witness/stop?t=10"), 204)
    assert look(docker, "witness")["State"]["ExitCode"] == 5
    whole(docker, "witness", f"WHERRY_SEED={SEED}")
