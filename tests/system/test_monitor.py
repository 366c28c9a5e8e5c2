"""The monitor, alone with a host process: streams, logs, clients, the end, the cleanup."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.monitors import Box, How, box, collect, plan_of, read_until, sh, until
from helpers.tools import strays
from wherry.container import attach, launch, lifecycle
from wherry.container.attach import End
from wherry.container.state import Status
from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.model import ATTACH_ACK, ATTACH_EXIT, ATTACH_STDOUT
from wherry.oci.plan import Op, Plan

CGROUPS = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{p}/cgroup.procs")), "")


@pytest.fixture
def one(tmp_path: Path, test_id: str) -> Iterator[Box]:
    with box(str(tmp_path), test_id) as made:
        yield made
    assert not os.path.exists(made.place.path)


# --- logs ---


def test_cri_log_and_exit_record(one: Box) -> None:
    one.start(How(sh("echo one; echo two >&2; printf three; exit 7")))
    status = one.ended()
    assert (status.code, status.oom, status.error) == (7, False, "")
    assert abs(status.time - time.time()) < 30
    assert sorted(one.lines()) == [("stderr", "F", "two"), ("stdout", "F", "one"), ("stdout", "F", "three")]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z std", line) for line in one.log().splitlines())
    assert os.stat(one.place.file("log")).st_mode & 0o7777 == 0o640
    assert one.monitor_gone()


def test_time_stamps_are_now(one: Box) -> None:
    before = time.time()
    one.start(How(sh("echo x")))
    one.ended()
    stamp = one.log().split(" ")[0]
    seconds = time.mktime(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone + float("0" + stamp[19:-1])
    assert before - 1 < seconds < time.time() + 1


@pytest.mark.parametrize("length", [16383, 16384, 16385, 32768, 40000])
def test_long_lines_come_in_parts(one: Box, length: int) -> None:
    one.start(How(sh(f"head -c {length} /dev/zero | tr '\\0' a; echo; echo end")))
    one.ended()
    rows = one.lines()
    parts = [text for _, _, text in rows[:-1]]
    assert "".join(parts) == "a" * length
    assert [tag for _, tag, _ in rows] == ["P"] * (len(parts) - 1) + ["F", "F"]
    assert max(map(len, parts)) <= 16384
    assert len(parts) == -(-length // 16384)


def test_parts_do_not_split_characters(one: Box, tmp_path: Path) -> None:
    text = "a" + "€" * 20000
    (tmp_path / "in").write_text(text + "\n", encoding="utf-8")
    one.start(How(("/bin/cat", str(tmp_path / "in"))))
    one.ended()
    assert "".join(row[2] for row in one.lines()) == text


def test_json_file(one: Box, tmp_path: Path) -> None:
    raw = b'plain\nquote " back \\ tab \t ret \r bell \x07 nul \x00 del \x7f\n' + "ünï€😀\n".encode()
    raw += b"bad \xff \xc3( \xed\xa0\x80 \xf8 \xc0\xaf end \xe2\x82\nlast"
    (tmp_path / "in").write_bytes(raw)
    one.start(How(("/bin/cat", str(tmp_path / "in")), log="json"))
    one.ended()
    rows = [json.loads(line) for line in one.log().splitlines()]
    want = [line + "\n" for line in raw.decode("utf-8", "replace").split("\n")]
    got = [row["log"] for row in rows]
    assert got[:3] == want[:3]
    # Go and docker give one U+FFFD a byte; Python one a sequence
    assert got[3] == "bad � �( ��� � �� end ��\n"
    assert got[4] == "last\n"
    assert {row["stream"] for row in rows} == {"stdout"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", row["time"]) for row in rows)


def test_json_parts_have_no_newline(one: Box) -> None:
    one.start(How(sh("head -c 40000 /dev/zero | tr '\\0' '\\001'; echo"), log="json"))
    one.ended()
    rows = [json.loads(line)["log"] for line in one.log().splitlines()]
    assert "".join(rows) == "\x01" * 40000 + "\n"
    assert [row.endswith("\n") for row in rows] == [False, False, True]


def test_rotation(one: Box) -> None:
    one.start(How(sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"), log_bytes=20000, log_files=3))
    one.ended()
    files = ["log.2", "log.1", "log"]
    assert sorted(name for name in os.listdir(one.place.path) if name.startswith("log")) == sorted(files)
    assert all(os.path.getsize(one.place.file(name)) <= 20000 for name in files)
    kept = [text for name in files for _, _, text in one.lines(name)]
    assert kept == [f"line {i}" for i in range(3000 - len(kept), 3000)]
    assert len(kept) > 800


def test_rotation_with_one_file(one: Box) -> None:
    one.start(How(sh("i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done"), log_bytes=4000, log="json"))
    one.ended()
    assert [name for name in os.listdir(one.place.path) if name.startswith("log")] == ["log"]
    rows = [json.loads(line)["log"] for line in one.log().splitlines()]
    assert rows[-1] == "line 499\n"
    assert os.path.getsize(one.place.file("log")) <= 4000


def test_log_goes_on_after_a_torn_record(one: Box) -> None:
    Path(one.place.file("log")).write_text("2020-01-01T00:00:00.000000000Z stdout F whole\n2020-01-0", encoding="utf-8")
    one.start(How(sh("echo new")))
    one.ended()
    lines = one.log().splitlines()
    assert lines[0].endswith(" whole")
    assert lines[1] == "2020-01-0"
    assert lines[2].endswith("stdout F new")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "hardlink"])
def test_only_a_regular_file_of_its_own_is_a_log(one: Box, tmp_path: Path, kind: str) -> None:
    path, other = one.place.file("log"), tmp_path / "other"
    other.write_text("")
    {"symlink": lambda: os.symlink(other, path), "fifo": lambda: os.mkfifo(path), "directory": lambda: os.mkdir(path),
     "hardlink": lambda: os.link(other, path)}[kind]()
    with pytest.raises(WherryError, match="log to "):
        one.start(How(sh("echo x")))
    assert other.read_text() == ""


def test_full_disk_does_not_stop_the_container(one: Box) -> None:
    # the open file limit cannot do it here; a log on /dev/full is refused, so a tiny tmpfs stands in
    os.mkdir(one.place.file("full"))
    os.system(f"mount -t tmpfs -o size=64k tmpfs {one.place.file('full')}")
    try:
        one.start(How(sh("head -c 1000000 /dev/zero | tr '\\0' '\\n'; exit 4"), log_path=one.place.file("full/log")))
        assert one.ended().code == 4
        assert one.monitor_gone()
    finally:
        os.system(f"umount {one.place.file('full')}")


def test_journald(one: Box, tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(10)
        one.start(How(sh("echo out; echo err >&2"), log="journald", log_path=path, log_fields=("CONTAINER_NAME=n1",)))
        got = {server.recv(1 << 16) for _ in range(2)}
    assert got == {b"PRIORITY=6\nCONTAINER_NAME=n1\nMESSAGE=out\n", b"PRIORITY=3\nCONTAINER_NAME=n1\nMESSAGE=err\n"}
    one.ended()


def test_hanging_journald_does_not_stop_the_container(one: Box, tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)  # and nobody reads
        one.start(How(sh("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; exit 3"), log="journald",
                      log_path=path))
        assert one.ended(20).code == 3


def test_journald_absent_is_an_error(one: Box) -> None:
    with pytest.raises(WherryError, match="ENOENT"):
        one.start(How(sh("echo out"), log="journald", log_path=one.place.file("nothing")))


def test_no_log(one: Box) -> None:
    one.start(How(sh("echo x"), log="none"))
    one.ended()
    assert not os.path.exists(one.place.file("log"))


# --- clients ---


def test_first_client_gets_everything(one: Box) -> None:
    stream = one.start(How(sh("echo out; echo err >&2; exit 9"), client=True))
    assert stream is not None
    frame = stream.read()
    assert frame == (ATTACH_ACK, b"started")
    out, err, status = collect(stream)
    assert (out, err) == (b"out\n", b"err\n")
    assert status is not None
    assert status.code == 9
    assert stream.read() is None


def test_two_clients_see_the_same(one: Box) -> None:
    one.start(How(sh("read x; echo got $x; read y; echo got $y"), stdin=True))
    with one.connect() as first, one.connect() as second:
        assert first.read() == second.read() == (ATTACH_ACK, b"started")
        first.write(b"a\n")
        assert read_until(first, b"got a\n") == read_until(second, b"got a\n") == b"got a\n"
        second.write(b"b\n")
        assert collect(first)[::2] == collect(second)[::2]
    assert one.ended().code == 0


def test_stdin_of_the_first_client_ends_with_it(one: Box) -> None:
    stream = one.start(How(("/bin/cat",), client=True, stdin=True))
    assert stream is not None
    stream.write(b"hello")
    stream.eof()
    out, _, status = collect(stream)
    assert out == b"hello"
    assert status is not None
    assert status.code == 0


def test_stdin_closes_when_the_first_client_vanishes(one: Box) -> None:
    stream = one.start(How(sh("cat; echo after"), client=True, stdin=True))
    assert stream is not None
    stream.write(b"typed\n")
    read_until(stream, b"typed\n")
    stream.close()
    assert one.ended().code == 0
    assert [row[2] for row in one.lines()] == ["typed", "after"]


def test_stdin_of_a_later_client_stays_open(one: Box) -> None:
    one.start(How(sh("read x; read y; echo $x $y"), stdin=True))
    with one.connect() as first:
        first.write(b"one\n")
        first.eof()
    with one.connect() as second:
        second.write(b"two\n")
        out, _, _ = collect(second)
    assert out == b"one two\n"


def test_big_stdin_comes_whole_and_back(one: Box) -> None:
    """Both directions are full at once: nobody may wait for the other."""
    data = os.urandom(1 << 20) * 3
    stream = one.start(How(("/bin/cat",), client=True, stdin=True, log="none"))
    assert stream is not None
    reader, writer = os.pipe()
    sink_read, sink_write = os.pipe()
    got = bytearray()

    def feed() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view):]
        os.close(writer)

    def drain() -> None:
        while part := os.read(sink_read, 1 << 16):
            got.extend(part)

    threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    ended = attach.relay(stream, reader, sink_write, None)
    os.close(sink_write)
    for thread in threads:
        thread.join()
    os.close(reader)
    os.close(sink_read)
    assert ended.end is End.EXIT
    assert bytes(got) == data


def test_regular_file_as_stdin(one: Box, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 300000)
    stream = one.start(How(("/usr/bin/wc", "-c"), client=True, stdin=True))
    assert stream is not None
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as out:
        ended = attach.relay(stream, source.fileno(), out.fileno(), 2)
    assert ended.status is not None
    assert ended.status.code == 0
    assert (tmp_path / "out").read_text() == "300000\n"


def test_slow_first_client_loses_nothing(one: Box) -> None:
    stream = one.start(How(sh("head -c 3000000 /dev/zero; exit 5"), client=True, log="none"))
    assert stream is not None
    time.sleep(0.5)
    assert one.place.exit_status() is None  # held back
    out, _, status = collect(stream)
    assert len(out) == 3000000
    assert status is not None
    assert status.code == 5


def test_first_client_that_reads_after_the_end(one: Box) -> None:
    """Less than what queue and pipe hold: the container ends, its record is there, and the output waits."""
    stream = one.start(How(sh("head -c 400000 /dev/zero; exit 5"), client=True))
    assert stream is not None
    assert one.ended().code == 5
    out, _, status = collect(stream)
    assert len(out) == 400000
    assert status is not None
    assert status.code == 5


def test_vanished_client_does_not_stop_output(one: Box) -> None:
    stream = one.start(How(sh("head -c 3000000 /dev/zero | tr '\\0' '\\n'; exit 5"), client=True))
    assert stream is not None
    stream.close()
    assert one.ended().code == 5
    assert one.log().count("\n") == 3000000


@pytest.mark.seconds(60)
def test_stalled_additional_client_is_dropped(one: Box) -> None:
    one.start(How(sh("read x; head -c 3000000 /dev/zero; exit 5"), stdin=True, log="none"))
    with one.connect() as stalled:
        stalled.write(b"go\n")
        assert one.ended(30).code == 5
        out, _, status = collect(stalled)
        assert len(out) < 3000000
        assert status is None


def test_quiet_client_gets_only_the_end(one: Box) -> None:
    one.start(How(sh("read x; head -c 3000000 /dev/zero; exit 5"), stdin=True, log="none"))
    with one.connect() as quiet:
        quiet.quiet()
        quiet.write(b"go\n")
        assert one.ended().code == 5
        assert [kind for kind, _ in quiet.frames()] == [ATTACH_ACK, ATTACH_EXIT]


@pytest.mark.parametrize("junk", [b"\x63\0\0\0\0\0\0\0", b"\x06\0\0\0\0\0\0\x05hello", b"\x07\0\0\0\xff\xff\xff\xff"])
def test_junk_ends_that_client_only(one: Box, junk: bytes) -> None:
    one.start(How(sh("read x; exit 3"), stdin=True))
    with one.connect() as bad, one.connect() as good:
        with socket.socket(fileno=os.dup(bad.fileno())) as raw:
            raw.sendall(junk)
        assert collect(bad) == (b"", b"", None)
        good.write(b"x\n")
        assert collect(good)[2] is not None
    assert one.ended().code == 3


def test_more_clients_than_places(one: Box) -> None:
    one.start(How(sh("read x; exit 3"), stdin=True))
    streams = [one.connect() for _ in range(40)]
    served = [stream for stream in streams if stream.read() is not None]
    assert len(served) == 32
    served[0].write(b"x\n")
    assert one.ended().code == 3
    for stream in streams:
        stream.close()


# --- terminals ---


def test_terminal(one: Box) -> None:
    stream = one.start(How(sh("tty; stty size; read x; stty size; echo got $x; exit 6"), tty=True, client=True))
    assert stream is not None
    first = read_until(stream, b"0 0\r\n")
    assert b"/dev/pts/" in first
    stream.resize(33, 101)
    stream.write(b"word\r")
    out, err, status = collect(stream)
    assert b"33 101\r\ngot word\r\n" in out
    assert err == b""
    assert status is not None
    assert status.code == 6


def test_terminal_reopened_by_the_container(one: Box) -> None:
    """A moment without any open terminal in the container (init systems do that) is not the end of its output."""
    text = "T=$(tty); exec </dev/null >/dev/null 2>&1; sleep 0.3; exec >$T; echo again; exit 2"
    one.start(How(sh(text), tty=True))
    assert one.ended().code == 2
    assert [row[2] for row in one.lines()] == ["again\r"]


def test_interrupt_key(one: Box) -> None:
    stream = one.start(How(("/bin/sleep", "100"), tty=True, client=True))
    assert stream is not None
    time.sleep(0.1)
    stream.write(b"\x03")
    status = collect(stream)[2]
    assert status is not None
    assert status.code == 130


# --- the end ---


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_signals_make_128_plus_n(one: Box, sig: signal.Signals) -> None:
    one.start(How(sh(f"kill -{int(sig)} $$")))
    assert one.ended().code == 128 + sig
    assert json.loads(Path(one.place.file("exit.json")).read_text())["signal"] == sig


def test_signal_dispositions_are_not_inherited(one: Box) -> None:
    one.start(How(sh("grep -E 'Sig(Ign|Blk)' /proc/self/status; ls -l /proc/self/fd | grep -c ' -> '; pwd; umask")))
    one.ended()
    rows = [row[2].split()[-1] for row in one.lines()]
    assert rows[:2] == ["0" * 16, "0" * 16]
    assert rows[2] == "4"  # 0, 1, 2, and ls's own directory


def test_grandchildren_hold_the_pipe_for_a_second(one: Box) -> None:
    start = time.monotonic()
    one.start(How(sh("sleep 3 & echo early; exit 0")))
    assert one.ended().code == 0
    assert 0.8 < time.monotonic() - start < 2.5
    assert [row[2] for row in one.lines()] == ["early"]
    time.sleep(2)  # that sleep is nobody's: let it go before the next test counts


@pytest.mark.skipif(not CGROUPS, reason="no cgroup v2")
def test_cgroup_is_killed_at_the_end(one: Box, test_id: str) -> None:
    start = time.monotonic()
    one.start(How(sh("setsid sleep 100 & exit 1"), cgroup=f"{CGROUPS}/{test_id}", kill=True))
    assert one.ended().code == 1
    assert time.monotonic() - start < 0.9
    assert until(lambda: Path(one.cgroup, "cgroup.events").read_text().startswith("populated 0"))


@pytest.mark.parametrize(("events", "oom"), [
    ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n", True),
    ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 12\n", True),
    ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 3\n", False),
    ("", False),
])
def test_oom_flag(one: Box, events: str, oom: bool) -> None:
    os.mkdir(one.place.file("cg"))
    Path(one.place.file("cg/memory.events")).write_text(events)
    stream = one.start(How(sh("kill -9 $$"), oom=one.place.file("cg"), client=True))
    assert stream is not None
    status = collect(stream)[2]
    assert status is not None
    assert (status.code, status.oom) == (137, oom)
    assert one.ended().oom is oom


def test_session_without_a_record(one: Box) -> None:
    stream = one.start(How(sh("echo x; exit 8"), record=False, listen=False, log="none", client=True))
    assert stream is not None
    assert collect(stream)[::2] == (b"x\n", attach.decode_exit(struct.pack(">iB", 8, 0)))
    assert one.monitor_gone()
    assert not os.path.exists(one.place.file("exit.json"))


# --- cleanup ---

CLEANUP = ("/bin/sh", "-c", "echo $$ >$PLACE/cleaned.tmp; mv $PLACE/cleaned.tmp $PLACE/cleaned")


def cleaned(one: Box) -> int:
    text = until(lambda: os.path.exists(one.place.file("cleaned")) and Path(one.place.file("cleaned")).read_text(), 10)
    return int(text) if text else 0


def test_cleanup_takes_the_monitors_place(one: Box) -> None:
    one.start(How(sh("exit 1"), cleanup=CLEANUP))
    assert one.launched is not None
    assert one.launched.monitor is not None
    assert cleaned(one) == one.launched.monitor.pid


def test_cleanup_by_the_claiming_client(one: Box) -> None:
    stream = one.start(How(sh("sleep 0.3; exit 1"), cleanup=CLEANUP, client=True))  # the claim comes before its end
    assert stream is not None
    stream.claim()
    assert collect(stream)[2] is not None
    time.sleep(0.2)
    assert process.alive(one.launched.monitor if one.launched else None)
    stream.done()
    stream.close()
    assert one.monitor_gone()
    assert not os.path.exists(one.place.file("cleaned"))


def test_cleanup_when_the_claiming_client_vanishes(one: Box) -> None:
    stream = one.start(How(sh("sleep 0.3; exit 1"), cleanup=CLEANUP, client=True))
    assert stream is not None
    stream.claim()
    collect(stream)
    stream.close()
    assert cleaned(one)


def test_cleanup_while_a_client_still_reads(one: Box) -> None:
    stream = one.start(How(sh("head -c 400000 /dev/zero"), cleanup=CLEANUP, client=True))
    assert stream is not None
    assert cleaned(one)
    assert len(collect(stream)[0]) == 400000


def test_cleanup_environment_is_the_plans(one: Box) -> None:
    os.environ["WHERRY_TEST_LEAK"] = "1"
    try:
        dump = ("/bin/sh", "-c", "env >$PLACE/env; ls -l /proc/self/fd >$PLACE/fds; echo 1 >$PLACE/cleaned.tmp;"
                                 " grep SigIgn /proc/self/status >$PLACE/sig; mv $PLACE/cleaned.tmp $PLACE/cleaned")
        one.start(How(sh("exit 1"), cleanup=dump))
        assert cleaned(one)
    finally:
        del os.environ["WHERRY_TEST_LEAK"]
    assert "LEAK" not in Path(one.place.file("env")).read_text()
    assert Path(one.place.file("sig")).read_text().split()[1] == "0" * 16
    fds = [line.split(" -> ")[1] for line in Path(one.place.file("fds")).read_text().splitlines() if " -> " in line]
    assert all(fd in ("/dev/null", one.place.file("fds")) or fd.startswith("/proc/") for fd in fds), fds


# --- timers ---


def test_timer_runs_one_at_a_time(one: Box) -> None:
    tick = ("/bin/sh", "-c", "echo start >>$PLACE/ticks; sleep 0.3; echo end >>$PLACE/ticks")
    one.start(How(sh("read x"), stdin=True, timer=(50, 10, tick), cleanup=("/bin/true",)))
    assert until(lambda: Path(one.place.file("ticks")).exists() and
                 Path(one.place.file("ticks")).read_text().count("end") >= 3, 10)
    with one.connect() as stream:
        stream.write(b"x\n")
        collect(stream)
    ticks = Path(one.place.file("ticks")).read_text().split()
    assert ticks[: len(ticks) // 2 * 2] == ["start", "end"] * (len(ticks) // 2)
    time.sleep(0.5)
    assert Path(one.place.file("ticks")).read_text().split() == ticks  # killed with the container


# --- crashes ---


@pytest.mark.skipif(not CGROUPS, reason="no cgroup v2")
def test_killed_monitor_takes_the_container_along(one: Box, test_id: str) -> None:
    one.start(How(sh("setsid sleep 100 & sleep 100"), cgroup=f"{CGROUPS}/{test_id}"))
    assert one.place.status() is Status.RUNNING
    assert one.launched is not None
    assert one.launched.monitor is not None
    process.signal(one.launched.monitor, 9)
    assert process.wait_gone(one.launched.init, 5)
    assert one.place.exit_status() is None
    status = one.place.settle()
    assert status is not None
    assert (status.code, status.error) == (137, "monitor was killed")
    assert one.place.exit_status() == status
    assert one.place.status() is Status.STOPPED
    assert until(lambda: Path(one.cgroup, "cgroup.events").read_text().startswith("populated 0"))


def test_settle_leaves_the_living_alone(one: Box) -> None:
    one.start(How(("/bin/sleep", "100")))
    assert one.place.settle() is None
    assert one.place.status() is Status.RUNNING
    lifecycle.kill(one.place, "KILL")
    assert lifecycle.wait(one.place, 10) == one.place.settle()


# --- failures of a start ---


@pytest.mark.parametrize(("argv", "code", "text"), [
    (("/nowhere/foo",), 127, 'exec: "/nowhere/foo": stat /nowhere/foo: no such file or directory'),
    (("nosuchcommand",), 127, 'exec: "nosuchcommand": executable file not found in $PATH'),
    (("/etc",), 126, 'exec: "/etc": permission denied'),
    (("/etc/passwd",), 126, 'exec: "/etc/passwd": permission denied'),
])
def test_command_failures(one: Box, argv: tuple[str, ...], code: int, text: str) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WherryError) as caught:
        one.start(How(argv))
    assert (caught.value.code, caught.value.message) == (code, text)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not strays(reap=True)  # a monitor comes to us where an earlier test made us its reaper


def test_a_failed_step_is_named(one: Box) -> None:
    os.mkdir(one.place.file("there"))
    with pytest.raises(WherryError) as caught:
        one.start(How(sh("true"), cgroup=one.place.file("there")))
    text = r"cannot start container \S+: step \d+ of \d+, cgroup /\S+/there( \(.*\))?: EEXIST, File exists"
    assert re.fullmatch(text, caught.value.message)
    assert "left over" in caught.value.hint
    assert os.path.isdir(one.place.file("there"))  # it was there before: not ours to remove


def test_abandon_leaves_nothing(one: Box, test_id: str) -> None:
    """The helper hangs in a step: the deadline ends it, its cgroup goes too."""
    os.mkfifo(one.place.file("hang"))
    plan = plan_of(How(sh("true"), cgroup=f"{CGROUPS}/{test_id}", listen=False, tty=True), one.place)
    hang = Op("OPEN", "H", s0=one.place.file("hang"), n0=os.O_RDONLY, fd0=plan.slots)
    at = [op.name for op in plan.ops].index("CLONE") + 1
    plan = Plan((*plan.ops[:at], hang, *plan.ops[at:]), plan.inherited, plan.slots + 1)
    with pytest.raises(WherryError, match="no answer") as caught:
        launch.start(one.place.path, plan, "monitor", {}, timeout=0.5)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert not os.path.exists(f"{CGROUPS}/{test_id}")
    assert not strays(reap=True)  # a monitor comes to us where an earlier test made us its reaper


# --- verbs ---


def test_stop_asks_first(one: Box) -> None:
    one.start(How(sh("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")))
    assert until(lambda: "up" in one.log())
    status = lifecycle.stop(one.place, "TERM", 5)
    assert status is not None
    assert status.code == 3
    assert one.lines()[-1][2] == "bye"


def test_stop_kills_who_does_not_listen(one: Box) -> None:
    one.start(How(sh("trap '' TERM; echo up; while :; do sleep 0.05; done")))
    assert until(lambda: "up" in one.log())
    start = time.monotonic()
    status = lifecycle.stop(one.place, "SIGTERM", 0.5)
    assert status is not None
    assert status.code == 137
    assert 0.4 < time.monotonic() - start < 3
    assert lifecycle.stop(one.place) == status
    with pytest.raises(WherryError, match="is not running"):
        lifecycle.kill(one.place)


@pytest.mark.skipif(not CGROUPS, reason="no cgroup v2")
def test_pause_and_resume(one: Box, test_id: str) -> None:
    one.start(How(sh("while :; do echo tick; sleep 0.02; done"), cgroup=f"{CGROUPS}/{test_id}"))
    assert until(lambda: one.log().count("tick") > 2)
    lifecycle.pause(one.place)
    assert one.place.status() is Status.PAUSED
    time.sleep(0.1)
    before = one.log()
    time.sleep(0.2)
    assert one.log() == before
    with pytest.raises(WherryError, match="is paused"):
        lifecycle.pause(one.place)
    lifecycle.resume(one.place)
    assert one.place.status() is Status.RUNNING
    assert until(lambda: one.log() != before)
    lifecycle.pause(one.place)
    status = lifecycle.stop(one.place, "TERM", 5)  # a frozen one is thawed to hear it
    assert status is not None
    assert status.code == 143
    lifecycle.delete(one.place)
    assert not os.path.exists(one.cgroup)
    assert not one.place.exists()


def test_delete_refuses_the_living(one: Box) -> None:
    one.start(How(("/bin/sleep", "100")))
    with pytest.raises(WherryError, match="is running"):
        lifecycle.delete(one.place)
    lifecycle.delete(one.place, force=True)
    lifecycle.delete(one.place, force=True)
    with pytest.raises(WherryError) as caught:
        lifecycle.delete(one.place)
    assert caught.value.kind is Kind.NOT_FOUND


def test_wait_in_time(one: Box) -> None:
    one.start(How(sh("sleep 0.4; exit 12")))
    assert lifecycle.wait(one.place, 0.05) is None
    status = lifecycle.wait(one.place)
    assert status is not None
    assert status.code == 12


def test_detach_keys(one: Box) -> None:
    stream = one.start(How(("/bin/cat",), tty=True, client=True))
    assert stream is not None
    reader, writer = os.pipe()
    out_read, out_write = os.pipe()
    os.write(writer, b"hi\x10")
    threading.Timer(0.2, lambda: os.write(writer, b"\x11")).start()
    ended = attach.relay(stream, reader, out_write, None, attach.detach_keys("ctrl-p,ctrl-q"))
    for fd in (reader, writer, out_read, out_write):
        os.close(fd)
    assert ended.end is End.DETACHED
    stream.close()
    assert one.place.status() is Status.RUNNING


def test_output_frames_are_bounded(one: Box) -> None:
    stream = one.start(How(sh("head -c 1000000 /dev/zero"), client=True, log="none"))
    assert stream is not None
    sizes = [len(payload) for kind, payload in stream.frames() if kind == ATTACH_STDOUT]
    assert sum(sizes) == 1000000
    assert max(sizes) <= 1 << 16
