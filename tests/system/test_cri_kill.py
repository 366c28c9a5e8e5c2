"""wherryd is killed at any moment of any call: it comes back, and what it had answered is true, what it had not is made
or not, and can be asked again. No line of a log, no exit code is missing; nothing is left.

The count is WHERRY_CRI_KILLS's (scripts/soak: 300); WHERRY_SEED repeats a run's moments.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, log_lines
from helpers.rest import Rest
from helpers.wherry import until
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("WHERRY_CRI_KILLS", "14"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)
RUNNING, EXITED, CREATED = api.CONTAINER_RUNNING, api.CONTAINER_EXITED, api.CONTAINER_CREATED
READY, NOTREADY = api.SANDBOX_READY, api.SANDBOX_NOTREADY
#: counts aloud; TERM ends it with a code of its own
PAUSE = "sleep 0.02"
TALKS = f"""trap 'echo bye; exit 5' TERM; n=0; while :; do echo "line $n"; n=$((n + 1)); {PAUSE}; done"""
TALKER = ("sh", "-c", TALKS)


@pytest.fixture
def kubelet(test_id: str, tmp_path: Path, busybox: str, private_network: object) -> Iterator[Kubelet]:
    """One that asks a wherryd of the test's own, which has the image."""
    with Wherryd(test_id, tmp_path) as wherryd:
        made = Kubelet(wherryd, wherryd.load(busybox), tmp_path / "logs")
        yield made
        made.remove_everything()


class Life(NamedTuple):
    """One pod with a talker, as far as it was answered; "" is not there."""

    number: int
    pod: str = ""
    container: str = ""
    running: bool = False


class Step(NamedTuple):
    """A call that may be cut: what comes of it, and in which states its container may then be."""

    call: Callable[[Kubelet, Life], Life]
    container: frozenset[int]
    pod: frozenset[int] = frozenset({READY})
    gone: bool = False  # what it is about may also not be there any more


def run_pod(kubelet: Kubelet, life: Life) -> Life:
    return life._replace(pod=kubelet.pod(f"p{life.number}", network=life.number % 2 == 0))


def create(kubelet: Kubelet, life: Life) -> Life:
    return life._replace(container=kubelet.create(life.pod, "talks", *TALKER))


def start(kubelet: Kubelet, life: Life) -> Life:
    kubelet.start(life.container)
    return life._replace(running=True)


def execute(kubelet: Kubelet, life: Life) -> Life:
    assert kubelet.exec(life.container, "sh", "-c", "sleep 0.05; exit 3").exit_code == 3
    return life


def stop(kubelet: Kubelet, life: Life) -> Life:
    kubelet.stop(life.container, 10)
    return life._replace(running=False)


def remove(kubelet: Kubelet, life: Life) -> Life:
    kubelet.remove(life.container)
    return life._replace(container="", running=False)


def stop_pod(kubelet: Kubelet, life: Life) -> Life:
    kubelet.stop_pod(life.pod)
    return life._replace(running=False)


def remove_pod(kubelet: Kubelet, life: Life) -> Life:
    kubelet.remove_pod(life.pod)
    return Life(life.number)


ANY = frozenset({READY, NOTREADY})
#: a life in its order; each step is cut in some round
LIFE = (
    Step(run_pod, frozenset()),
    Step(create, frozenset({CREATED})),
    Step(start, frozenset({CREATED, RUNNING})),
    Step(execute, frozenset({RUNNING})),
    Step(stop, frozenset({RUNNING, EXITED})),
    Step(remove, frozenset({RUNNING, EXITED}), gone=True),
    Step(stop_pod, frozenset({RUNNING, EXITED}), ANY),
    Step(remove_pod, frozenset({RUNNING, EXITED}), ANY, gone=True),
)
#: which steps go before one that is cut: the end of a pod is cut with its container running, too
BEFORE = {step: LIFE[: min(at, 4)] for at, step in enumerate(LIFE)}


class Cut:
    """One call in a thread of its own, with wherryd killed while it is under way."""

    def __init__(self, kubelet: Kubelet, step: Step, life: Life) -> None:
        self._call = lambda: step.call(kubelet, life)
        self.life = life
        self.answered = False
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with suppress(grpc.RpcError, ValueError):  # ValueError: the channel was closed under it
            self.life, self.answered = self._call(), True

    def after(self, seconds: float, kill: Callable[[], None]) -> None:
        self._thread.start()
        time.sleep(seconds)
        kill()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a client waits for a wherryd that is dead"


@pytest.mark.seconds(180 + 15 * KILLS)
def test_killed_while_it_works(kubelet: Kubelet) -> None:
    chance = random.Random(SEED)
    kept = kubelet.pod("kept", network=True)
    witness = kubelet.run(kept, "witness", *TALKER)
    took = typical(kubelet)
    rest = Rest(kubelet.wherryd, PAUSE)
    for number in range(KILLS):
        step = LIFE[number % len(LIFE)]
        life = Life(number)
        for earlier in BEFORE[step]:
            life = earlier.call(kubelet, life)
        cut = Cut(kubelet, step, life)
        moment = chance.uniform(0, 1.2 * took[step])
        cut.after(moment, kubelet.wherryd.kill)
        story = f"{step.call.__name__} cut after {moment * 1000:.1f} ms (round {number}, WHERRY_SEED={SEED})"
        kubelet.wherryd.restart()
        print(story, "answered" if cut.answered else "")
        check(kubelet, step, cut, story)
        assert kubelet.status(witness).state == RUNNING, story
        finish(kubelet, step, cut.life, story)
        assert not (left := rest.left()), f"{story}:\n" + "\n".join(left)
    kubelet.stop(witness, 10)
    assert kubelet.status(witness).exit_code == 5
    said = [line.text for line in log_lines(kubelet.logs / "kept" / "witness.log")]
    assert said == [*(f"line {number}" for number in range(len(said) - 1)), "bye"]


def typical(kubelet: Kubelet) -> dict[Step, float]:
    """Seconds that each step takes, undisturbed; the second time, when all is warm."""
    took: dict[Step, float] = {}
    for number in (1000, 1001):
        life = Life(number)
        for step in LIFE:
            begin = time.monotonic()
            life = step.call(kubelet, life)
            took[step] = time.monotonic() - begin
    return took


def check(kubelet: Kubelet, step: Step, cut: Cut, story: str) -> None:
    """What was answered is true; what was not is before or after."""
    pods, containers, life = kubelet.pods(), kubelet.containers(), cut.life
    if cut.answered and not life.pod:
        assert set(pods.values()) == {READY}, story
    elif life.pod and not (step.gone and life.pod not in pods):
        assert pods.get(life.pod) in step.pod, (story, pods)
    if life.container and not (step.gone and life.container not in containers):
        assert containers.get(life.container) in step.container, (story, containers)
    if cut.answered and step.call in (stop, stop_pod):
        assert containers[life.container] == EXITED, story
    if cut.answered and step.call is start:
        assert containers[life.container] == RUNNING, story


def finish(kubelet: Kubelet, step: Step, life: Life, story: str) -> None:
    """The call again, as a kubelet does, and on to the end."""
    containers = kubelet.containers()
    if step.call in (run_pod, create, execute, stop) or (step.call is start and containers[life.container] == CREATED):
        life = step.call(kubelet, life)
    if step.call is stop:
        status = kubelet.status(life.container)
        assert (status.state, status.exit_code) == (EXITED, 5), (story, status)
        said = [line.text for line in log_lines(kubelet.logs / f"p{life.number}" / "talks.log")]
        assert said == [*(f"line {number}" for number in range(len(said) - 1)), "bye"], story
    for last in (stop_pod, remove_pod):
        if life.pod:
            last(kubelet, life)
    mine = api.PodSandboxFilter(label_selector={"test": f"p{life.number}"})
    for left in kubelet("ListPodSandbox", filter=mine).items:
        raise AssertionError(f"{story}: {left}")


# ---- what happens while nobody is there


CODES = (0, 7, 255)


def test_what_ends_without_wherryd_is_told_by_the_next(kubelet: Kubelet) -> None:
    """Codes, times and logs of containers that ended while it was dead."""
    pod = kubelet.pod("alone")
    ends = {code: kubelet.run(pod, f"c{code}", "sh", "-c", f"sleep 0.4; echo end {code}; exit {code}")
            for code in CODES}  # fmt: skip
    stays = kubelet.run(pod, "stays", "sleep", "1000")
    kubelet.wherryd.kill()
    time.sleep(1.5)
    kubelet.wherryd.restart()
    for code, container in ends.items():
        status = kubelet.status(container)
        assert (status.state, status.exit_code) == (EXITED, code), status
        assert status.reason == ("Error" if code else "Completed")
        assert status.created_at <= status.started_at < status.finished_at < time.time_ns()
        assert [line.text for line in log_lines(kubelet.logs / "alone" / f"c{code}.log")] == [f"end {code}"]
    assert kubelet.status(stays).state == RUNNING


def test_no_exit_is_told_before_its_code_is_known(kubelet: Kubelet) -> None:
    """Whoever looks while a container starts and ends at once."""
    pod, seen, over = kubelet.pod("quick"), [], threading.Event()

    def look() -> None:
        while not over.is_set():
            for one in kubelet("ListContainers", filter=api.ContainerFilter(pod_sandbox_id=pod)).containers:
                if one.state == EXITED:
                    status = kubelet.status(one.id)
                    seen.append((status.exit_code, status.reason, status.finished_at >= status.started_at > 0))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(25):
            quick = kubelet.run(pod, f"c{number}", "sh", "-c", "exit 3")
            until(lambda quick=quick: kubelet.status(quick).state == EXITED)  # type: ignore[misc]
            assert kubelet.status(quick).exit_code == 3
    finally:
        over.set()
        thread.join()
    assert set(seen) == {(3, "Error", True)}


def test_everything_is_as_it_was(kubelet: Kubelet) -> None:
    """Status of pods and containers, word for word, before a death and after it; labels, addresses, mounts and all."""
    pods = kubelet.several([f"s{number}" for number in range(4)], "sleep", "1000", network=True)
    created = kubelet.create(next(iter(pods)), "created", "true")
    stopped = next(reversed(pods))
    kubelet.stop_pod(stopped)
    before = told(kubelet, pods, created)
    for _ in range(2):
        kubelet.wherryd.kill()
        kubelet.wherryd.restart()
        assert told(kubelet, pods, created) == before
    kubelet.start(created)
    until(lambda: kubelet.status(created).state == EXITED)
    assert kubelet.exec(pods[next(iter(pods))], "true").exit_code == 0


def told(kubelet: Kubelet, pods: dict[str, str], *more: str) -> list[Any]:
    """All that the runtime says of them that does not change by itself."""
    found: list[Any] = [kubelet("PodSandboxStatus", pod_sandbox_id=pod).status for pod in pods]
    found += [kubelet.status(container) for container in [*pods.values(), *more]]
    found += sorted(map(str, kubelet("ListPodSandbox").items))
    found += sorted(map(str, kubelet("ListContainers").containers))
    return found


def test_an_exec_outlives_nobody(kubelet: Kubelet) -> None:
    """What an ExecSync runs ends with wherryd or is ended by its return, and no later than its deadline."""
    pod = kubelet.pod("exec")
    container = kubelet.run(pod, "c", "sleep", "1000")
    cut = Cut(kubelet, Step(lambda own, life: own.exec(container, "sleep", "777", timeout=3) and life, frozenset()),
              Life(0))  # fmt: skip
    cut.after(1.0, kubelet.wherryd.kill)
    kubelet.wherryd.restart()
    until(lambda: "777" not in kubelet.output(container, "ps"), 10, "the command runs on")
