"""What people do with docker, and what they then expect: each case was once wrong here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.wherry import COMMAND, Wherry, until

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


def test_a_volume_that_is_a_directory_of_the_host(own: Wherry, tmp_path: Path) -> None:
    volume = own.name("v")
    place = tmp_path / "place"
    place.mkdir()
    opts = ("-o", "type=none", "-o", f"device={place}")
    assert own.out("volume", "create", *opts, "-o", "o=bind", volume) == volume
    assert "passwd" in own.out("run", "--rm", *NONE, "-v", f"{volume}:/etc", IMAGE, "ls", "/etc")
    assert (place / "passwd").exists()  # the image's files came up, as into any new volume
    own("volume", "create", *opts, "-o", "o=bind,ro", volume + "-ro")
    assert own("run", "--rm", *NONE, "-v", f"{volume}-ro:/x", IMAGE, "touch", "/x/y", check=False).returncode == 1
    assert "other options" in own("volume", "create", *opts, "-o", "o=rbind", volume, check=False).stderr
    own("volume", "rm", volume, volume + "-ro")
    assert (place / "passwd").exists()  # the host's directory is not the volume's to delete


@pytest.mark.parametrize(
    "opts", ["type=tmpfs", "type=nfs o=addr=10.0.0.1 device=:/x", "size=1x", "o=bind device=/no/dir"]
)
def test_volume_options_that_cannot_be_are_refused(own: Wherry, opts: str) -> None:
    flags = [word for opt in opts.split() for word in ("-o", opt)]
    done = own("volume", "create", *flags, own.name("v"), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "hint:" in done.stderr
    assert own.out("volume", "ls", "-q") == ""


def test_reset_leaves_nothing(own: Wherry) -> None:
    network, volume = own.name("n"), own.name("v")
    own("network", "create", network)
    sleeper(own, "-p", "127.0.0.1::80", "-v", f"{volume}:/x", "--ipc", "shareable", network=("--network", network))
    sleeper(own, suffix="d", network=())
    bridges = {
        json.loads(own.out("network", "inspect", n))[0]["IPAM"]["Config"][0]["Gateway"] for n in (network, "bridge")
    }
    assert own("system", "reset", check=False).returncode == 1  # nobody can be asked
    assert len(own.containers()) == 2
    (own.root / "mine").write_text("stays")
    done = own("system", "reset", "-f")
    assert network in done.stdout
    assert volume in done.stdout
    assert sorted(own.root.iterdir()) == [own.root / "mine"]
    assert not own.state.exists()
    addresses = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    assert not [gateway for gateway in bridges if f"{gateway}/" in addresses]
    own("system", "reset", "--force")  # nothing is there: no failure


def test_the_restart_that_a_sweep_finds_is_not_lost(own: Wherry) -> None:
    name = sleeper(own, "--restart", "always")
    state = json.loads((own.state / "c" / own.inspect(name)["Id"] / "state.json").read_text())
    os.kill(state["monitor"]["pid"], signal.SIGKILL)
    until(lambda: own.inspect(name)["State"]["Status"] == "exited")
    own("run", "--rm", *NONE, IMAGE, "sleep", "2")  # sweeps, hands the restart over, and lives on for a while
    until(lambda: own.inspect(name)["State"]["Running"])
    assert own.inspect(name)["RestartCount"] == 1


def test_a_registry_that_is_not_there_is_told_at_once(own: Wherry) -> None:
    begun = time.monotonic()
    done = own("run", "--rm", "127.0.0.1:1/team/app:1", "true", check=False)
    assert done.returncode == 125
    assert "Connection refused" in done.stderr
    assert "Errno" not in done.stderr
    assert "does the registry run?" in done.stderr
    assert time.monotonic() - begun < 5  # four pauses of patience would be more


def test_events_of_exec_and_keys_that_an_event_does_not_have(own: Wherry) -> None:
    name = sleeper(own)
    own("exec", name, "sh", "-c", "exit 3", check=False)
    lines = own.out("events", "--since", "1h", "--until", "0s", "--format",
                    "{{.Action}} {{.Actor.Attributes.exitCode}}").splitlines()  # fmt: skip
    assert [line for line in lines if line.startswith("exec_")] == [
        "exec_create: sh -c exit 3 <no value>", "exec_start: sh -c exit 3 <no value>", "exec_die 3",
    ]  # fmt: skip


def test_inspect_shows_the_health_check_that_was_asked(own: Wherry) -> None:
    name = sleeper(own, "--health-cmd", "true", "--health-interval", "5s", "--health-retries", "2")
    shown = own.inspect(name)["Config"]["Healthcheck"]
    assert shown == {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000, "Retries": 2}
    assert own.out("inspect", "-f", "{{.Config.Labels.nothing}}", name) == "<no value>"


def test_a_full_place_is_no_bug_of_ours(own: Wherry) -> None:
    for words in (("ps",), ("run", "--rm", *NONE, IMAGE, "echo", "x")):
        with open("/dev/full", "w", encoding="ascii") as full:
            done = subprocess.run(
                [*COMMAND, *words], env=own.env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode in (1, 125)
        assert done.stderr.startswith("wherry: No space left on device\n")
        assert "bug of wherry" not in done.stderr


def test_a_user_is_who_the_container_says(own: Wherry, tmp_path: Path) -> None:
    """Who it is in the image is remembered; what was put into the container counts more."""
    words = (*NONE, "-u", "daemon", IMAGE, "sh", "-c", "id -u; id -g; echo $HOME")
    first = own.out("run", "--rm", *words)
    assert first == own.out("run", "--rm", *words)
    assert list((own.root / "cache/users").iterdir())
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\ndaemon:x:4711:4712::/elsewhere:/bin/sh\n")
    name = own.name("other")
    own("create", "--name", name, *words)
    own("cp", tmp_path / "passwd", f"{name}:/etc/passwd")
    assert own.out("start", "-a", name).split() == ["4711", "4712", "/elsewhere"]
    assert own.out("run", "--rm", *words) == first


@pytest.mark.parametrize("what", [b"", b"[]", b"[0, 0, [0], 7]", b"\xff\0", b'{"uid": 0}'])
def test_a_torn_memory_of_a_user_is_none(own: Wherry, what: bytes) -> None:
    words = ("run", "--rm", *NONE, "-u", "daemon", IMAGE, "id", "-u")
    first = own.out(*words)
    assert first.isdigit()
    assert int(first) > 0
    for path in (own.root / "cache/users").iterdir():
        path.write_bytes(what)
    assert own.out(*words) == first


def test_a_list_says_what_each_says_for_itself(own: Wherry) -> None:
    """Many at once are looked at in another way than one."""
    running = sleeper(own, suffix="run")
    host = sleeper(own, "--pid", "host", suffix="hostpid")
    joined = sleeper(own, "--pid", f"container:{running}", suffix="joined")
    paused = sleeper(own, suffix="paused")
    own("pause", paused)
    ended, made, killed = own.name("ended"), own.name("made"), sleeper(own, suffix="killed")
    own("run", "--name", ended, *NONE, IMAGE, "sh", "-c", "exit 5", check=False)
    own("create", "--name", made, *NONE, IMAGE, "true")
    os.kill(own.pid(killed), signal.SIGKILL)
    until(lambda: own.inspect(killed)["State"]["Status"] == "exited")
    listed = dict(line.split() for line in own.out("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines())
    names = (running, host, joined, paused, ended, made, killed)
    assert listed == {name: own.inspect(name)["State"]["Status"] for name in names}
    assert set(listed.values()) == {"running", "paused", "exited", "created"}
    assert own.out("ps", "--filter", "status=paused", "--format", "{{.Names}}") == paused


def test_what_is_mounted_on_is_no_change(own: Wherry) -> None:
    """Nor is it made anew for each container: the places lie below all layers."""
    name = sleeper(own)
    assert own.out("diff", name) == ""
    upper = own.root / "snapshots" / own.inspect(name)["Id"] / "upper"
    assert list(upper.iterdir()) == []
    own("exec", name, "sh", "-c", "echo x >/etc/new")
    assert own.out("diff", name).split("\n") == ["C /etc", "A /etc/new"]
    assert sorted(path.name for path in (own.root / "mountpoints").iterdir()) == ["dev", "etc", "proc", "sys"]
    assert not any(path.stat().st_size for path in (own.root / "mountpoints/etc").iterdir())
