"""What people do with docker, and what they then expect: each case was once wrong here."""

from __future__ import annotations

import json

import pytest

from helpers.wherry import Wherry

IMAGE = "busybox"
NONE = ("--network", "none")


@pytest.fixture
def own(wherry: Wherry, busybox: str) -> Wherry:
    """A wherry with the image in it."""
    wherry("pull", "-q", busybox)
    return wherry


def sleeper(own: Wherry, *flags: str, suffix: str = "c", network: tuple[str, ...] = NONE) -> str:
    name = own.name(suffix)
    own("run", "-d", *network, "--name", name, *flags, IMAGE, "sleep", "1000")
    return name


def test_a_source_that_is_here_is_no_news(own: Wherry, busybox: str) -> None:
    done = own("run", "--rm", *NONE, busybox, "echo", "x")
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_names_are_shared_with_a_joined_namespace(own: Wherry) -> None:
    name = sleeper(own, "--hostname", "theirs")
    shown = "hostname; cat /etc/hostname"
    assert own.out("run", "--rm", "--network", f"container:{name}", IMAGE, "sh", "-c", shown) == "theirs\ntheirs"
    assert own.out("run", "--rm", *NONE, "--uts", f"container:{name}", IMAGE, "sh", "-c", shown) == "theirs\ntheirs"
    assert own.out("exec", name, "hostname") == "theirs"  # joining renames nobody


def test_modes_that_do_not_exist_are_refused(own: Wherry) -> None:
    for flag in ("--ipc", "--pid", "--uts"):
        for mode in ("nonsense", "container:"):
            done = own("run", "--rm", *NONE, flag, mode, IMAGE, "true", check=False)
            assert done.returncode == 125
            assert f"for {flag}:" in done.stderr


def test_one_free_port_of_a_range(own: Wherry) -> None:
    ports = {own.out("port", sleeper(own, "-p", "127.0.0.1:18761-18763:80", suffix=s, network=())) for s in "abc"}
    assert ports == {f"80/tcp -> 127.0.0.1:{port}" for port in (18761, 18762, 18763)}
    done = own("run", "--rm", "-p", "127.0.0.1:18761-18763:80", IMAGE, "true", check=False)
    assert done.returncode == 125
    assert "no port of 18761-18763/tcp is free" in done.stderr


def test_inspect_speaks_of_signals_and_networks_by_name_and_id(own: Wherry) -> None:
    name = sleeper(own, "--stop-signal", "RTMIN+3", network=())
    found = own.inspect(name)
    assert found["Config"]["StopSignal"] == "SIGRTMIN+3"
    network = json.loads(own.out("network", "inspect", "bridge"))[0]
    endpoint = found["NetworkSettings"]["Networks"]["bridge"]
    assert endpoint["NetworkID"] == network["Id"]
    assert endpoint["EndpointID"] == network["Containers"][found["Id"]]["EndpointID"] != ""


def test_a_file_is_no_place_for_a_directory(own: Wherry) -> None:
    for spec in (f"{__file__}:/tmp", "/tmp:/etc/passwd"):
        done = own("run", "--rm", *NONE, "-v", spec, IMAGE, "true", check=False)
        assert done.returncode == 125
        assert "a file on a file" in done.stderr
