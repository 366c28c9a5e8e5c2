"""wherryd's frame: its arguments, its settings, where it listens, what it says to systemd and to its log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wherry.daemon import check, log, main, sockets
from wherry.daemon.notify import Notifier
from wherry.engine.config import Settings
from wherry.errors import Kind, WherryError

# ---- settings


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('pod_cgroup_driver = "v1"', "pod_cgroup_driver must be one of"),
        ('log_level = "loud"', "log_level must be one of"),
        ('log_format = "xml"', "log_format must be one of"),
        ('stream_address = "localhost"', "stream_address must be"),
        ('stream_address = "127.0.0.1:99999"', "stream_address must be"),
        ('[handlers]\n"Not a name" = "/usr/bin/crun"', "is no name of a handler"),
        ('[handlers]\ncrun = "crun"', "needs the absolute path"),
        ('[handlers]\ncrun = 1', "needs the absolute path"),
        ('nri_socket = "nri.sock"', "nri_socket must be an absolute path"),
        ("nri_timeout = 0", "nri_timeout must be"),
        ("nri_timeout = 61", "nri_timeout must be"),
        ('otlp_endpoint = "127.0.0.1:4318"', "otlp_endpoint must be"),
        ('docker_tcp = "0.0.0.0"', "docker_tcp must be ADDRESS:PORT"),
        ('docker_tcp = "0.0.0.0:2376"', "docker_tcp needs tls_ca, tls_cert and tls_key"),
        ('stream_adress = "127.0.0.1:0"', "unknown setting"),
        ("x = ", "not valid TOML"),
    ],
)
def test_settings_that_are_wrong_are_told_before_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, word: str
) -> None:
    file = tmp_path / "wherry.toml"
    file.write_text(line + "\n")
    assert main.main(["--config", str(file), "--check-config"], {}) == 1
    told = capsys.readouterr().err
    assert told.startswith("wherryd: ")
    assert word in told


def test_good_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wherry.toml"
    file.write_text('log_level = "debug"\nstream_address = "[::1]:10010"\n[handlers]\ncrun = "/usr/bin/crun"\n')
    assert main.main(["--config", str(file), "--check-config"], {}) == 0
    assert capsys.readouterr().out == f"{file}: good\n"
    assert check.address("[::1]:10010") == ("::1", 10010)
    check.settings("x", Settings())


def test_a_wrong_command_line_is_2() -> None:
    with pytest.raises(SystemExit) as raised:
        main.main(["--no-such"], {})
    assert raised.value.code == 2


# ---- sockets


def test_its_own_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as first:
        sockets.bound(path, first.bind, "no-such-group")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as second:  # the first one left it behind
        sockets.bound(path, second.bind, "root")
        second.listen()
        with socket.socket(socket.AF_UNIX) as third, pytest.raises(WherryError) as raised:
            sockets.bound(path, third.bind, "")
        assert raised.value.kind is Kind.CONFLICT


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX) as made, pytest.raises(WherryError) as raised:
        sockets.bound(str(file), made.bind, "")
    assert "no socket" in raised.value.message
    assert file.read_text() == "mine"
    with socket.socket(socket.AF_UNIX) as made, pytest.raises(WherryError) as raised:
        sockets.bound(str(tmp_path / ("x" * 120)), made.bind, "")
    assert "too long" in raised.value.message


def test_one_wherryd_for_each_state(tmp_path: Path) -> None:
    with sockets.held(str(tmp_path)):
        with pytest.raises(WherryError) as raised, sockets.held(str(tmp_path)):
            pass
        assert raised.value.kind is Kind.CONFLICT
    with sockets.held(str(tmp_path)):
        pass


def test_sockets_of_systemd_by_name(tmp_path: Path) -> None:
    """In a process of its own: descriptors 3 and up are its."""
    program = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); from wherry.daemon import sockets;"
        "env = dict(os.environ, LISTEN_PID=str(os.getpid()));"
        "found = sockets.activated(env);"
        "print({k: (v.getsockname(), v.fileno(), os.get_inheritable(v.fileno())) for k, v in found.items()},"
        "      [k for k in env if k.startswith('LISTEN')])"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        words = [sys.executable, "-c", program, str(listener.fileno())]
        env = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "cri"}
        done = subprocess.run(words, pass_fds=[listener.fileno()], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({"cri": (str(tmp_path / "s"), 3, False)}) + " []"


def test_sockets_for_another_process_are_not_ours() -> None:
    env = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "cri"}
    assert sockets.activated(env) == {}
    assert not env


def test_the_relay_brings_both_ways_and_ends(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def run() -> tuple[bytes, bool]:
        inner, outer = str(tmp_path / "inner"), str(tmp_path / "outer")
        server = await asyncio.start_unix_server(echo, inner)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(outer)
        listener.listen()
        listener.setblocking(False)
        relay = sockets.Relay(listener, inner)
        relay.start()
        reader, writer = await asyncio.open_unix_connection(outer)
        writer.write(b"x" * 300_000)
        found = await reader.readexactly(300_000)
        relay.stop()
        ended = await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        server.close()
        listener.close()
        return found, ended

    assert asyncio.run(run()) == (b"x" * 300_000, True)


# ---- systemd


def test_what_systemd_hears(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())})
        notifier.tell("READY=1", "STATUS=well")
        assert manager.recv(99) == b"READY=1\nSTATUS=well"

        async def live() -> None:
            task = asyncio.ensure_future(notifier.watch())
            await asyncio.sleep(0.1)
            task.cancel()

        asyncio.run(live())
        manager.settimeout(1)
        assert [manager.recv(99) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    notifier.tell("STOPPING=1")  # nobody there: no failure


def test_without_a_watchdog_nothing_is_watched() -> None:
    for env in ({}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}):
        asyncio.run(asyncio.wait_for(Notifier(env).watch(), 1))


# ---- the log


def written(
    form: str, env: dict[str, str], capsys: pytest.CaptureFixture[str], journal: str = "/nowhere", **fields: Any
) -> str:
    try:
        log.start("info", form, env, journal)
        logger = logging.getLogger("wherryd.test")
        logger.debug("not told")
        logger.info("a call\nERROR forged", extra={"fields": fields})
        try:
            raise ValueError("x\ny")
        except ValueError:
            logger.exception("failed")
    finally:
        logging.basicConfig(force=True, handlers=[logging.NullHandler()])
        logging.getLogger("wherryd").setLevel(logging.NOTSET)
    return capsys.readouterr().err


def test_no_record_writes_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written("text", {}, capsys, id="a\nb").splitlines()
    assert lines[0].endswith("Z info a call\\nERROR forged id=a\\nb")
    assert all(" error " in line for line in lines[1:]), "a traceback's lines are marked as well"
    assert "not told" not in str(lines)


def test_the_journal_gets_priorities(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written("auto", {"JOURNAL_STREAM": "1:2"}, capsys).splitlines()
    assert lines[0].startswith("<6>a call")
    assert all(line.startswith("<3>") for line in lines[1:])


def test_fields_for_the_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its native protocol: what was said of a container can be asked for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(1)
        found = os.fstat(2)
        env = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert not written("auto", env, capsys, journal=str(tmp_path / "journal"), container="web")
        first, second = journal.recv(1 << 16), journal.recv(1 << 16)
    assert first == (b"MESSAGE\n" + len("a call\nERROR forged").to_bytes(8, "little") + b"a call\nERROR forged\n"
                     b"PRIORITY=6\nSYSLOG_IDENTIFIER=wherryd\nLOGGER=wherryd.test\nCONTAINER=web\n")  # fmt: skip
    assert second.startswith(b"MESSAGE=failed\nPRIORITY=3\n")
    assert b"ValueError: x\ny" in second
    assert written("auto", env, capsys, journal=str(tmp_path / "nobody")).startswith("<6>a call")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (json.loads(line) for line in written("json", {}, capsys, id="a").splitlines())
    assert first["msg"] == "a call\nERROR forged"
    assert (first["level"], first["id"]) == ("info", "a")
    assert "ValueError" in second["trace"]
