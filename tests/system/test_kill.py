"""kill -9 of any process of ours at any moment: the next command puts things right, nothing is left.

The counts are WHERRY_KILLS's (scripts/soak: 200); WHERRY_SEED repeats a run's moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import audit
from helpers.wherry import Wherry, until

KILLS = int(os.environ.get("WHERRY_KILLS", "12"))
SEED = int(os.environ.get("WHERRY_SEED", "0")) or random.randrange(1 << 32)

#: what the command line is killed in; the name of a running container and of one to be made
COMMANDS = {
    "run -d": ("run", "-d", "--name", "{new}", "{image}", "sleep", "1000"),
    "run": ("run", "--rm", "--name", "{new}", "{image}", "sleep", "0.05"),
    "run -d, no network": ("run", "-d", "--network", "none", "--name", "{new}", "{image}", "sleep", "1000"),
    "create": ("create", "-v", "/data", "--name", "{new}", "{image}", "true"),
    "exec": ("exec", "{old}", "sleep", "0.05"),
    "stop": ("stop", "-t", "1", "{old}"),
    "rm -f": ("rm", "-f", "{old}"),
    "restart": ("restart", "-t", "0", "{old}"),
}


def monitor_of(wherry: Wherry, ref: str) -> int:
    """The parent of the container's init."""
    return int(Path(f"/proc/{wherry.pid(ref)}/stat").read_text().rpartition(") ")[2].split()[1])


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] in "ZX"
    except OSError:
        return True


def start_sleeper(wherry: Wherry, image: str, name: str, *flags: str) -> str:
    wherry("run", "-d", "--name", name, *flags, image, "sh", "-c", "trap exit TERM; sleep 1000 & wait")
    return name


def settled(wherry: Wherry, before: audit.Snapshot, files: frozenset[str]) -> list[str]:
    """Sweep, remove everything that still has a name, and tell what is left."""
    wherry("gc")
    if ids := wherry.containers():
        wherry("rm", "-f", "-v", *ids)
    assert not wherry.containers()
    leaks = audit.settle(before, wherry.mark)
    return leaks + sorted(f"left file: {path}" for path in audit.files_below(wherry.root, wherry.state) - files)


@pytest.mark.seconds(120 + 15 * KILLS)
def test_killing_the_command_line_at_random_moments(wherry: Wherry, busybox: str) -> None:
    chance = random.Random(SEED)
    start_sleeper(wherry, busybox, wherry.name("warm"), "-v", "/data")
    wherry("rm", "-f", "-v", wherry.name("warm"))
    before, files = audit.take(wherry.mark), audit.files_below(wherry.root, wherry.state)
    for number in range(KILLS):
        verb = chance.choice(list(COMMANDS))
        words = {"image": busybox, "old": wherry.name(f"old{number}"), "new": wherry.name(f"new{number}")}
        if "{old}" in COMMANDS[verb]:
            start_sleeper(wherry, busybox, words["old"])
        moment = chance.uniform(0, 0.6)
        killed = wherry.popen(
            *(word.format(**words) for word in COMMANDS[verb]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        killed.kill()
        killed.wait()
        left = settled(wherry, before, files)
        assert not left, f"{verb} killed after {moment:.3f} s (kill {number}, WHERRY_SEED={SEED}):\n" + "\n".join(left)


@pytest.mark.seconds(120 + 15 * KILLS)
def test_killing_monitors_at_random_moments(wherry: Wherry, busybox: str) -> None:
    chance = random.Random(SEED)
    wherry("rm", "-f", start_sleeper(wherry, busybox, wherry.name("warm")))
    before, files = audit.take(wherry.mark), audit.files_below(wherry.root, wherry.state)
    for number in range(KILLS):
        name = start_sleeper(wherry, busybox, wherry.name(f"m{number}"))
        monitor, init = monitor_of(wherry, name), wherry.pid(name)
        # a verb is under way when its monitor dies
        verb = chance.choice([("stop", "-t", "1", name), ("exec", name, "sleep", "0.05"), ("logs", name), ("ps",)])
        busy = wherry.popen(*verb, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = chance.uniform(0, 0.3)
        time.sleep(moment)
        if not gone(monitor):
            os.kill(monitor, signal.SIGKILL)
        busy.wait(30)
        until(lambda pid=init: gone(pid), message=f"kill {number}: the container outlived its monitor")  # type: ignore[misc]
        state = wherry.inspect(name)["State"]
        assert state["Status"] == "exited", state
        left = settled(wherry, before, files)
        assert not left, f"{verb} with its monitor killed after {moment:.3f} s (WHERRY_SEED={SEED}):\n" + "\n".join(
            left
        )


def test_a_container_outlives_the_command_line_that_started_it(wherry: Wherry, busybox: str) -> None:
    """Attached, and with --rm: the monitor notices that nobody is there and settles the end by itself."""
    name = wherry.name("alone")
    words = ("run", "--rm", "--name", name, busybox, "sh", "-c", "echo up; sleep 2; exit 3")
    cli = wherry.popen(*words, stdout=subprocess.PIPE)
    assert cli.stdout is not None
    assert cli.stdout.readline() == b"up\n"
    pid = wherry.pid(name)
    cli.kill()
    cli.wait()
    cli.stdout.close()
    time.sleep(0.3)
    assert not gone(pid)
    until(lambda: gone(pid), 10)
    until(lambda: not list(wherry.state.glob("c/*")), 15, "nobody cleaned up after the container")
    assert not wherry.containers()


def test_a_killed_monitor_is_seen_by_the_next_command(wherry: Wherry, busybox: str) -> None:
    name = start_sleeper(wherry, busybox, wherry.name("blind"))
    init = wherry.pid(name)
    os.kill(monitor_of(wherry, name), signal.SIGKILL)
    until(lambda: gone(init))
    state = wherry.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 137)
    wherry("start", name)
    assert wherry.inspect(name)["State"]["Running"] is True


#: where a start is cut: a function of engine/start.py in whose stead, or after which, the command line dies
CUTS = ("before _spawn", "before _write_life", "before _write_state", "after _write_state")
DIES = """
import os, sys
import wherry.engine.start as start
when, name = sys.argv.pop(1).split()
real = getattr(start, name)
def cut(*words, **named):
    if when == "after":
        real(*words, **named)
    os.kill(os.getpid(), 9)
setattr(start, name, cut)
from wherry.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["run", "restart"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_start_cut_at_each_of_its_records(wherry: Wherry, busybox: str, cut: str, verb: str) -> None:
    """Also between the launch and the record of it: what runs unknown is found by its cgroup and ended."""
    wherry("rm", "-f", start_sleeper(wherry, busybox, wherry.name("warm")))
    before, files = audit.take(wherry.mark), audit.files_below(wherry.root, wherry.state)
    name = wherry.name("cut")
    words = ["run", "-d", "--name", name, busybox, "sleep", "1000"]
    if verb == "restart":
        start_sleeper(wherry, busybox, name)
        words = ["restart", "-t", "0", name]
    done = subprocess.run([sys.executable, "-c", DIES, cut, *words], env=wherry.env, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if cut == "after _write_state":
        assert wherry.inspect(name)["State"]["Running"] is True
    left = settled(wherry, before, files)
    assert not left, "\n".join(left)


def test_a_start_by_hand_follows_one_that_was_cut(wherry: Wherry, busybox: str) -> None:
    """Without a sweep in between, the unknown container still running."""
    name = wherry.name("again")
    wherry("create", "--name", name, busybox, "sleep", "1000")
    words = [sys.executable, "-c", DIES, "before _write_life", "start", name]
    assert subprocess.run(words, env=wherry.env, check=False).returncode == -signal.SIGKILL
    wherry("start", name)
    assert wherry.inspect(name)["State"]["Running"] is True


def test_nothing_runs_whose_start_nobody_waits_for(wherry: Wherry, busybox: str) -> None:
    """The helper cannot report the start to a dead command line, and takes it back without any sweep."""
    wherry("create", "--name", wherry.name("unheard"), busybox, "sleep", "1000")
    program = "import os, sys; from wherry.container import launch; from wherry.cli.main import main\n"
    program += "launch._Watch.run = lambda *words: os.kill(os.getpid(), 9)\nmain(sys.argv[1:])"
    words = [sys.executable, "-c", program, "start", wherry.name("unheard")]
    assert subprocess.run(words, env=wherry.env, check=False).returncode == -signal.SIGKILL
    top = next(mount for mount, kind in audit.cgroup_mounts() if kind == "cgroup2")
    time.sleep(0.3)
    until(lambda: not list(Path(top + wherry.cgroup).glob(f"{wherry.containers()[0]}*")), 5, "it runs on")
