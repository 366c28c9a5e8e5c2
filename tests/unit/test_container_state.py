"""state.json, exit.json, statuses, locks; the sentences of failed steps; signals by name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from wherry.container import launch, lifecycle
from wherry.container.hooks import poststop, state_document
from wherry.container.state import ContainerDir, State, Status, ids
from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.kernel.process import Process, signal_number
from wherry.model import ExitStatus
from wherry.oci.plan import Op, Plan


@pytest.fixture
def place(tmp_path: Path) -> ContainerDir:
    made = ContainerDir(str(tmp_path / "state"), "one")
    made.make()
    return made


def test_directories_are_private(place: ContainerDir) -> None:
    assert os.stat(place.path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(place.path)).st_mode & 0o777 == 0o700
    with pytest.raises(WherryError) as caught:
        place.make()
    assert caught.value.kind is Kind.EXISTS


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a\n", "a b", "é", "x" * 1025])
def test_bad_ids(tmp_path: Path, name: str) -> None:
    with pytest.raises(WherryError, match="invalid container id"):
        ContainerDir(str(tmp_path), name)


def test_state_round_trip(place: ContainerDir) -> None:
    state = State("one", "/b", "/cg", Process(5, 6), None, 1.5, 2.5, ("memory",), {"k": [1]})
    with place.lock():
        place.save(state)
        assert place.load() == state
        assert place.change(started=9.0) == place.load()
    assert place.load().started == 9.0
    assert os.stat(place.file("state.json")).st_mode & 0o777 == 0o600


def test_state_of_a_newer_version(place: ContainerDir) -> None:
    data = State("one", init=Process(1, 2)).to_json() | {"future": 1}
    Path(place.file("state.json")).write_text(json.dumps(data))
    assert place.load() == State("one", init=Process(1, 2))


@pytest.mark.parametrize("text", ["", "{", "[]x", '{"id": '])
def test_damaged_state_is_an_error_of_ours(place: ContainerDir, text: str) -> None:
    Path(place.file("state.json")).write_text(text)
    with pytest.raises(WherryError) as caught:
        place.load()
    assert caught.value.kind is Kind.INTERNAL


def test_unknown_container(tmp_path: Path) -> None:
    place = ContainerDir(str(tmp_path), "none")
    for verb in (place.load, lambda: place.lock().__enter__(), lambda: lifecycle.delete(place)):
        with pytest.raises(WherryError) as caught:
            verb()
        assert caught.value.kind is Kind.NOT_FOUND
    assert place.exit_status() is None
    assert ids(str(tmp_path / "nowhere")) == []


def test_status_follows_from_the_process(place: ContainerDir) -> None:
    place.save(State("one"))
    assert place.status() is Status.CREATING
    with subprocess.Popen(["sleep", "100"]) as child:
        me = process.identify(child.pid)
        assert me is not None
        place.save(State("one", init=me))
        assert place.status() is Status.RUNNING
        os.mkfifo(place.fifo_path)
        assert place.status() is Status.CREATED
        os.unlink(place.fifo_path)
        place.save(State("one", init=Process(me.pid, me.start_time + 1)))
        assert place.status() is Status.STOPPED  # the pid belongs to another now
        place.save(State("one", init=me))
        child.kill()
        assert process.wait_gone(me, 5)
        assert place.status() is Status.STOPPED  # a zombie does not run


def test_settle_writes_once(place: ContainerDir) -> None:
    place.save(State("one", init=Process(1 << 22, 5), monitor=Process(1 << 22, 5)))
    status = place.settle()
    assert status is not None
    assert (status.code, status.error) == (137, "monitor was killed")
    assert place.settle() == status == place.exit_status()


def test_settle_believes_the_monitor(place: ContainerDir) -> None:
    place.save(State("one", init=Process(1 << 22, 5), monitor=Process(1 << 22, 5)))
    place.write_exit(ExitStatus(3, True, 1.25))
    assert place.settle() == ExitStatus(3, True, 1.25)


def test_a_lock_does_not_outlive_its_directory(place: ContainerDir) -> None:
    with place.lock():
        place.remove()
    with pytest.raises(WherryError) as caught, place.lock():
        pass
    assert caught.value.kind is Kind.NOT_FOUND
    place.make()
    with place.lock(0.1):
        pass


# --- processes ---


def test_a_recycled_pid_is_another_process() -> None:
    me = process.identify(os.getpid())
    assert me is not None
    assert process.alive(me)
    other = Process(me.pid, me.start_time - 1)
    assert process.open_pidfd(other) is None
    assert not process.signal(other, 9)
    assert not process.alive(other)
    assert process.wait_gone(other, 0)
    assert not process.wait_gone(me, 0)


def test_a_name_with_parentheses_is_read(tmp_path: Path) -> None:
    os.symlink("/bin/sleep", tmp_path / "a) R 1 (b")
    with subprocess.Popen([str(tmp_path / "a) R 1 (b"), "100"]) as child:
        assert process.parent(child.pid) == os.getpid()
        child.kill()


@pytest.mark.parametrize(("text", "number"), [
    ("TERM", 15), ("SIGTERM", 15), ("term", 15), ("9", 9), (9, 9), ("sigusr1", 10), ("RTMIN", signal.SIGRTMIN),
    ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMAX-1", signal.SIGRTMAX - 1), ("CLD", 17), ("IO", 29), ("64", 64),
])
def test_signal_numbers(text: str | int, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", [
    "", "0", "65", "-1", "NOPE", "SIG", "_DFL", "SIG_IGN", "RTMIN+99", "RTMINx", "²", "default_int_handler",
])
def test_bad_signals(text: str) -> None:
    with pytest.raises(WherryError, match="invalid signal"):
        signal_number(text)


# --- sentences ---

PLAN = Plan((Op("CLONE", "H"), Op("ATTACH", "C", s0="/proc"), Op("EXEC", "C", s0="foo")))


def test_a_step_by_number_and_name() -> None:
    error = launch.failure(PLAN, "web", 1, errno.EROFS, "")
    assert error.message == "cannot start container web: step 2 of 3, mount on /proc: EROFS, Read-only file system"
    assert "make it in the image" in error.hint
    assert error.code is None
    assert "(/etc/x)" in launch.failure(PLAN, "web", 1, errno.ENOENT, "/etc/x").message


@pytest.mark.parametrize(("number", "command", "code", "text"), [
    (errno.ENOENT, "foo", 127, 'exec: "foo": executable file not found in $PATH'),
    (errno.ENOENT, "./foo", 127, 'exec: "./foo": stat ./foo: no such file or directory'),
    (errno.EACCES, "foo", 126, 'exec: "foo": permission denied'),
    (errno.ENOEXEC, "/foo", 126, 'exec: "/foo": exec format error'),
    (errno.EISDIR, "/", 126, 'exec: "/": is a directory'),
])
def test_commands_that_cannot_run(number: int, command: str, code: int, text: str) -> None:
    error = launch.failure(Plan((Op("EXEC", "C", s0=command),)), "x", 0, number)
    assert (error.code, error.message) == (code, text)


def test_no_step_at_fault() -> None:
    error = launch.failure(PLAN, "web", 0xFFFFFFFF, errno.EINVAL, "plan: no exec")
    assert error.message == "cannot start container web: plan: no exec: EINVAL, Invalid argument"


# --- hooks ---


def test_poststop_hooks(tmp_path: Path) -> None:
    def hook(text: str, **more: object) -> dict[str, object]:
        return {"path": "/bin/sh", "args": ["sh", "-c", text], **more}

    config = {"annotations": {"a": "b"}, "hooks": {"poststop": [
        hook(f"cat >{tmp_path}/in; echo $X >{tmp_path}/env", env=["X=1=2"]), hook("exit 3"),
        hook("sleep 100", timeout=1), {"path": "/no/such"}, hook(f"touch {tmp_path}/last"),
    ]}}
    failures = [error.message for error in poststop(config, State("c1", "/b"))]
    assert json.loads((tmp_path / "in").read_text()) == state_document(State("c1", "/b"), "stopped", {"a": "b"})
    assert (tmp_path / "env").read_text() == "1=2\n"
    assert (tmp_path / "last").exists()
    assert [text.partition(": ")[2] for text in failures] == ["exit code 3", "no end in time, killed",
                                                              "No such file or directory"]


def test_a_last_record_of_the_monitor_does_not_keep_the_directory(place: ContainerDir) -> None:
    """exit.json may come while the directory is being emptied."""
    ends = time.monotonic() + 0.3

    def record() -> None:
        while time.monotonic() < ends and os.path.isdir(place.path):
            with contextlib.suppress(OSError), open(f"{place.path}/exit.json", "w") as file:
                file.write("{}")

    writer = threading.Thread(target=record)
    writer.start()
    try:
        place.remove()
    finally:
        writer.join()
    assert not os.path.exists(place.path)
