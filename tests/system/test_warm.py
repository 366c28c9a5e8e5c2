"""The front and the warm process: answers as from a cold start, containers of their caller's, foreign worlds, faults.

Who answered is seen by a front that has no Python beside it (`Alone`): served it works, sent cold it cannot.
Counts of the long tier: WHERRY_WARM_CALLS (2,000), WHERRY_WARM_KILLS (60); scripts/soak raises them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import wherry as package
from helpers import ocibundle
from helpers.ocibundle import Box
from helpers.registry import Registry
from helpers.warm import Warm
from helpers.wherry import SCRIPT, Wherry, until

HELPER = Path(package.__path__[0]) / "_native/wherry-helper"
CALLS, KILLS = (
    int(os.environ.get(name, few)) for name, few in (("WHERRY_WARM_CALLS", 2000), ("WHERRY_WARM_KILLS", 60))
)
COLD = b"cannot be executed"
Done = subprocess.CompletedProcess[bytes]

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists() or SCRIPT.read_bytes()[:4] != b"\x7fELF", reason="wherry is not installed with its front"
)


class Alone:
    """Fronts without a Python beside them, and the environment that leads them to a warm process."""

    def __init__(self, env: dict[str, str], directory: Path, **warm: Any) -> None:
        self.env, self.bin = env, directory / "alone"
        self.bin.mkdir()
        for name in ("wherry", "wherry-oci"):
            shutil.copy(HELPER, self.bin / name)
        self.warm = Warm(env, **warm)

    def argv(self, *words: str | bytes | Path) -> list[str | bytes | Path]:
        """wherry, or wherry-oci where the first word is it."""
        name = "wherry-oci" if words[0] == "wherry-oci" else "wherry"
        return [self.bin / name, *(words[1:] if name == "wherry-oci" else words)]

    def __call__(self, *words: str | bytes | Path, before: tuple[str, ...] = (), **options: Any) -> Done:
        options = {"stdin": subprocess.DEVNULL, "env": self.env, "timeout": 60, **options}
        if "input" in options:
            del options["stdin"]
        return subprocess.run([*before, *self.argv(*words)], capture_output=True, check=False, **options)

    def popen(self, *words: str | bytes | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command and go on."""
        pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.argv(*words), env=self.env, **{**pipe, **options})

    def served(self, *words: str | bytes | Path, **options: Any) -> bool:
        """Whether the warm process did it."""
        done = self(*(words or ("version",)), **options)
        assert (done.returncode == 125) == (COLD in done.stderr), done
        return COLD not in done.stderr


@pytest.fixture(autouse=True)
def _no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm processes here are the tests' own, and what they are compared with is cold."""
    monkeypatch.delenv("WHERRY_TEST_WARM", raising=False)


@pytest.fixture
def alone(wherry: Wherry, tmp_path: Path) -> Iterator[Alone]:
    """Beside the `wherry` of this test, which stays cold."""
    made = Alone(dict(wherry.env), tmp_path)
    yield made
    _settled(made)


@pytest.fixture
def copied(wherry: Wherry, tmp_path: Path) -> Iterator[Alone]:
    """The same of a copy of the code, `tmp_path`/code: nobody else changes it."""
    shutil.copytree(Path(package.__path__[0]), tmp_path / "code/wherry", ignore=shutil.ignore_patterns("__pycache__"))
    made = Alone(dict(wherry.env), tmp_path, path=(str(tmp_path / "code"),))
    yield made
    _settled(made)


def _settled(made: Alone) -> None:
    with contextlib.suppress(AssertionError):
        until(lambda: not made.warm.alive() or not made.warm.children(), 5)
    left = made.warm.children() if made.warm.alive() else []
    made.warm.stop()
    assert not left, f"commands still at work: {left}"


@pytest.fixture
def box(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Box]:
    with ocibundle.boxed(test_id, tmp_path) as made:
        yield made


# ---- the same answers


def both(wherry: Wherry, alone: Alone, *words: str | bytes, **options: Any) -> tuple[Done, Done]:
    """(cold, warm)."""
    options = {"timeout": 60, **({} if "input" in options else {"stdin": subprocess.DEVNULL}), **options}
    env = {**wherry.env, **options.pop("env", {})}
    cold = subprocess.run(
        [SCRIPT, *words], capture_output=True, check=False, env={**env, "WHERRY_WARM": "off"}, **options
    )
    options.pop("stdin", None)
    return cold, alone(*words, env={**env, "WHERRY_WARM": "on"}, **options)


@pytest.mark.parametrize("words", [
    ("ps", "-a"), ("ps", "--format", "json"), ("ps", "--no-such-flag"), ("ps", "--help"), ("run", "--help"),
    ("images", "-q"), ("inspect", "nobody"), ("rm", "nobody"), ("ps", "--filter", b"name=\xff\xfe"), ("exec",),
    ("network", "ls"), ("stats", "x"), ("--debug", "rm", "nobody"), ("wherry-oci", "state", "nobody"),
    ("wherry-oci", "list"), ("wherry-oci", "features"), ("wherry-oci", "--root", b"/n\xff", "state", "x"),
])  # fmt: skip
def test_answers_are_a_cold_starts(wherry: Wherry, alone: Alone, words: tuple[str | bytes, ...]) -> None:
    oci = words[0] == "wherry-oci"
    program, rest = SCRIPT.with_name("wherry-oci") if oci else SCRIPT, words[1:] if oci else words
    cold = subprocess.run([program, *rest], capture_output=True, check=False, env=wherry.env, stdin=subprocess.DEVNULL)
    warm = alone(*words)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr) or (
        words[0] == "--debug" and b"Traceback" in warm.stderr and b"Traceback" in cold.stderr
    )


def test_streams_reach_the_container(wherry: Wherry, alone: Alone, busybox: str) -> None:
    wherry("run", "--rm", "--network", "none", busybox, "true")  # the image is there
    script = "cat; printf '\\377'; echo bad >&2; exit 7"
    words = ("run", "--rm", "-i", "--network", "none", busybox, "sh", "-c", script, b"\xfe")
    cold, warm = both(wherry, alone, *words, input=b"given\0\xff")
    assert (warm.returncode, warm.stdout, warm.stderr) == (7, b"given\0\xff\xff", b"bad\n")
    assert (cold.returncode, cold.stdout, cold.stderr) == (7, b"given\0\xff\xff", b"bad\n")


def test_directory_environment_and_umask_are_the_callers(
    wherry: Wherry, alone: Alone, busybox: str, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("FROM_FILE=here\n")
    words = ("run", "--rm", "--network", "none", "--env-file", "env", "-e", "GIVEN", "--cidfile", "cid", busybox, "env")
    for umask, mode in ((0o077, 0o600), (0o022, 0o644)):
        done = alone(*words, cwd=tmp_path, umask=umask, env={**alone.env, "GIVEN": "bytes \udcff"})
        assert b"FROM_FILE=here\n" in done.stdout, done
        assert b"GIVEN=bytes \xff\n" in done.stdout
        assert (tmp_path / "cid").stat().st_mode & 0o777 == mode
        (tmp_path / "cid").unlink()


def test_of_two_variables_the_first_counts(alone: Alone, busybox: str) -> None:
    asked = ("run", "--rm", "--network", "none", "-e", "TWICE", busybox, "sh", "-c", "echo $TWICE")
    program = "import ctypes, sys; words = [w.encode() for w in sys.argv[1:]];"
    program += "env = [b'TWICE=first', b'no value', b'TWICE=second'];"
    program += "env += [f'{k}={v}'.encode() for k, v in __import__('os').environ.items()];"
    program += "lists = [(ctypes.c_char_p * (len(l) + 1))(*l, None) for l in (words, env)];"
    program += "ctypes.CDLL(None).execve(words[0], *lists)"
    done = alone(*asked, before=(sys.executable, "-c", program))
    assert done.stdout == b"first\n", done


def test_a_closed_stream_goes_cold(alone: Alone) -> None:
    for closed in ("0<&-", "1>&-"):
        assert not alone.served("ps", before=("sh", "-c", f'exec "$@" {closed}', "sh"))
    done = alone("ps", before=("sh", "-c", 'exec "$@" 2>&-', "sh"))
    assert (done.returncode, done.stderr) == (125, b"")


# ---- the caller's own descendants


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        found.append(pid)
    return found


def test_a_container_is_the_callers_descendant_in_its_cgroup(box: Box, tmp_path: Path) -> None:
    alone = Alone(dict(box.env), tmp_path)
    try:
        box.process["args"] = ["sleep", "1000"]
        box.write("c")
        front = alone.popen("wherry-oci", "--root", box.root, "run", "--bundle", box.bundle, "c")
        until(lambda: (box.root / "c/state.json").exists() and box("state", "c", check=False).code == 0)
        until(lambda: box.state()["status"] == "running")
        chain = ancestors(box.pid())
        assert front.pid in chain
        assert alone.warm.pid not in chain
        child = alone.warm.children()[0]
        own, theirs = (Path(f"/proc/{pid}/cgroup").read_text() for pid in (front.pid, child))
        assert own == theirs
        os.kill(box.pid(), signal.SIGKILL)
        assert front.wait(10) == 137
        front.communicate()
    finally:
        alone.warm.stop()


def test_a_created_container_goes_to_the_subreaper(box: Box, tmp_path: Path) -> None:
    alone = Alone(dict(box.env), tmp_path)
    try:
        box.process["args"] = ["sh", "-c", "exit 9"]
        box.write("c")
        program = (
            "import ctypes, os, subprocess, sys; ctypes.CDLL(None).prctl(36, 1); call = sys.argv[1:3]\n"
            "root, bundle = sys.argv[2:4]\n"
            "run = lambda *w: subprocess.run([sys.argv[1], '--root', root, *w], check=True, stdin=subprocess.DEVNULL)\n"
            "run('create', '--bundle', bundle, '--pid-file', root + '/pid', 'c'); run('start', 'c')\n"
            "pid = int(open(root + '/pid').read()); os.unlink(root + '/pid')\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True); run('delete', 'c')\n"
        )
        words = [sys.executable, "-c", program, alone.bin / "wherry-oci", box.root, box.bundle]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=alone.env, timeout=60)
        assert (done.returncode, done.stdout) == (0, "9\n"), done
    finally:
        alone.warm.stop()


def test_the_verbs_of_a_life(alone: Alone, wherry: Wherry, busybox: str) -> None:
    name = wherry.name()
    assert alone("run", "-d", "--name", name, busybox, "sleep", "1000").returncode == 0
    assert name.encode() in alone("ps").stdout
    assert alone("exec", name, "sh", "-c", "echo in; exit 3").stdout == b"in\n"
    assert alone("exec", name, "sh", "-c", "exit 3").returncode == 3
    assert alone("stop", "-t", "0", name).stdout == name.encode() + b"\n"
    assert alone("start", name).returncode == 0
    assert wherry.inspect(name)["State"]["Running"]
    assert alone("rm", "-f", name).returncode == 0
    assert not wherry.containers()


# ---- signals


@pytest.fixture
def waited(wherry: Wherry, busybox: str) -> str:
    """A container to wait for."""
    wherry("run", "-d", "--network", "none", "--name", wherry.name("long"), busybox, "sleep", "1000")
    return wherry.name("long")


def at_work(alone: Alone) -> int:
    """The child that serves the one command, once it has begun: its environment is the caller's."""
    return int(until(lambda: next((pid for pid in alone.warm.children() if _blocks(pid)), 0)))


def _blocks(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/wchan").read_text() not in ("", "0") and _state(pid) == "S" and _served(pid)
    return False


def _served(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/cwd") != "/"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_ends_it_as_a_cold_one(alone: Alone, wherry: Wherry, waited: str, number: int, tmp_path: Path) -> None:
    front = alone.popen("wait", waited, cwd=tmp_path)
    at_work(alone)
    time.sleep(0.2)
    front.send_signal(number)
    assert front.wait(10) == (130 if number == signal.SIGINT else -number)
    assert front.communicate() == (b"", b"")


def test_stop_and_go_on(alone: Alone, waited: str, tmp_path: Path) -> None:
    front = alone.popen("wait", waited, cwd=tmp_path)
    child = at_work(alone)
    front.send_signal(signal.SIGTSTP)
    until(lambda: _state(front.pid) == "T" and _state(child) == "T")
    front.send_signal(signal.SIGCONT)
    until(lambda: _state(front.pid) == "S" and _state(child) == "S")
    front.send_signal(signal.SIGTERM)
    assert front.wait(10) == -signal.SIGTERM
    front.communicate()


def test_an_ignored_signal_stays_ignored(alone: Alone, waited: str, tmp_path: Path) -> None:
    before = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh"]
    front = subprocess.Popen(
        [*before, *alone.argv("wait", waited)], env=alone.env, cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    at_work(alone)
    front.send_signal(signal.SIGHUP)
    front.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert front.poll() is None
    front.terminate()
    assert front.wait(10) == -signal.SIGTERM


def test_a_killed_front_takes_its_command_along(alone: Alone, waited: str, tmp_path: Path) -> None:
    front = alone.popen("wait", waited, cwd=tmp_path)
    at_work(alone)
    front.kill()
    front.communicate()
    until(lambda: not alone.warm.children(), 5)
    assert alone.served()


# ---- what nobody waits for


@contextlib.contextmanager
def teardown_held(wherry: Wherry) -> Iterator[None]:
    """No teardown of a container with a network comes to its end meanwhile."""
    with open(wherry.state / "peers.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def running(wherry: Wherry, busybox: str) -> str:
    """A container on the default bridge."""
    wherry("run", "-d", "--name", wherry.name("up"), busybox, "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait")
    return wherry.name("up")


def test_the_answer_comes_before_what_nobody_waits_for(alone: Alone, wherry: Wherry, running: str) -> None:
    """Nor does anybody wait who reads the output to its end; and what the answer says is true at once."""
    with teardown_held(wherry):
        done = alone("stop", running, timeout=10)
        assert (done.returncode, done.stdout) == (0, running.encode() + b"\n")
        assert len(alone.warm.children()) == 1
        state = wherry.inspect(running)["State"]
        assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 3, False)
        assert b"Exited (3)" in alone("ps", "-a", "--filter", f"name={running}").stdout
    until(lambda: not alone.warm.children())
    assert not list(wherry.state.glob("netns/*"))
    assert wherry.inspect(running)["State"]["ExitCode"] == 3


def test_the_next_verb_waits_for_it(alone: Alone, wherry: Wherry, busybox: str, running: str) -> None:
    with teardown_held(wherry):
        alone("stop", running)
        front = alone.popen("start", running)
        time.sleep(0.5)
        assert front.poll() is None
    assert front.wait(20) == 0
    front.communicate()
    assert wherry.inspect(running)["State"]["Running"]
    assert alone("rm", "-f", running).returncode == 0
    assert alone("run", "--rm", "--name", running, busybox, "true").returncode == 0  # its name is free


def test_a_network_and_an_image_can_go_behind_their_last_container(alone: Alone, wherry: Wherry, busybox: str) -> None:
    network, name = wherry.name("net"), wherry.name("c")
    wherry("network", "create", network)
    wherry("run", "-d", "--name", name, "--network", network, busybox, "sleep", "1000")
    with teardown_held(wherry):
        assert alone("rm", "-f", name).returncode == 0
        removal = alone.popen("network", "rm", network)
        image = alone.popen("rmi", wherry("images", "-q").stdout.strip())
        time.sleep(0.5)
        assert removal.poll() is None
        assert image.poll() is None
    assert removal.wait(20) == 0, removal.communicate()
    assert image.wait(20) == 0, image.communicate()
    removal.communicate()
    image.communicate()
    assert not list((wherry.root / "layers").glob("*")), "a layer was kept for a snapshot that was about to go"


def test_a_port_is_free_when_the_answer_says_so(alone: Alone, wherry: Wherry, busybox: str) -> None:
    words = ("-p", "127.0.0.1:18321:80", busybox, "sleep", "1000")
    for number in range(6):
        name = wherry.name(str(number))
        done = alone("run", "-d", "--name", name, *words)
        assert done.returncode == 0, done
        alone(*(("stop", "-t", "0") if number % 2 else ("rm", "-f")), name)


def test_the_last_address_comes_back_in_time(alone: Alone, wherry: Wherry, busybox: str) -> None:
    network = wherry.name("tiny")
    wherry("network", "create", "--subnet", "10.79.3.0/30", network)
    for _ in range(6):
        done = alone("run", "--rm", "--network", network, busybox, "true")
        assert done.returncode == 0, done.stderr


def test_an_answer_comes_without_the_warm_process(alone: Alone, wherry: Wherry, busybox: str) -> None:
    name = wherry.name("slow")
    wherry("run", "-d", "--name", name, busybox, "sh", "-c", "trap '' TERM; while true; do sleep 1; done")
    front = alone.popen("stop", "-t", "2", name)
    until(alone.warm.children)
    time.sleep(0.5)
    alone.warm.kill()
    assert front.wait(20) == 0
    assert front.communicate() == (name.encode() + b"\n", b"")
    until(lambda: not list(wherry.state.glob("netns/*")))
    assert wherry.inspect(name)["State"]["ExitCode"] == 137


@pytest.mark.parametrize("pause", [0, 0.5], ids=["at once", "on its way"])
@pytest.mark.parametrize("words", [("stop",), ("rm", "-f")], ids=" ".join)
def test_a_kill_after_the_answer_leaves_nothing(
    alone: Alone, wherry: Wherry, running: str, words: tuple[str, ...], pause: float
) -> None:
    """The monitor, or the next command, does what the killed one had put off."""
    with teardown_held(wherry):
        assert alone(*words, running, timeout=10).returncode == 0
        time.sleep(pause)
        for child in alone.warm.children():
            os.kill(child, signal.SIGKILL)
        until(lambda: not alone.warm.children())
    wherry("gc")
    until(lambda: not list(wherry.state.glob("netns/*")))
    assert sorted(path.name for path in wherry.root.glob("containers/*")) == sorted(wherry.containers())
    if words == ("stop",):
        assert wherry.inspect(running)["State"]["ExitCode"] == 3


# ---- other worlds

SECCOMP = (
    "import ctypes, os, struct, sys; c = ctypes.CDLL(None); rule = struct.pack('HBBI', 6, 0, 0, 0x7fff0000);"
    "rules = ctypes.create_string_buffer(rule); prog = struct.pack('HxxxxxxP', 1, ctypes.addressof(rules));"
    "assert c.prctl(22, 2, prog, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
)
WORLDS = {
    "network": ("unshare", "--net"),
    "mounts": ("unshare", "--mount"),
    "names": ("unshare", "--uts"),
    "ipc": ("unshare", "--ipc"),
    "processes": ("unshare", "--pid", "--fork", "--kill-child"),
    "its children's processes": ("unshare", "--pid", "--", "sh", "-c", 'exec "$@"', "sh"),
    "cgroups": ("unshare", "--cgroup"),
    "time": ("unshare", "--time"),
    "users": ("unshare", "--user", "--map-root-user"),
    "no_new_privs": ("setpriv", "--no-new-privs"),
    "bounding set": ("setpriv", "--bounding-set", "-sys_chroot"),
    "inheritable": ("setpriv", "--inh-caps", "+net_raw"),
    "groups": ("setpriv", "--groups", "54321"),
    "group": ("setpriv", "--regid", "54321", "--keep-groups"),
    "user": ("setpriv", "--reuid", "54321", "--clear-groups"),
    "securebits": ("setpriv", "--securebits", "+noroot"),
    "seccomp": (sys.executable, "-c", SECCOMP),
    "a limit": ("prlimit", "--core=12345:12345"),
    "processors": ("taskset", "1"),
    "oom score": ("sh", "-c", 'echo 500 >/proc/self/oom_score_adj; exec "$@"', "sh"),
    "locale": ("env", "LC_ALL=en_US.ISO-8859-1"),
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_foreign_world_goes_cold(alone: Alone, world: str, tmp_path: Path) -> None:
    if not shutil.which(WORLDS[world][0]):
        pytest.skip(f"{WORLDS[world][0]} is not installed")
    if world == "processors" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    for path in (tmp_path, *tmp_path.parents[:3]):
        with contextlib.suppress(PermissionError):
            path.chmod(path.stat().st_mode | 0o055) if path != Path("/tmp") else None
    assert alone.served("version")
    assert not alone.served("version", before=WORLDS[world])
    assert alone.served("version")


def test_another_root_goes_cold(alone: Alone, tmp_path: Path) -> None:
    root = tmp_path / "root"
    mounts = [str(path) for path in (alone.warm.directory, alone.bin, Path("/proc"))]
    for path in mounts:
        os.makedirs(f"{root}{path}")
        subprocess.run(["mount", "--bind", path, f"{root}{path}"], check=True)
    try:
        assert alone.served("version", before=("chroot", "/"))
        assert not alone.served("version", before=("chroot", str(root)))
    finally:
        for path in mounts:
            subprocess.run(["umount", f"{root}{path}"], check=True)


@pytest.mark.parametrize("words", [
    ("warm", "status"), ("pull", "x"), ("login",), ("internal", "health", "x"), ("gc",), ("container", "prune"),
    ("image", "pull", "x"), ("wherry-oci", "spec"), ("--root", "/x"),
])  # fmt: skip
def test_only_short_verbs_are_served(alone: Alone, words: tuple[str, ...]) -> None:
    assert not alone.served(*words)


def test_an_image_that_is_there_is_pulled_warm(
    alone: Alone, wherry: Wherry, busybox: str, registry: Registry, test_id: str
) -> None:
    """A question to the registry is all. What is new to us, and what is no registry's, starts cold."""
    name = registry.push(busybox, f"{test_id}:1")
    assert not alone.served("pull", "-q", name)
    wherry("pull", "-q", name)
    done = alone("pull", "-q", name)
    assert (done.returncode, done.stdout.decode().strip()) == (0, name), done
    assert alone.served("image", "pull", name)
    assert not alone.served("pull", "-q", f"{name}9")
    assert not alone.served("pull", "-q", busybox)


# ---- bad input and faults


def connect(warm: Warm) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(str(warm.socket))
    return sock


def ask(**changed: Any) -> tuple[bytes, bytes]:
    """(message, words) of `wherry version` as a front sends them, with changes."""
    words = changed.pop("words", b"wherry\0version\0A=b\0")
    values = {"magic": 0x52464857, "version": 1, "argc": 2, "envc": 1, "umask": 0o22, "bits": 0, "program": b"wherry"}
    return struct.pack("=6I32s", *{**values, **changed}.values()), words


def memfd(words: bytes, seals: int = 15) -> int:
    fd = os.memfd_create("ask", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, words)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def send(sock: socket.socket, message: bytes, words: bytes, seals: int = 15, streams: int = 3) -> None:
    text, null = memfd(words, seals), os.open("/dev/null", os.O_RDWR)
    here = os.open("/", os.O_PATH)
    socket.send_fds(sock, [message], [text, *[null] * streams, here])
    for fd in (text, null, here):
        os.close(fd)


GARBAGE: dict[str, Callable[[socket.socket], object]] = {
    "nothing": lambda sock: sock.shutdown(socket.SHUT_WR),
    "noise": lambda sock: sock.send(os.urandom(4000)),
    "an empty message": lambda sock: sock.send(b""),
    "half": lambda sock: sock.send(ask()[0][:20]),
    "no descriptors": lambda sock: sock.send(ask()[0]),
    "too few": lambda sock: send(sock, *ask(), streams=1),
    "too many": lambda sock: send(sock, *ask(), streams=200),
    "no seals": lambda sock: send(sock, *ask(), seals=0),
    "other magic": lambda sock: send(sock, *ask(magic=1)),
    "a later version": lambda sock: send(sock, *ask(version=2)),
    "a wrong count": lambda sock: send(sock, *ask(argc=0xFFFFFFFF)),
    "no words": lambda sock: send(sock, *ask(words=b"")),
    "no end": lambda sock: send(sock, *ask(words=b"wherry\0version\0A=b")),
    "no name": lambda sock: send(sock, *ask(program=b"\xff" * 32)),
    "other securebits": lambda sock: send(sock, *ask(bits=1)),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_refused_and_forgotten(alone: Alone, what: str) -> None:
    with connect(alone.warm) as sock:
        GARBAGE[what](sock)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) in (b"", struct.pack("=Ii", 1, 0))
    until(lambda: not alone.warm.children())
    assert alone.served()


def test_a_client_that_vanishes_before_go(alone: Alone) -> None:
    for _ in range(20):
        with connect(alone.warm) as sock:
            send(sock, *ask())
    for _ in range(20):
        with connect(alone.warm) as sock:
            send(sock, *ask())
            assert sock.recv(100) == struct.pack("=Ii", 2, 0)
    until(lambda: not alone.warm.children())
    assert alone.served()


def test_a_silent_client_is_let_go(alone: Alone) -> None:
    with connect(alone.warm), connect(alone.warm) as second:
        send(second, *ask())
        assert alone.served()
        until(lambda: not alone.warm.children(), 12)


@pytest.mark.seconds(300)
def test_two_hundred_at_once(alone: Alone, wherry: Wherry) -> None:
    def one(_number: int) -> tuple[int, bytes, bytes]:
        done = subprocess.run([SCRIPT, "ps"], capture_output=True, check=False, env=alone.env, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout, done.stderr

    with ThreadPoolExecutor(200) as pool:
        answers = set(pool.map(one, range(200)))
    assert answers == {(0, wherry("ps").stdout.encode(), b"")}


def test_without_it_the_next_command_is_cold(alone: Alone, wherry: Wherry) -> None:
    alone.warm.kill()
    assert alone.warm.socket.exists(), "the stale socket is what this is about"
    assert not alone.served()
    done = subprocess.run([SCRIPT, "ps", "-q"], capture_output=True, check=False, env=alone.env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    try:
        until(alone.served, message="no new one in the place of the killed one")
    finally:
        assert wherry("warm", "stop", env={"WHERRY_WARM": "on"}).stdout == "stopped\n"


def test_a_command_outlives_the_warm_process(alone: Alone, wherry: Wherry, waited: str, tmp_path: Path) -> None:
    front = alone.popen("wait", waited, cwd=tmp_path)
    at_work(alone)
    alone.warm.kill()
    wherry("kill", waited)
    assert front.wait(10) == 0
    assert front.communicate() == (b"137\n", b"")


def test_a_lost_command_says_so(alone: Alone, waited: str, tmp_path: Path) -> None:
    front = alone.popen("wait", waited, cwd=tmp_path)
    os.kill(at_work(alone), signal.SIGKILL)
    assert front.wait(10) == 125
    out, err = front.communicate()
    assert out == b""
    assert err.startswith(b"wherry: the warm process was lost in the middle of this command")
    assert COLD not in err


def test_a_directory_that_is_not_ours_alone_is_not_used(alone: Alone, tmp_path: Path) -> None:
    directory = alone.warm.directory
    for spoil, mend in (
        (lambda: directory.chmod(0o755), lambda: directory.chmod(0o700)),
        (lambda: os.chown(directory, 54321, 0), lambda: os.chown(directory, 0, 0)),
    ):
        spoil()
        assert not alone.served()
        mend()
        assert alone.served()
    link = tmp_path / "link"
    link.symlink_to(directory.parent)
    assert not alone.served("version", env={**alone.env, "WHERRY_STATE": str(link)})
    assert not alone.served("version", env={**alone.env, "WHERRY_STATE": "relative"})
    assert not alone.served("version", env={**alone.env, "WHERRY_WARM": "off"})


def test_a_hostile_environment_reaches_nothing(alone: Alone, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "wherry.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    hostile = {
        "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/x", "PYTHONINSPECT": "1",
        "LD_PRELOAD": "/nowhere.so", "LD_LIBRARY_PATH": str(tmp_path), "GLIBC_TUNABLES": "x=y",
    }  # fmt: skip
    env = {**alone.env, **hostile}
    assert alone.served("version", env=env)
    assert alone("ps", env=env, cwd=tmp_path).stderr == b""
    del env["LD_PRELOAD"]
    done = subprocess.run(
        [SCRIPT, "ps"], env={**env, "WHERRY_WARM": "off"}, capture_output=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / "ran").exists()
    words = Path(f"/proc/{alone.warm.pid}/environ").read_bytes().split(b"\0")
    assert {word.partition(b"=")[0] for word in words} <= {b"", b"PATH", b"LANG"}


def holds(pid: int, what: bytes) -> bool:
    """Whether a process's memory has these bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            with contextlib.suppress(OSError, OverflowError, ValueError):
                memory.seek(first)
                if " r" in line and what in memory.read(last - first):
                    return True
    return False


def test_secrets_of_one_call_are_in_no_other(alone: Alone, waited: str, tmp_path: Path) -> None:
    secret = os.urandom(12).hex()
    given = {**alone.env, "TOKEN": f"tok{secret}"}
    first = subprocess.Popen(alone.argv("wait", waited), env=given, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert holds(at_work(alone), f"tok{secret}".encode()), "the search finds nothing at all"
    assert alone("inspect", f"arg{secret}", env=given).returncode
    second = alone.popen("wait", waited, cwd=tmp_path)
    until(lambda: len(alone.warm.children()) == 2)
    time.sleep(0.3)
    later = max(alone.warm.children())
    assert not holds(later, secret.encode())
    assert not holds(alone.warm.pid, secret.encode())
    for front in (first, second):
        front.terminate()
        front.wait(10)
    second.communicate()


# ---- its life


def test_it_leaves_when_idle(wherry: Wherry) -> None:
    warm = Warm(dict(wherry.env), idle=0.5)
    try:
        assert warm.ended(10)
        assert not warm.socket.exists()
    finally:
        warm.stop()


def test_it_leaves_when_told(alone: Alone, wherry: Wherry) -> None:
    env = {"WHERRY_WARM": "on"}
    assert f"pid {alone.warm.pid}, " in wherry("warm", "status", env=env).stdout
    assert wherry("warm", "stop", env=env).stdout == "stopped\n"
    assert alone.warm.ended(5)
    assert wherry("warm", "stop", env=env).stderr == "no warm process\n"
    told = wherry("warm", "status", env=env, check=False)
    assert (told.returncode, told.stdout) == (1, "no warm process: none was left yet: the next command leaves one\n")
    assert wherry("warm", "status", check=False).stdout == "no warm process: WHERRY_WARM=off\n"


def test_it_leaves_when_its_code_changes(copied: Alone, tmp_path: Path) -> None:
    assert copied.served()
    time.sleep(1.1)  # it looks once a second
    assert copied.served()
    os.utime(tmp_path / "code/wherry/errors.py", (1, 1))
    time.sleep(1.1)
    assert not copied.served()
    assert copied.warm.ended(5)


def test_there_is_one(alone: Alone) -> None:
    program = "import sys; from wherry.warm.server import main; main(sys.argv[1])"
    done = subprocess.run([sys.executable, "-I", "-c", program, alone.warm.directory], timeout=20, check=False)
    assert done.returncode == 0
    assert alone.served()


@pytest.mark.seconds(120 + CALLS // 10)
def test_it_stays_small(copied: Alone) -> None:
    def calls(count: int) -> None:
        late = sum(
            not copied.served(*(("ps", "-a") if number % 2 else ("inspect", "nobody"))) for number in range(count)
        )
        assert copied.warm.alive()
        assert late <= count // 100, "a busy machine may answer one or the other too late"

    calls(50)
    until(copied.warm.at_rest)
    fds, before = copied.warm.descriptors(), copied.warm.resident()
    calls(CALLS)
    until(copied.warm.at_rest)
    assert copied.warm.descriptors() == fds
    after = copied.warm.resident()
    print(f"\n{before} KiB resident, {after} after {CALLS} calls")
    assert after <= 64 << 10
    assert after - before < 256, "it grows"


@pytest.mark.seconds(120 + 10 * KILLS)
def test_killed_at_any_moment(wherry: Wherry, busybox: str) -> None:
    """No call has a wrong answer: it is right, or says that it was lost; and nothing is left (the fixture looks)."""
    env = {**wherry.env, "WHERRY_WARM": "on"}
    chance = random.Random(seed := int(os.environ.get("WHERRY_SEED") or time.time()))
    print(f"\nWHERRY_SEED={seed}")
    name = wherry.name()
    loop: list[tuple[tuple[str, ...], tuple[int, bytes]]] = [
        (("run", "-d", "--name", name, busybox, "sleep", "1000"), (0, b"")),
        (("exec", name, "sh", "-c", "echo said; exit 3"), (3, b"said\n")),
        (("stop", "-t", "0", name), (0, name.encode() + b"\n")),
        (("rm", name), (0, name.encode() + b"\n")),
    ]
    lost = 0
    for _ in range(KILLS):
        warm = Warm(env)
        killer = threading.Timer(chance.random() * 0.6, _kill, (warm, chance.random() < 0.5))
        killer.start()
        try:
            lost += not all(_right(words, answer, env) for words, answer in loop)
        finally:
            killer.join()
            warm.stop()
            _end_all(warm.directory)
            removed = wherry("rm", "-f", name, check=False)
        assert not wherry.containers(), removed
    print(f"{KILLS} kills, {lost} commands lost")


def _right(words: tuple[str, ...], answer: tuple[int, bytes], env: dict[str, str]) -> bool:
    """Whether the answer is there; False where the command was lost, and says so."""
    done = subprocess.run([SCRIPT, *words], capture_output=True, check=False, env=env, stdin=subprocess.DEVNULL)
    if b"was lost in the middle" in done.stderr:
        assert done.returncode == 125, done
        return False
    assert done.returncode == answer[0], done
    assert done.stdout == answer[1] or words[0] == "run", done
    return True


def _kill(warm: Warm, children: bool) -> None:
    """The warm process alone, or with what works for it, as when memory runs out."""
    for pid in [*(warm.children() if children and warm.alive() else ()), warm.pid]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _end_all(directory: Path) -> None:
    """Those too that a cold command is only just starting: they are known by their directory. Until they are gone: the
    lock is."""
    until(lambda: not _killed(f"main('{directory}')".encode()))


def _killed(word: bytes) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in path.read_bytes():
                found.append(int(path.parts[2]))
                os.kill(found[-1], signal.SIGKILL)
    return found
