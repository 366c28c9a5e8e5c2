"""Failure at every step of a create and of an exec, and death at any moment: what is left is nothing.

The verbs run in this process, so that its own descriptors and children are under audit too; the plan that they make
gets one more record, which fails, before each of its records in turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.ocibundle import Box, boxed
from helpers.tools import strays
from wherry.oci import compile as planner
from wherry.oci.plan import Op, Plan
from wherry.ocicli import main

pytestmark = [pytest.mark.root, pytest.mark.seconds(90)]
IDS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
PLANTED = "/none/planted"


@pytest.fixture
def box(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Box]:
    with boxed(test_id, tmp_path) as made:
        yield made


@pytest.fixture
def own(box: Box, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`wherry-oci` in this process: (exit code, what it says)."""

    def call(*words: object) -> tuple[int, str]:
        code = main.main(["--root", str(box.root), *map(str, words)], box.env)
        return code, "".join(capfd.readouterr())

    return call


@pytest.fixture
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], None]]]:
    """A socket for terminals, and how to throw away what has come."""
    path = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()

        yield path, drain


def enrich(box: Box, *, users: bool) -> None:
    """Everything that a plan can have."""
    hook = [{"path": "/bin/true"}]
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    box.config["hooks"] = dict.fromkeys(kinds, hook)
    box.config["hostname"] = "rich"
    box.config["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]},
        {"destination": "/volume", "type": "bind", "source": str(box.said), "options": ["rbind", "rprivate", "ro"]},
    ]
    box.process.update(
        terminal=True, args=["sleep", "1000"], noNewPrivileges=True, oomScoreAdj=500, cwd="/tmp",
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}],
    )  # fmt: skip
    box.linux.update({
        "maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": ["/proc/sys"], "rootfsPropagation": "rslave",
        "devices": [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600}],
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]},
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "80"},
        "timeOffsets": {"boottime": {"secs": 100}},
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
    })  # fmt: skip
    box.linux["namespaces"].append({"type": "time"})
    if users:
        box.linux["namespaces"].append({"type": "user"})
        box.linux.update({"uidMappings": IDS, "gidMappings": IDS})
        for path in [box.rootfs, *box.rootfs.rglob("*")]:
            os.chown(path, 100000, 100000, follow_symlinks=False)


class Sabotage:
    """Puts a record that fails before the record `at` of every plan that `name` compiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.at, self.plan = 0, Plan((), (), 0)
        real: Any = getattr(planner, name)

        def compiled(*words: Any) -> Plan:
            self.plan = real(*words)
            if self.at >= len(self.plan.ops):
                return self.plan
            bad = Op("OPEN", self.plan.ops[self.at].side, fd0=self.plan.slots, s0=PLANTED)
            ops = (*self.plan.ops[: self.at], bad, *self.plan.ops[self.at :])
            return self.plan._replace(ops=ops, slots=self.plan.slots + 1)

        monkeypatch.setattr(planner, name, compiled)

    def everywhere(self) -> Iterator[int]:
        """Each place in turn. The first turn's plan tells how many there are."""
        self.at = 0
        while not self.at or self.at < len(self.plan.ops):
            yield self.at
            self.at += 1


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("verb", "users"), [("run", False), ("run", True), ("create", False)])
def test_every_step_of_a_create_can_fail(
    box: Box, own: Callable[..., tuple[int, str]], console: tuple[str, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch, verb: str, *, users: bool,
) -> None:  # fmt: skip
    enrich(box, users=users)
    box.write()
    words = [verb, *(["--detach"] if verb == "run" else []), "--bundle", box.bundle, "--pid-file", box.place / "pid",
             "--console-socket", console[0], "c"]  # fmt: skip
    own("list")  # what is imported and opened once
    before = descriptors()
    sabotage = Sabotage(monkeypatch, "compile_create")
    waits = False
    for at in sabotage.everywhere():
        waits |= bool(at) and sabotage.plan.ops[at - 1].name == "WAIT_START"
        code, said = own(*words)
        if waits and sabotage.plan.ops[at].side == "C":  # the process itself fails, once it is started
            assert (code, said) == (0, ""), (at, said)
            code, said = own("start", "c")
            assert code == 1, (at, said)
            assert own("delete", "--force", "c") == (0, "")
            (box.place / "pid").unlink()
        else:
            assert code == 1, (at, sabotage.plan.ops[at], said)
            assert PLANTED in said, (at, said)
        assert not box.left(), (at, sabotage.plan.ops[at])
        assert not (box.place / "pid").exists(), at
        assert not strays(reap=True), at
        assert descriptors() == before, at
        console[1]()
    assert sabotage.at > 60


def test_every_step_of_an_exec_can_fail(
    box: Box, own: Callable[..., tuple[int, str]], console: tuple[str, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    enrich(box, users=False)
    box.write()
    assert own("run", "--detach", "--bundle", box.bundle, "--console-socket", console[0], "c")[0] == 0
    before, alone = descriptors(), box.processes()
    state = box.state()
    sabotage = Sabotage(monkeypatch, "compile_exec")
    words = ["exec", "--detach", "--tty", "--console-socket", console[0], "--pid-file", box.place / "pid", "c", "true"]
    for at in sabotage.everywhere():
        code, said = own(*words)
        assert code == 255, (at, said)
        assert PLANTED in said, (at, said)
        assert box.processes() == alone, at
        assert not (box.place / "pid").exists(), at
        assert not strays(reap=True)[1:], at  # the container's own first process may be ours by now
        assert descriptors() == before, at
        console[1]()
    assert sabotage.at > 20
    assert box.state() == state
    assert own("delete", "--force", "c")[0] == 0
    strays(reap=True)


def test_a_create_that_is_killed_is_deleted_by_force(box: Box, own: Callable[..., tuple[int, str]]) -> None:
    """At 60 moments of its life, and deleted at once: also while a helper that nobody waits for goes on."""
    enrich(box, users=False)
    box.process["terminal"] = False
    box.write()
    words = box.argv("create", "--bundle", box.bundle, "c")
    begun = time.monotonic()
    subprocess.run(words, env=box.env, check=True, stdin=subprocess.DEVNULL)
    takes = time.monotonic() - begun
    assert own("delete", "--force", "c") == (0, "")
    dice = random.Random(3)
    ended = set()
    for _ in range(60):
        creating = subprocess.Popen(words, env=box.env, stdin=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.2, 1.2) * takes)
        creating.send_signal(signal.SIGKILL)
        ended.add(creating.wait())
        assert own("delete", "--force", "c") == (0, "")
        assert not box.left()
    assert -signal.SIGKILL in ended
