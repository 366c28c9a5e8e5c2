"""Networks by the command line: several per container, joined and left while it runs, every driver, who reaches."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.network import Outside
from helpers.tools import run
from helpers.wherry import COMMAND, Wherry, until
from wherry.model import Attachment, Place
from wherry.net import launchers, netns
from wherry.net.networks import Networks

pytestmark = pytest.mark.root


def network(wherry: Wherry, suffix: str, *words: object) -> str:
    name = f"{suffix}-{wherry.id}"
    wherry("network", "create", *words, name)
    return name


def sleeper(wherry: Wherry, image: str, name: str, *words: object) -> str:
    wherry("run", "-d", "--name", name, *words, image, "sleep", "1000")
    return name


def server(wherry: Wherry, image: str, name: str, *words: object) -> str:
    wherry("run", "-d", "--name", name, *words, image, "httpd", "-f", "-p", "80", "-h", "/etc")
    return name


def endpoints(wherry: Wherry, ref: str) -> dict[str, Any]:
    return wherry.inspect(ref)["NetworkSettings"]["Networks"]  # type: ignore[no-any-return]


def address(wherry: Wherry, ref: str, net: str, key: str = "IPAddress") -> str:
    return str(endpoints(wherry, ref)[net][key])


def links(wherry: Wherry, ref: str) -> set[str]:
    shown = wherry("exec", ref, "ip", "-o", "link").stdout
    return set(re.findall(r"^\d+: (\w+)", shown, re.MULTILINE)) - {"lo"}


def default_route(wherry: Wherry, ref: str) -> list[str]:
    shown = wherry("exec", ref, "ip", "route").stdout
    return re.findall(r"^default via (\S+) dev (\S+)", shown, re.MULTILINE)[0:1] or []


def members(wherry: Wherry, net: str) -> dict[str, Any]:
    found = wherry.inspect(net)["Containers"]
    return {endpoint["Name"]: endpoint for endpoint in found.values()}


def fetched(url: str, *command: str) -> str:
    words = [*command, "curl", "-s", "-g", "-m", "2", url]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


# ---- while it runs ----


def test_a_running_container_joins_and_leaves(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    server(wherry, busybox, "web")
    sleeper(wherry, busybox, "db", "--network", back)
    hosts = Path(wherry.inspect("db")["HostsPath"])
    wherry("network", "connect", "--alias", "front", back, "web")
    assert links(wherry, "web") == {"eth0", "eth1"}
    assert address(wherry, "web", back) in hosts.read_text(), "its peers know at once"
    assert wherry("exec", "db", "wget", "-q", "-O", "-", "http://front/hostname").stdout.strip()
    assert "db" in wherry("exec", "web", "cat", "/etc/hosts").stdout
    assert set(members(wherry, back)) == {"web", "db"}
    assert members(wherry, back)["web"]["MacAddress"] == endpoints(wherry, "web")[back]["MacAddress"] != ""
    assert endpoints(wherry, "web")[back]["Aliases"] == ["front"]
    wherry("network", "disconnect", back, "web")
    assert links(wherry, "web") == {"eth0"}
    assert set(endpoints(wherry, "web")) == {"bridge"}
    assert "web" not in hosts.read_text()
    assert "db" not in wherry("exec", "web", "cat", "/etc/hosts").stdout.split()
    assert set(members(wherry, back)) == {"db"}
    told = [json.loads(line) for line in wherry(
        "events", "--since", "5m", "--until", "0s", "--filter", "type=network", "--format", "json").stdout.splitlines()]
    acted = [(event["Action"], event["Actor"]["Attributes"].get("name")) for event in told]
    assert acted == [("create", back), ("connect", back), ("disconnect", back)]
    assert told[1]["Actor"]["Attributes"]["container"] == wherry.inspect("web")["Id"]


def test_the_own_lines_of_the_hosts_file_follow(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    sleeper(wherry, busybox, "cc", "--hostname", "me", "--add-host", "x:192.0.2.9")
    first = address(wherry, "cc", "bridge")
    wherry("network", "connect", back, "cc")
    second = address(wherry, "cc", back)
    wherry("network", "disconnect", "bridge", "cc")
    lines = wherry("exec", "cc", "cat", "/etc/hosts").stdout.splitlines()
    assert f"{second}\tme" in lines
    assert not [line for line in lines if line.startswith(f"{first}\t")]
    assert "192.0.2.9\tx" in lines
    wherry("network", "disconnect", back, "cc")
    assert links(wherry, "cc") == set()
    assert endpoints(wherry, "cc") == {}
    wherry("network", "connect", back, "cc")
    assert default_route(wherry, "cc")[0][1] == "eth0"


def test_what_is_remembered_at_rest_is_there_at_the_next_start(wherry: Wherry, busybox: str) -> None:
    one, two = network(wherry, "one"), network(wherry, "two", "--subnet", "10.99.7.0/24")
    wherry("create", "--name", "cc", "--network", one, busybox, "sleep", "1000")
    wherry("network", "connect", "--ip", "10.99.7.77", "--mac-address", "02:00:00:00:07:07", two, "cc")
    assert members(wherry, two) == {}, "it does not run"
    assert set(endpoints(wherry, "cc")) == {one, two}
    refused = wherry("network", "rm", two, check=False)
    assert "in use by cc" in refused.stderr
    wherry("start", "cc")
    assert address(wherry, "cc", two) == "10.99.7.77"
    assert endpoints(wherry, "cc")[two]["MacAddress"] == "02:00:00:00:07:07"
    assert endpoints(wherry, "cc")[two]["IPAMConfig"] == {"IPv4Address": "10.99.7.77"}
    wherry("stop", "-t", "0", "cc")
    wherry("network", "disconnect", one, "cc")
    wherry("network", "rm", one)
    wherry("start", "cc")
    assert set(endpoints(wherry, "cc")) == {two}
    assert links(wherry, "cc") == {"eth1"}


def test_the_default_route_is_the_first_names_or_the_highest_prioritys(wherry: Wherry, busybox: str) -> None:
    names = [network(wherry, name) for name in ("b", "a", "c")]
    inner = network(wherry, "0", "--internal")
    sleeper(wherry, busybox, "c1", *(word for name in (names[0], names[2], inner) for word in ("--network", name)))
    gateway = {name: wherry.inspect(name)["IPAM"]["Config"][0]["Gateway"] for name in names}
    assert default_route(wherry, "c1") == [(gateway[names[0]], "eth0")], "b is before c, and 0 leads nowhere"
    wherry("network", "connect", names[1], "c1")
    assert default_route(wherry, "c1") == [(gateway[names[1]], "eth3")], "a is before b"
    wherry("network", "disconnect", names[2], "c1")
    wherry("network", "connect", "--gw-priority", "5", names[2], "c1")
    assert default_route(wherry, "c1") == [(gateway[names[2]], "eth1")]
    wherry("restart", "-t", "0", "c1")
    assert default_route(wherry, "c1") == [(gateway[names[2]], "eth1")]
    wherry("network", "disconnect", names[2], "c1")
    assert default_route(wherry, "c1") == [(gateway[names[1]], "eth3")]


def test_what_is_published_moves_on_when_its_network_is_left(
    wherry: Wherry, busybox: str, outside: Outside
) -> None:
    back = network(wherry, "back")
    server(wherry, busybox, "web", "-p", "18080:80")
    wherry("network", "connect", back, "web")
    kept = address(wherry, "web", back)
    wherry("network", "disconnect", "bridge", "web")
    assert address(wherry, "web", back) == kept
    assert wherry.out("port", "web") == "80/tcp -> 0.0.0.0:18080"
    assert fetched(f"http://{outside.own}:18080/hostname", *outside.command())
    wherry("network", "disconnect", back, "web")
    assert wherry.out("port", "web") == ""
    sleeper(wherry, busybox, "next", "-p", "18080:80")  # the port was given back
    wherry("rm", "-f", "next")
    wherry("network", "connect", back, "web")
    assert fetched(f"http://{outside.own}:18080/hostname", *outside.command())


def test_a_foreground_container_gives_back_what_it_joined_later(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    with wherry.popen("run", "--rm", "--name", "cc", busybox, "sleep", "3", stdout=subprocess.DEVNULL) as client:
        until(lambda: wherry("inspect", "-f", "{{.State.Running}}", "cc", check=False).stdout == "true\n")
        wherry("network", "connect", back, "cc")
        assert client.wait() == 0
    assert members(wherry, back) == {}
    wherry("network", "rm", back)


def test_what_a_container_makes_of_its_files_stops_nobody(wherry: Wherry, busybox: str) -> None:
    """They can be larger than anything that we read, and no peer's start nor its own new network fails."""
    back = network(wherry, "back")
    for name, file in (("one", "hosts"), ("two", "resolv.conf")):
        sleeper(wherry, busybox, name)
        wherry("exec", name, "dd", "if=/dev/zero", f"of=/etc/{file}", "bs=1M", "count=2", "conv=notrunc")
    sleeper(wherry, busybox, "late")
    for name in ("one", "two"):
        assert address(wherry, name, "bridge") in wherry("exec", "late", "cat", "/etc/hosts").stdout
        wherry("network", "connect", back, name)
        assert links(wherry, name) == {"eth0", "eth1"}


def test_a_start_knows_what_was_joined_while_it_waited(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    wherry("create", "--name", "cc", busybox, "sleep", "1000")
    lock = wherry.root / "containers" / wherry.inspect("cc")["Id"] / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        started = wherry.popen("start", "cc")
        until(lambda: str(lock) in opened(started.pid))
        started.send_signal(signal.SIGSTOP)
    wherry("network", "connect", back, "cc")
    started.send_signal(signal.SIGCONT)
    assert started.wait(30) == 0
    assert links(wherry, "cc") == {"eth0", "eth1"}


def opened(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry))
    return found


def test_who_was_removed_by_a_command_that_was_killed_is_forgotten(wherry: Wherry, busybox: str) -> None:
    sleeper(wherry, busybox, "one")
    sleeper(wherry, busybox, "two")
    cid = wherry.inspect("two")["Id"]
    state = json.loads(Path(f"{wherry.state}/c/{cid}/state.json").read_text())
    for who in ("monitor", "init"):
        os.kill(state[who]["pid"], signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(wherry.root / "wherry.db")) as rows, rows:
        rows.execute("PRAGMA foreign_keys = ON")
        rows.execute("DELETE FROM containers WHERE id = ?", (cid,))
    wherry("create", busybox, "true")
    assert "two" not in wherry("exec", "one", "cat", "/etc/hosts").stdout
    assert cid not in Path(f"{wherry.state}/names/bridge.json").read_text()


def test_two_that_connect_at_once_connect_once(wherry: Wherry, busybox: str) -> None:
    names = [network(wherry, f"n{n}") for n in range(4)]
    sleeper(wherry, busybox, "cc")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda name: wherry("network", "connect", name, "cc", check=False), [*names, *names]))
    assert sorted(one.returncode for one in done) == [0] * 4 + [1] * 4, [one.stderr for one in done]
    assert links(wherry, "cc") == {f"eth{n}" for n in range(5)}
    assert set(endpoints(wherry, "cc")) == {"bridge", *names}


# ---- what is refused leaves nothing ----


def test_a_connect_that_fails_leaves_nothing(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back", "--subnet", "10.99.8.0/29")
    sleeper(wherry, busybox, "aa", "--network", f"{back}:ip=10.99.8.5")
    sleeper(wherry, busybox, "bb")
    before = wherry.inspect("bb")["NetworkSettings"]
    for words, why in (
        (("--ip", "10.99.8.5"), "10.99.8.5 is in use"), (("--ip", "10.1.1.1"), "in no range"),
        (("--driver-opt", "nope=1"), '"nope" is not known'),
    ):
        done = wherry("network", "connect", *words, back, "bb", check=False)
        assert done.returncode == 1
        assert why in done.stderr
        assert wherry.inspect("bb")["NetworkSettings"] == before
        assert links(wherry, "bb") == {"eth0"}
        assert set(members(wherry, back)) == {"aa"}
    wherry("network", "connect", back, "bb")


def test_a_network_is_left_for_good_also_between_an_end_and_its_cleanup(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    sleeper(wherry, busybox, "cc", "--network", "bridge", "--network", back)
    state = json.loads(Path(f"{wherry.state}/c/{wherry.inspect('cc')['Id']}/state.json").read_text())
    for who in ("monitor", "init"):
        os.kill(state[who]["pid"], signal.SIGKILL)
    wherry("network", "disconnect", back, "cc")
    assert not list(Path(f"{wherry.state}/cni/results").glob(f"{back},*.json"))
    wherry("start", "cc")
    wherry("network", "connect", back, "cc")
    assert links(wherry, "cc") == {"eth0", "eth1"}


def test_an_mtu_that_ipv6_cannot_have_is_refused(wherry: Wherry) -> None:
    done = wherry("network", "create", "--ipv6", "-o", "mtu=1000", "small", check=False)
    assert "IPv6 needs an MTU of 1280" in done.stderr
    wherry("network", "create", "-o", "mtu=1000", "small")
    wherry("network", "rm", "small")


def test_a_connect_that_fails_at_the_last_leaves_the_default_route(
    wherry: Wherry, busybox: str, tmp_path: Path
) -> None:
    """The plugin tells of an interface that is not there."""
    plugin = tmp_path / "liar"
    told = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth1", "sandbox": "/x"}], "routes": [{"dst": "0.0.0.0/0"}],
            "ips": [{"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0}]}  # fmt: skip
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    plugin.chmod(0o755)
    wherry.config.write_text(wherry.config.read_text() + f'cni_conf = "{tmp_path}"\ncni_path = "{tmp_path}"\n')
    mine = {"cniVersion": "1.0.0", "name": "mine", "plugins": [{"type": "liar"}]}
    (tmp_path / "mine.conflist").write_text(json.dumps(mine))
    sleeper(wherry, busybox, "cc")
    before = default_route(wherry, "cc"), wherry("exec", "cc", "cat", "/etc/hosts", "/etc/resolv.conf").stdout
    assert wherry("network", "connect", "--gw-priority", "9", "mine", "cc", check=False).returncode == 1
    assert before[0]
    now = default_route(wherry, "cc"), wherry("exec", "cc", "cat", "/etc/hosts", "/etc/resolv.conf").stdout
    assert now == before
    assert set(endpoints(wherry, "cc")) == {"bridge"}


def test_a_default_route_by_a_link_alone_goes_too(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back", "--internal")
    sleeper(wherry, busybox, "cc")
    where = f"--net={wherry.state}/netns/{wherry.inspect('cc')['Id']}"
    wherry("network", "connect", back, "cc")
    wherry("network", "disconnect", "bridge", "cc")
    run("nsenter", where, "ip", "route", "add", "default", "dev", "eth1", "scope", "link")
    wherry("network", "connect", "bridge", "cc")
    shown = wherry("exec", "cc", "ip", "route").stdout
    assert len(re.findall("^default", shown, re.MULTILINE)) == 1, shown
    assert default_route(wherry, "cc")[0][1] == "eth0"


def test_whom_a_container_asks_follows_though_the_host_s_resolv_conf_changed(
    wherry: Wherry, busybox: str, tmp_path: Path
) -> None:
    """The host's is another now than when the container started (a laptop that moved); that is nobody's edit."""
    back = network(wherry, "back")
    sleeper(wherry, busybox, "cc", "--network", back)
    wherry("network", "connect", "bridge", "cc")
    (tmp_path / "new").write_text("search moved.example\nnameserver 192.0.2.53\n")
    leave = f"mount --bind {tmp_path}/new /etc/resolv.conf; {' '.join(COMMAND)} network disconnect {back} cc"
    run("unshare", "--mount", "sh", "-c", leave, env=wherry.env)
    gateway = endpoints(wherry, "cc")["bridge"]["Gateway"]
    assert f"nameserver {gateway}\n" in wherry("exec", "cc", "cat", "/etc/resolv.conf").stdout


def test_a_full_subnet_is_told_and_leaves_nothing(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back", "--subnet", "10.99.8.0/29", "--aux-address", "r=10.99.8.4")
    for number in range(4):
        sleeper(wherry, busybox, f"c{number}", "--network", back)
    used = {endpoint["IPv4Address"] for endpoint in members(wherry, back).values()}
    assert used == {f"10.99.8.{n}/29" for n in (2, 3, 5, 6)}, "neither the gateway nor the auxiliary address"
    done = wherry("run", "--name", "late", "--network", back, busybox, "true", check=False)
    assert done.returncode == 125
    assert "no IP addresses available" in done.stderr or "10.99.8" in done.stderr
    assert set(members(wherry, back)) == {f"c{number}" for number in range(4)}


@pytest.mark.parametrize(("words", "why"), [
    (("connect", "bridge", "plain"), "is on network bridge already"),
    (("connect", "host", "plain"), "joined by a container alone"),
    (("connect", "none", "plain"), "joined by a container alone"),
    (("connect", "bridge", "hosted"), "has network mode host"),
    (("connect", "bridge", "shared"), "has network mode container:"),
    (("connect", "nosuch", "plain"), "network nosuch not found"),
    (("connect", "bridge", "nosuch"), "no such container: nosuch"),
    (("connect", "--link", "x", "bridge", "plain"), "links are not built"),
    (("connect", "--ip", "fd00::1", "bridge", "plain"), "not an IPv4 address"),
    (("disconnect", "host", "hosted"), "not found"),
    (("disconnect", "bridge", "hosted"), "is not connected to network bridge"),
    (("disconnect", "-f", "bridge", "nosuch"), "no such container: nosuch"),
])
def test_refusals_are_one_sentence(wherry: Wherry, busybox: str, words: tuple[str, ...], why: str) -> None:
    sleeper(wherry, busybox, "plain")
    if "hosted" in words:
        wherry("create", "--name", "hosted", "--network", "host", busybox, "true")
    if "shared" in words:
        wherry("create", "--name", "shared", "--network", "container:plain", busybox, "true")
    done = wherry("network", *words, check=False)
    assert done.returncode != 0
    assert why in done.stderr
    assert done.stderr.startswith("wherry: ")
    assert "Traceback" not in done.stderr


def test_a_namespace_that_is_gone_is_an_error_and_can_be_left(wherry: Wherry, busybox: str) -> None:
    back, other = network(wherry, "back"), network(wherry, "other")
    sleeper(wherry, busybox, "cc", "--network", back)
    netns.remove(f"{wherry.state}/netns/{wherry.inspect('cc')['Id']}")
    done = wherry("network", "connect", other, "cc", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert members(wherry, other) == {}
    assert set(endpoints(wherry, "cc")) == {back}
    wherry("rm", "-f", "cc")
    assert members(wherry, back) == {}


def test_force_takes_what_a_container_left_that_nobody_knows(wherry: Wherry, busybox: str) -> None:
    back = network(wherry, "back")
    sleeper(wherry, busybox, "cc")  # the default network's state is made by the command line
    nets = Networks(Place(root=str(wherry.root), state=str(wherry.state), cni_conf="/nowhere"))
    lost = "f" * 64
    path = netns.create(f"{wherry.state}/netns/{lost}")
    nets.attach(lost, path, Attachment(back))
    assert wherry("network", "rm", back, check=False).returncode == 1
    assert wherry("network", "disconnect", back, lost, check=False).returncode == 1
    wherry("network", "disconnect", "-f", back, lost)
    netns.remove(path)
    wherry("network", "rm", back)


# ---- addresses of both families ----


def test_ipv6_alone(wherry: Wherry, busybox: str) -> None:
    six = network(wherry, "six", "--ipv4=false", "--ipv6")
    wherry("run", "-d", "--name", "web", "--network", six, "-p", "18080:80", busybox,
           "httpd", "-f", "-p", "[::]:80", "-h", "/etc")  # fmt: skip
    assert address(wherry, "web", six) == ""
    own = address(wherry, "web", six, "GlobalIPv6Address")
    shown = wherry("run", "--rm", "--network", six, busybox, "ping", "-6", "-c1", "-W2", "web").stdout
    assert own in shown
    gateway = wherry.inspect(six)["IPAM"]["Config"][0]["Gateway"]
    assert f"default via {gateway}" in wherry("exec", "web", "ip", "-6", "route").stdout
    assert wherry("exec", "web", "ip", "-4", "route").stdout == ""
    assert wherry.out("ps", "--format", "{{.Ports}}") == "[::]:18080->80/tcp"
    assert fetched(f"http://[{gateway}]:18080/hostname")


def test_both_families_with_addresses_as_asked(wherry: Wherry, busybox: str) -> None:
    both = network(wherry, "both", "--subnet", "10.99.9.0/24", "--subnet", "fd00:99:9::/64", "--ipv6")
    wherry("run", "-d", "--name", "web", "--network", f"{both}:ip=10.99.9.9,ip6=fd00:99:9::9,mac=02:00:00:00:09:09",
           "-p", "18090-18092:90-92", "-p", "127.0.0.1:18099:99/udp", "-p", "[::]:18070:70", busybox,
           "sleep", "1000")  # fmt: skip
    end = endpoints(wherry, "web")[both]
    assert (end["IPAddress"], end["GlobalIPv6Address"]) == ("10.99.9.9", "fd00:99:9::9")
    assert end["IPAMConfig"] == {"IPv4Address": "10.99.9.9", "IPv6Address": "fd00:99:9::9"}
    assert end["MacAddress"] == "02:00:00:00:09:09"
    assert wherry.out("ps", "--format", "{{.Ports}}").split(", ") == [
        "0.0.0.0:18090-18092->90-92/tcp", "[::]:18070->70/tcp", "[::]:18090-18092->90-92/tcp",
        "127.0.0.1:18099->99/udp",
    ]  # fmt: skip
    assert wherry.out("port", "web", "91") == "0.0.0.0:18091\n[::]:18091"
    sleeper(wherry, busybox, "other", "--network", both, "--ip6", "fd00:99:9::a", "--network-alias", "db")
    assert address(wherry, "other", both, "GlobalIPv6Address") == "fd00:99:9::a"
    for version, wanted in (("-4", address(wherry, "other", both)), ("-6", "fd00:99:9::a")):
        assert wanted in wherry("exec", "web", "ping", version, "-c1", "-W2", "db").stdout


def test_a_port_that_is_taken_on_ipv6_is_refused(wherry: Wherry, busybox: str) -> None:
    both = network(wherry, "both", "--ipv6")
    sleeper(wherry, busybox, "aa", "--network", both, "-p", "[::]:18080:80")
    done = wherry("run", "--rm", "--network", both, "-p", "18080:80", busybox, "true", check=False)
    assert done.returncode == 125
    assert "18080/tcp is in use: container" in done.stderr
    wherry("run", "--rm", "--network", both, "-p", "0.0.0.0:18080:80", busybox, "true")


# ---- who can reach what ----


def test_exposure_says_who_reaches_a_port_and_is_right(wherry: Wherry, busybox: str, outside: Outside) -> None:
    inner, back = network(wherry, "inner", "--internal"), network(wherry, "back")
    server(wherry, busybox, "open", "-p", "18080:80")
    server(wherry, busybox, "local", "-p", "127.0.0.1:18081:80")
    server(wherry, busybox, "closed", "--network", inner, "-p", "18082:80")
    sleeper(wherry, busybox, "peer", "--network", back)
    sleeper(wherry, busybox, "inside", "--network", inner)
    rows = {row["Name"]: row for row in map(json.loads, wherry("ports", "--format", "json").stdout.splitlines())}
    assert set(rows) == {"open", "local", "closed"}

    def reach(name: str) -> set[tuple[str, str]]:
        return {(way["Who"], way["Address"]) for way in rows[name]["Reach"]}

    gateway = {net: wherry.inspect(net)["IPAM"]["Config"][0]["Gateway"] for net in ("bridge", inner, back)}
    assert ("anyone", outside.own) in reach("open")
    assert (f"network {back}", gateway[back]) in reach("open")
    assert ("network bridge", address(wherry, "open", "bridge")) in reach("open")
    assert reach("local") == {("this host", "127.0.0.1"), ("network bridge", address(wherry, "local", "bridge"))}
    assert not [who for who, _ in reach("closed") if who not in ("this host", f"network {inner}")]
    assert (f"network {inner}", gateway[inner]) in reach("closed")
    asked = {"anyone": outside.command(), "this host": []}
    for row in rows.values():
        ways = {way["Address"]: way["Who"] for way in row["Reach"] if "Port" not in way}
        for host in (outside.own, "127.0.0.1", gateway["bridge"]):
            url = f"http://{host}:{row['HostPort']}/hostname"
            assert bool(fetched(url, *asked["this host"])) == (host in ways), (row["Name"], host)
        seen = bool(fetched(f"http://{outside.own}:{row['HostPort']}/hostname", *asked["anyone"]))
        assert seen == ("anyone" in ways.values()), row["Name"]
        for where, net in (("peer", back), ("inside", inner)):
            done = wherry("exec", where, "timeout", "2", "wget", "-q", "-O", "-",
                          f"http://{gateway[net]}:{row['HostPort']}/hostname", check=False)  # fmt: skip
            assert (done.returncode == 0) == (ways.get(gateway[net]) == f"network {net}"), (row["Name"], where)
    shown = wherry.out("ports", "--exposure").splitlines()
    assert shown[0].split() == ["CONTAINER", "NETWORK", "PORT", "REACHED", "BY"]
    assert any(f"anyone: {outside.own} (wt-up)" in line for line in shown)
    assert wherry.out("ports", "--format", "{{.Name}} {{.Port}}").splitlines()[0] == "closed 0.0.0.0:18082->80/tcp"


def test_exposure_of_nothing_is_an_empty_table(wherry: Wherry, busybox: str) -> None:
    sleeper(wherry, busybox, "cc")
    assert wherry.out("ports").split() == ["CONTAINER", "NETWORK", "PORT"]
    assert wherry.out("ports", "--format", "json") == ""


# ---- drivers ----


def need_plugin(*names: str) -> None:
    if missing := [name for name in names if name not in launchers.PLUGINS]:
        pytest.skip(f"no plugin {', '.join(missing)} of our own")


def test_members_of_a_network_without_icc_reach_the_world_but_not_each_other(
    wherry: Wherry, busybox: str, outside: Outside
) -> None:
    need_plugin("ptp")  # built with the bridge's portIsolation
    apart = network(wherry, "apart", "-o", "com.docker.network.bridge.enable_icc=false")
    sleeper(wherry, busybox, "one", "--network", apart)
    sleeper(wherry, busybox, "two", "--network", apart, "-p", "18080:80")
    wherry("exec", "one", "ping", "-c1", "-W2", outside.address)
    done = wherry("exec", "one", "ping", "-c1", "-W1", address(wherry, "two", apart), check=False)
    assert done.returncode == 1
    (row,) = map(json.loads, wherry("ports", "--format", "json").stdout.splitlines())
    assert not [way for way in row["Reach"] if "Port" in way], "nobody reaches it past what is published"


def test_a_container_on_a_macvlan_is_a_neighbour_of_the_host(wherry: Wherry, busybox: str, outside: Outside) -> None:
    need_plugin("macvlan")
    lan = network(wherry, "lan", "-d", "macvlan", "-o", "parent=wt-up", "--subnet", f"{outside.own[:-1]}0/24",
                  "--gateway", outside.address, "--ip-range", "192.0.2.128/26")  # fmt: skip
    done = wherry("run", "-d", "--name", "cc", "--network", lan, "-p", "18080:80", busybox, "sleep", "1000")
    assert f"Published ports are discarded: network {lan}" in done.stderr
    assert address(wherry, "cc", lan).startswith("192.0.2.1")
    wherry("exec", "cc", "ping", "-c1", "-W2", outside.address)
    assert default_route(wherry, "cc") == [(outside.address, "eth0")]
    assert wherry.inspect(lan)["Driver"] == "macvlan"
    assert wherry.out("ports", "--format", "json") == ""
    wherry("network", "connect", "bridge", "cc")
    assert default_route(wherry, "cc")[0][1] == "eth1", "bridge is before lan"
    wherry("network", "disconnect", lan, "cc")
    assert links(wherry, "cc") == {"eth1"}


@pytest.mark.parametrize("mode", ["vxlan", "host-gw"])
def test_an_overlay_of_one_host(wherry: Wherry, busybox: str, outside: Outside, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "peers.json"
    file.write_text(json.dumps({"peers": [{"address": outside.own, "subnets": ["10.244.1.0/24"]},
                                          {"address": outside.address, "subnets": ["10.244.2.0/24"]}]}))  # fmt: skip
    whole = network(wherry, "all", "-d", "overlay", "-o", f"peers={file}", "-o", f"mode={mode}")
    server(wherry, busybox, "web", "--network", whole, "-p", "18080:80")
    assert address(wherry, "web", whole).startswith("10.244.1.")
    assert wherry("run", "--rm", "--network", whole, busybox, "wget", "-q", "-O", "-", "http://web/hostname").stdout
    assert fetched(f"http://{outside.own}:18080/hostname", *outside.command())


def test_a_bridge_of_the_hosts_stays_when_its_network_goes(wherry: Wherry, busybox: str) -> None:
    name = f"b{wherry.id[-11:]}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    try:
        back = network(wherry, "back", "-o", f"com.docker.network.bridge.name={name}")
        wherry("run", "--rm", "--network", back, busybox, "true")
        wherry("network", "rm", back)
        assert subprocess.run(["ip", "link", "show", name], capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_interfaces_are_called_as_the_network_or_the_endpoint_says(wherry: Wherry, busybox: str) -> None:
    lan = network(wherry, "lan", "-o", "com.docker.network.container_iface_prefix=lan")
    sleeper(wherry, busybox, "cc", "--network", lan, "--network",
            "name=bridge,driver-opt=com.docker.network.endpoint.ifname=up0")  # fmt: skip
    assert links(wherry, "cc") == {"lan0", "up0"}


def test_bandwidth_of_an_endpoint(wherry: Wherry, busybox: str) -> None:
    need_plugin("bandwidth")
    wish = ",".join(f"driver-opt=bandwidth.{key}={value}" for key, value in (
        ("ingressRate", 8_000_000), ("ingressBurst", 800_000)))  # fmt: skip
    sleeper(wherry, busybox, "cc", "--network", f"name=bridge,{wish}")
    shaped = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"qdisc tbf .* rate 8Mbit", shaped)
    assert endpoints(wherry, "cc")["bridge"]["DriverOpts"]["bandwidth.ingressRate"] == "8000000"
    wherry("rm", "-f", "cc")
    assert " tbf " not in subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout


def test_static_addresses_only(wherry: Wherry, busybox: str) -> None:
    need_plugin("static")
    net = network(wherry, "static", "--ipam-driver", "static", "--subnet", "10.99.5.0/24")
    done = wherry("run", "--rm", "--network", net, busybox, "true", check=False)
    assert "gives out no addresses" in done.stderr
    wherry("run", "-d", "--name", "cc", "--network", net, "--ip", "10.99.5.5", busybox, "sleep", "1000")
    assert address(wherry, "cc", net) == "10.99.5.5"
    wherry("exec", "cc", "ping", "-c1", "-W2", "10.99.5.1")


# ---- after a crash, after a boot ----


def test_leases_of_the_dead_go_with_a_sweep_and_after_a_boot(wherry: Wherry, busybox: str) -> None:
    sleeper(wherry, busybox, "cc")
    leases = Path(f"{wherry.state}/cni/leases/bridge")
    subnet = wherry.inspect("bridge")["IPAM"]["Config"][0]["Subnet"].rsplit(".", 2)[0]
    lost, alive = leases / f"{subnet}.77.77", leases / address(wherry, "cc", "bridge")
    lost.write_text("dead\neth0")
    wherry("run", "--rm", busybox, "true")
    assert lost.exists(), "an ordinary start has no reason to look"
    wherry("gc")
    assert not lost.exists()
    assert alive.exists()
    lost.write_text("dead\neth0")
    sleeper(wherry, busybox, "killed")
    state = json.loads(Path(f"{wherry.state}/c/{wherry.inspect('killed')['Id']}/state.json").read_text())
    os.kill(state["monitor"]["pid"], signal.SIGKILL)
    wherry("run", "--rm", busybox, "true")
    assert not lost.exists(), "a start that finds a crash looks"
    lost.write_text("dead\neth0")
    Path(f"{wherry.state}/cni/boot").write_text("another boot\n")
    wherry("run", "--rm", busybox, "true")
    assert not lost.exists()
    assert alive.exists()
    wherry("exec", "cc", "ping", "-c1", "-W2", wherry.inspect("bridge")["IPAM"]["Config"][0]["Gateway"])


# ---- lists of the host ----


def test_a_broken_list_of_the_host_is_told_by_its_file(wherry: Wherry, busybox: str, tmp_path: Path) -> None:
    directory = tmp_path / "net.d"
    wherry.config.write_text(wherry.config.read_text() + f'cni_conf = "{directory}"\ncni_path = "{tmp_path}/bin"\n')
    for _ in range(2):
        directory.mkdir()
        (directory / "10-broken.conflist").write_text('{"name": "mine", ')
        done = wherry("run", "--rm", "--network", "mine", busybox, "true", check=False)
        assert done.returncode == 125
        assert "network mine not found" in done.stderr
        assert "10-broken.conflist is no CNI configuration" in done.stderr
        (directory / "10-broken.conflist").write_text(json.dumps(
            {"cniVersion": "1.0.0", "name": "mine", "plugins": [{"type": "bridge", "bridge": f"b{wherry.id[-11:]}"},
                                                                {"type": "absent"}]}))  # fmt: skip
        done = wherry("run", "--rm", "--network", "mine", busybox, "true", check=False)
        assert 'CNI plugin "absent" is not installed' in done.stderr
        assert not os.path.exists(f"/sys/class/net/b{wherry.id[-11:]}")
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


@pytest.mark.parametrize(("body", "why"), [
    ("echo hello\n", "printed no CNI result"), ("exit 3\n", "failed with exit code 3"), ("kill -9 $$\n", "signal 9"),
    ('echo \'{"code":1,"msg":"incompatible CNI versions"}\'; exit 1\n', "does not know version 1.0.0 of network mine"),
])
def test_a_plugin_that_fails_leaves_nothing_of_the_others(
    wherry: Wherry, busybox: str, tmp_path: Path, body: str, why: str
) -> None:
    """The first of the list has made a bridge, a pair and a lease by then; the audit sees whether they are gone."""
    directory, plugin = tmp_path / "net.d", tmp_path / "bin" / "odd"
    directory.mkdir()
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\n{body}")
    plugin.chmod(0o755)
    wherry.config.write_text(wherry.config.read_text() + f'cni_conf = "{directory}"\ncni_path = "{plugin.parent}"\n')
    back = network(wherry, "back")
    own = json.loads((wherry.root / "networks" / f"{back}.conflist").read_text())
    mine = {"cniVersion": "1.0.0", "name": "mine", "plugins": [own["plugins"][0], {"type": "odd"}]}
    (directory / "mine.conflist").write_text(json.dumps(mine))
    done = wherry("run", "--name", "cc", "--network", "mine", "-p", "18080:80", busybox, "true", check=False)
    assert done.returncode == 125
    assert why in done.stderr
    assert not list(Path(f"{wherry.state}/cni/leases").glob("mine/10.*"))
    assert not list(Path(f"{wherry.state}/cni/results").glob("*.json"))
    assert members(wherry, "mine") == {}
