"""Containers of real bundles through planner, helper, monitor and the verbs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.bundles import Bundle, make_root
from helpers.monitors import collect, read_until, until
from wherry.container import lifecycle
from wherry.container.state import ContainerDir, Status
from wherry.errors import WherryError
from wherry.kernel import process


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("bundle") / "root")


@pytest.fixture
def one(tmp_path: Path, test_id: str, root: Path) -> Iterator[Bundle]:
    made = Bundle(str(tmp_path / "state"), test_id, root)
    yield made
    made.remove()
    assert not os.path.exists(made.place.path)
    assert not os.path.exists(made.cgroup)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_echo(one: Bundle) -> None:
    one.configure("echo", "hello", "world")
    one.run(one.how())
    assert one.ended().code == 0
    assert one.lines() == [("stdout", "F", "hello world")]


def test_first_client_sees_output_and_status(one: Bundle) -> None:
    one.configure("sh", "-c", "echo out; echo err >&2; exit 42")
    stream = one.run(one.how(client=True))
    assert stream is not None
    out, err, status = collect(stream)
    assert (out, err) == (b"out\n", b"err\n")
    assert status is not None
    assert status.code == 42


def test_terminal(one: Bundle) -> None:
    one.configure("sh", tty=True)
    stream = one.run(one.how(client=True))
    assert stream is not None
    stream.resize(40, 132)
    read_until(stream, b"# ")
    stream.write(b"stty size; tty; exit 5\r")
    out, _, status = collect(stream)
    assert b"40 132\r\n" in out
    assert b"/dev/pts/0\r\n" in out or b"/dev/console\r\n" in out
    assert status is not None
    assert status.code == 5


def test_user_can_reopen_its_output(one: Bundle) -> None:
    one.configure("sh", "-c", "echo again >/proc/self/fd/1; id -u", uid=1234)
    one.run(one.how())
    assert one.ended().code == 0
    assert [row[2] for row in one.lines()] == ["again", "1234"]


@pytest.mark.parametrize(("args", "code", "text"), [
    (("/nope",), 127, 'exec: "/nope": stat /nope: no such file or directory'),
    (("nope",), 127, 'exec: "nope": executable file not found in $PATH'),
    (("/etc/passwd",), 126, 'exec: "/etc/passwd": permission denied'),
])
def test_command_that_cannot_run(one: Bundle, args: tuple[str, ...], code: int, text: str) -> None:
    one.configure(*args)
    with pytest.raises(WherryError) as caught:
        one.run(one.how())
    assert (caught.value.code, caught.value.message) == (code, text)
    assert not os.path.exists(one.cgroup)


def test_bad_mount_source_names_step_and_hint(one: Bundle) -> None:
    mount = {"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}
    one.configure("true")["mounts"].append(mount)
    with pytest.raises(WherryError, match=r"cannot start container \S+: step \d+ of \d+, .*/no/such.*ENOENT") as caught:
        one.run(one.how())
    assert "does not exist on the host" in caught.value.hint
    assert not os.path.exists(one.cgroup)


def test_stop_and_kill(one: Bundle) -> None:
    one.configure("sh", "-c", "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done")
    one.run(one.how())
    assert until(lambda: "up" in one.log())
    status = lifecycle.stop(one.place, "TERM", 5)
    assert status is not None
    assert status.code == 9
    lifecycle.delete(one.place)


def test_init_without_handler_needs_the_kill(one: Bundle) -> None:
    one.configure("sleep", "100")  # pid 1 of its namespace: TERM without a handler does nothing
    one.run(one.how())
    start = time.monotonic()
    status = lifecycle.stop(one.place, "TERM", 0.3)
    assert status is not None
    assert status.code == 137
    assert time.monotonic() - start < 2


def test_host_pid_namespace_leaves_nobody(one: Bundle) -> None:
    one.configure("sh", "-c", "setsid sleep 100 & exit 3", without=("pid",))
    one.run(one.how(kill=True))
    assert one.ended().code == 3
    assert until(lambda: not Path(one.cgroup, "cgroup.procs").read_text())


def test_exec_sessions(one: Bundle) -> None:
    one.configure("sh", "-c", "while :; do sleep 0.1; done")
    one.run(one.how())
    session = one.exec("sh", "-c", "cat; echo $$ >&2; hostname; exit 11", stdin=True)
    assert session.stream is not None
    with session.stream as stream:
        stream.write(b"to cat\n")
        stream.eof()
        out, err, status = collect(stream)
    assert out.startswith(b"to cat\n")
    assert int(err) > 1
    assert status is not None
    assert status.code == 11
    assert one.place.status() is Status.RUNNING


def test_exec_with_a_terminal(one: Bundle) -> None:
    one.configure("sleep", "100")
    one.run(one.how())
    session = one.exec("sh", tty=True)
    assert session.stream is not None
    with session.stream as stream:
        read_until(stream, b"# ")
        stream.write(b"tty; exit 4\r")
        out, _, status = collect(stream)
    assert b"/dev/pts/" in out
    assert status is not None
    assert status.code == 4


def test_exec_that_outlives_its_client(one: Bundle) -> None:
    one.configure("sleep", "100")
    one.run(one.how())
    session = one.exec("sh", "-c", "echo up; sleep 0.5; head -c 1000000 /dev/zero; echo done >/tmp/after")
    assert session.stream is not None
    read_until(session.stream, b"up")
    session.stream.close()
    assert until((one.root / "tmp/after").exists)
    (one.root / "tmp/after").unlink()


def test_detached_exec(one: Bundle) -> None:
    one.configure("sleep", "100")
    one.run(one.how())
    session = one.exec("sh", "-c", "echo x; echo done >/tmp/detached", detach=True)
    assert session.stream is None
    assert until((one.root / "tmp/detached").exists)
    (one.root / "tmp/detached").unlink()
    assert process.wait_gone(session.launched.monitor, 5) if session.launched.monitor else False


def test_exec_of_a_missing_command(one: Bundle) -> None:
    one.configure("sleep", "100")
    one.run(one.how())
    with pytest.raises(WherryError, match="executable file not found") as caught:
        one.exec("nope")
    assert caught.value.code == 127
    assert one.place.status() is Status.RUNNING


def test_exec_refuses_paused_and_stopped(one: Bundle) -> None:
    one.configure("sleep", "100")
    one.run(one.how())
    lifecycle.pause(one.place)
    with pytest.raises(WherryError, match="is paused"):
        one.exec("true")
    lifecycle.resume(one.place)
    lifecycle.kill(one.place)
    lifecycle.wait(one.place, 5)
    with pytest.raises(WherryError, match="is stopped"):
        one.exec("true")


def test_create_then_start(one: Bundle) -> None:
    """Role launch: the plan stops at its last barrier, nobody of ours stays."""
    process.become_subreaper()
    try:
        one.configure("sh", "-c", "exit 6")
        one.run(one.how()._replace(monitor=None, wait_start=True, stdio=()), role="launch")
        assert one.launched is not None
        assert one.launched.monitor is None
        assert one.place.status() is Status.CREATED
        with pytest.raises(WherryError, match="is created"):
            lifecycle.pause(one.place)
        lifecycle.start_created(one.place)
        assert process.wait_gone(one.launched.init, 5)
        assert process.reap(one.launched.init.pid) == 6
        assert one.place.status() is Status.STOPPED
        with pytest.raises(WherryError, match="it is stopped"):
            lifecycle.start_created(one.place)
    finally:
        process.become_subreaper(False)


def test_kill_of_the_monitor(one: Bundle) -> None:
    one.configure("sh", "-c", "sleep 100 & sleep 100")
    one.run(one.how())
    assert one.launched is not None
    assert one.launched.monitor is not None
    process.signal(one.launched.monitor, 9)
    assert process.wait_gone(one.launched.init, 5)
    status = lifecycle.wait(one.place, 5)
    assert status is not None
    assert (status.code, status.error) == (137, "monitor was killed")


def test_verbs_wait_for_the_lock(one: Bundle) -> None:
    order: list[str] = []

    def second() -> None:
        with one.place.lock(5):
            order.append("second")

    with one.place.lock():
        thread = threading.Thread(target=second)
        thread.start()
        other = ContainerDir(str(Path(one.place.path).parents[1]), one.place.id)
        with pytest.raises(WherryError, match="is busy"), other.lock(0.1):
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_concurrent_starts_and_ends(tmp_path: Path, root: Path, test_id: str) -> None:
    made = [Bundle(str(tmp_path / "state"), f"{test_id}x{i}", root) for i in range(12)]
    failures: list[BaseException] = []

    def life(one: Bundle) -> None:
        try:
            one.configure("sh", "-c", f"echo {one.place.id}; exit 3")
            one.run(one.how())
            assert one.ended(30).code == 3
            assert one.lines() == [("stdout", "F", one.place.id)]
            lifecycle.delete(one.place)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=life, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in made:
        one.remove()
    assert not failures
    assert not [one.cgroup for one in made if os.path.exists(one.cgroup)]
