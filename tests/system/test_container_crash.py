"""Monitors killed at any moment of a start and a life: the end is clear, and nothing is left."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.bundles import Bundle, make_root
from helpers.monitors import until
from helpers.tools import strays
from wherry.container import lifecycle
from wherry.errors import WherryError
from wherry.kernel import process

ROUNDS = int(os.environ.get("WHERRY_KILLS", "40"))


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Monitors become our children, so that the test finds and reaps them."""
    process.become_subreaper()
    yield
    process.become_subreaper(False)


def kill_children(after: float, stop: threading.Event) -> None:
    """KILL the test's children after a delay, the helper that detaches or the monitor, until the monitor is hit."""
    time.sleep(after)
    while not stop.is_set():
        for pid in strays():
            found = process.identify(pid)
            if found is not None and process.parent(pid) == os.getpid():
                process.signal(found, 9)
        time.sleep(0.0005)


def reap_all() -> None:
    """Every child of the test's ends: monitors, cleanups, what they left to us."""
    assert until(lambda: not strays(reap=True), 20), [Path(f"/proc/{pid}/cmdline").read_text() for pid in strays()]


@pytest.mark.seconds(600)
def test_monitor_killed_at_any_moment(tmp_path: Path, test_id: str, subreaper: None) -> None:
    root = make_root(tmp_path / "bundle/root")
    dice = random.Random(test_id)
    outcomes: dict[str, int] = {}
    for i in range(ROUNDS):
        one = Bundle(str(tmp_path / "state"), f"{test_id}k{i}", root)
        one.configure("sh", "-c", "while :; do echo tick; sleep 0.001; done & sleep 100")
        stop = threading.Event()
        killer = threading.Thread(target=kill_children, args=(dice.uniform(0, 0.04), stop))
        killer.start()
        try:
            one.run(one.how())
            status = lifecycle.wait(one.place, 10)
            assert status is not None
            assert (status.code, status.error) == (137, "monitor was killed")
            outcome = "running"
        except WherryError as error:
            outcome = "starting" if "cannot start container" in error.message else error.message
        finally:
            stop.set()
            killer.join()
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        lifecycle.delete(one.place, force=True)
        if one.cgroup:
            assert not os.path.exists(one.cgroup), outcome
        reap_all()
    assert set(outcomes) <= {"starting", "running"}
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
