"""DNS on networks: three kinds of clients resolve peers, other names go on, and the keeper behind it does its work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

import audit
from helpers.keepers import dnsmasq, keepers, only_keeper
from helpers.tools import need, needs, run
from helpers.wherry import COMMAND, until

pytestmark = pytest.mark.root

LOOKUP = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *found, *one;
    char text[64];
    (void)argc;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int code = getaddrinfo(argv[1], 0, &hints, &found);
    if (code) { printf("error %s\n", gai_strerror(code)); return 1; }
    for (one = found; one; one = one->ai_next)
        if (one->ai_family == AF_INET)
            puts(inet_ntop(AF_INET, &((struct sockaddr_in *)one->ai_addr)->sin_addr, text, sizeof text));
    return 0;
}
"""


@pytest.fixture(scope="session")
def musl_lookup(tmp_path_factory):
    """A static program of musl's resolver."""
    need("musl-gcc")
    folder = tmp_path_factory.mktemp("musl")
    (folder / "lookup.c").write_text(LOOKUP)
    run("musl-gcc", "-static", "-o", folder / "lookup", folder / "lookup.c")
    return folder / "lookup"


def address(wherry, name, network="bridge"):
    return wherry.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]


def nslookup(wherry, who, name, check=True):
    """The addresses that busybox's nslookup, which asks only DNS, has for a name."""
    done = wherry("exec", who, "nslookup", name, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("Address")]
    return [line.split()[-1] for line in lines[1:]]


def sleeper(wherry, busybox, name, *words):
    return wherry.out("run", "-d", "--name", name, *words, busybox, "sleep", "1000")


def inside(wherry, cid, *words, check=True):
    """A program of the host's in the container's network namespace."""
    return run("nsenter", f"--net={wherry.state}/netns/{cid}", *words, check=check)


def asked(wherry, cid, *words, check=True):
    """What dig has, in the container's network namespace."""
    server = next(line.split()[1] for line in wherry.out("exec", cid, "cat", "/etc/resolv.conf").splitlines()
                  if line.startswith("nameserver"))  # fmt: skip
    return inside(wherry, cid, "dig", f"@{server}", "+time=3", "+tries=1", *words, check=check).stdout


# ---- names


@pytest.mark.parametrize("named", [False, True], ids=["default", "named"])
def test_nslookup_finds_names_aliases_and_ids_as_they_come_and_go(wherry, busybox, named):
    network = wherry.name("net") if named else "bridge"
    if named:
        wherry("network", "create", network)
    sleeper(wherry, busybox, "web", "--network", network)
    db = sleeper(wherry, busybox, "db", "--network", network, "--network-alias", "data", "--hostname", "dbhost")
    where = address(wherry, "db", network)
    for name in ("db", "DB", "data", "dbhost", db[:12], f"db.{network}"):
        assert nslookup(wherry, "web", name) == [where], name
    assert nslookup(wherry, "db", "web") == [address(wherry, "web", network)]
    assert nslookup(wherry, "db", "db") == [where], "its own"
    assert wherry("exec", "web", "nslookup", where).stdout.count("name = db") == 1
    wherry("rename", "db", "base")
    assert nslookup(wherry, "web", "base") == [where]
    wherry("restart", "-t", "0", "base")
    assert nslookup(wherry, "web", "base") == [address(wherry, "base", network)]
    wherry("rm", "-f", "base")
    assert nslookup(wherry, "web", "base", check=False) == []
    first = wherry("run", "--rm", "--network", network, busybox, "nslookup", "web").stdout
    assert address(wherry, "web", network) in first, "the first question of a process's first moment"


def test_who_is_on_several_networks_sees_all_of_them_and_others_only_theirs(wherry, busybox):
    one, two = wherry.name("one"), wherry.name("two")
    for network in (one, two):
        wherry("network", "create", network)
    sleeper(wherry, busybox, "both", "--network", one, "--network", two)
    sleeper(wherry, busybox, "left", "--network", one, "--network-alias", "l")
    sleeper(wherry, busybox, "right", "--network", two, "--network-alias", "r")
    assert nslookup(wherry, "both", "l") == [address(wherry, "left", one)]
    assert nslookup(wherry, "both", "r") == [address(wherry, "right", two)]
    assert nslookup(wherry, "left", "right", check=False) == []
    assert nslookup(wherry, "left", "both") == [address(wherry, "both", one)]
    assert nslookup(wherry, "right", "both") == [address(wherry, "both", two)]


def test_musl_and_glibc_resolve_without_the_hosts_file(wherry, busybox, musl_lookup, tmp_path):
    sleeper(wherry, busybox, "web", "--network-alias", "www")
    where = address(wherry, "web")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
    musl = ("-v", f"{tmp_path}/hosts:/etc/hosts", "-v", f"{musl_lookup}:/lookup:ro")
    for name in ("web", "www"):
        assert wherry.out("run", "--rm", *musl, busybox, "/lookup", name) == where
    missing = wherry("run", "--rm", *musl, busybox, "/lookup", "nobody", check=False)
    assert missing.returncode == 1
    libraries = glibc_libraries("/usr/bin/getent")
    glibc = [word for path in libraries for word in ("-v", f"{path}:{path}:ro")]
    glibc += ["-v", f"{tmp_path}/hosts:/etc/hosts", "-v", f"{tmp_path}/nsswitch.conf:/etc/nsswitch.conf:ro"]
    for name in ("web", "www"):
        found = wherry.out("run", "--rm", *glibc, busybox, "/usr/bin/getent", "ahosts", name)
        assert {line.split()[0] for line in found.splitlines()} == {where}
    assert wherry("run", "--rm", *glibc, busybox, "/usr/bin/getent", "ahosts", "nobody", check=False).returncode == 2


def glibc_libraries(program):
    """The program and what it is linked with, as real paths below their names."""
    words = run("ldd", program).stdout.split()
    return [program, *(word for word in words if word.startswith("/"))]


def test_ipv6_and_dual_stack(wherry, busybox):
    need("dig")
    network = wherry.name("dual")
    wherry("network", "create", "--ipv6", network)
    cid = sleeper(wherry, busybox, "web", "--network", network)
    settings = wherry.inspect("web")["NetworkSettings"]["Networks"][network]
    assert asked(wherry, cid, "+short", "web", "AAAA").split() == [settings["GlobalIPv6Address"]]
    assert asked(wherry, cid, "+short", "web", "A").split() == [settings["IPAddress"]]
    gateway = settings["IPv6Gateway"] or wherry_gateway6(wherry, network)
    assert inside(wherry, cid, "dig", f"@{gateway}", "+short", "web").stdout.split() == [settings["IPAddress"]]


def wherry_gateway6(wherry, network):
    return next(part["Gateway"] for part in wherry.inspect(network)["IPAM"]["Config"] if ":" in part["Gateway"])


def test_an_ipv6_only_network_has_its_responder(wherry, busybox):
    need("dig")
    network = wherry.name("six")
    wherry("network", "create", "--ipv6", "--ipv4=false", network)
    cid = sleeper(wherry, busybox, "web", "--network", network)
    where = wherry.inspect("web")["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"]
    assert f"nameserver {wherry_gateway6(wherry, network)}" in wherry.out("exec", cid, "cat", "/etc/resolv.conf")
    assert asked(wherry, cid, "+short", "web", "AAAA").split() == [where]
    assert asked(wherry, cid, "+short", "web", "A").split() == []
    assert "status: NOERROR" in asked(wherry, cid, "web", "A")
    assert where in wherry("exec", cid, "nslookup", "web").stdout


def test_a_network_that_is_joined_live_is_seen_and_one_that_is_left_is_not(wherry, busybox):
    network = wherry.name("live")
    wherry("network", "create", network)
    sleeper(wherry, busybox, "web", "--network", network)
    sleeper(wherry, busybox, "late")
    assert nslookup(wherry, "late", "web", check=False) == []
    wherry("network", "connect", "--alias", "tardy", network, "late")
    assert nslookup(wherry, "late", "web") == [address(wherry, "web", network)]
    assert nslookup(wherry, "web", "tardy") == [address(wherry, "late", network)]
    wherry("network", "disconnect", network, "late")
    assert nslookup(wherry, "late", "web", check=False) == []
    assert nslookup(wherry, "web", "late", check=False) == []
    wherry("network", "disconnect", "bridge", "late")
    wherry("network", "connect", network, "late")
    assert nslookup(wherry, "late", "web") == [address(wherry, "web", network)], "asked at another gateway now"


def test_modes_without_a_network_of_their_own_are_as_before(wherry, busybox):
    host = wherry.out("run", "--rm", "--network", "host", busybox, "cat", "/etc/resolv.conf")
    servers = [line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")]
    assert [line for line in host.splitlines() if line.startswith("nameserver")] == servers
    assert wherry.out("run", "--rm", "--network", "none", busybox, "cat", "/etc/resolv.conf")
    assert keepers(state=wherry.state) == [], "no network, no keeper"
    sleeper(wherry, busybox, "web")
    shared = wherry.out("run", "--rm", "--network", "container:web", busybox, "nslookup", "web")
    assert address(wherry, "web") in shared


# ---- other names


@needs("dnsmasq", "dig")
def test_other_names_go_to_the_servers_of_the_container(wherry, busybox, tmp_path):
    big = [f"--txt-record=big.test,{'x' * 250}{n}" for n in range(20)]
    with (
        dnsmasq(tmp_path, "--listen-address=127.0.0.53", "--bind-interfaces", "--address=/far.test/192.0.2.77", *big),
        dnsmasq(tmp_path, "--listen-address=127.0.0.54", "--bind-interfaces", "--address=/far.test/192.0.2.78"),
    ):
        run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
        try:
            with dnsmasq(tmp_path, "--listen-address=198.51.100.1", "--bind-interfaces",
                         "--address=/far.test/192.0.2.79", *big):  # fmt: skip
                cid = sleeper(wherry, busybox, "web", "--dns", "198.51.100.9", "--dns", "198.51.100.1",
                              "--dns-search", "test", "--dns-option", "ndots:2")  # fmt: skip
                text = wherry.out("exec", "web", "cat", "/etc/resolv.conf")
                gateway = wherry.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
                assert text.splitlines() == ["search test", f"nameserver {gateway}", "options ndots:2"]
                assert asked(wherry, cid, "+short", "web").split() == [address(wherry, "web")]
                run("ip", "route", "add", "unreachable", "198.51.100.9/32")
                assert asked(wherry, cid, "+short", "far.test").split() == ["192.0.2.79"], "the next server"
                reply = asked(wherry, cid, "+short", "big.test", "TXT")
                assert len(reply) > 4096, "by TCP, on both sides"
                assert "NXDOMAIN" not in asked(wherry, cid, "far.test", "MX")
                loop = wherry.out("run", "--rm", "--dns", "127.0.0.1", busybox, "cat", "/etc/resolv.conf")
                assert "nameserver 127.0.0.1" in loop.splitlines(), "it means the container's own loopback"
        finally:
            run("ip", "route", "del", "unreachable", "198.51.100.9/32", check=False)
            run("ip", "addr", "del", "198.51.100.1/32", "dev", "lo")


@needs("dnsmasq")
def test_the_host_s_servers_are_those_of_the_moment_its_stub_too(wherry, busybox, tmp_path):
    """Everything in a mount namespace where resolv.conf is the test's."""
    resolv, started = tmp_path / "resolv.conf", " ".join(COMMAND)
    resolv.write_text("search host.test\nnameserver 127.0.0.53\n")
    script = f"""set -e
mount --bind {resolv} /etc/resolv.conf
{started} run -d --name web {busybox} sleep 1000 >/dev/null
{started} exec web cat /etc/resolv.conf
{started} exec web nslookup far.test | tail -n +3
echo 'nameserver 127.0.0.54' >{resolv}
{started} exec web nslookup far.test | tail -n +3
echo 'nameserver 127.0.0.99' >{resolv}
{started} exec web nslookup far.test || true
{started} rm -f web
"""
    with (
        dnsmasq(tmp_path, "--listen-address=127.0.0.53", "--bind-interfaces", "--address=/far.test/192.0.2.77"),
        dnsmasq(tmp_path, "--listen-address=127.0.0.54", "--bind-interfaces", "--address=/far.test/192.0.2.78"),
    ):
        said = run("unshare", "--mount", "sh", "-c", script, env=wherry.env).stdout
    assert "search host.test" in said
    assert said.index("192.0.2.77") < said.index("192.0.2.78") < said.index("SERVFAIL")


@needs("dnsmasq")
def test_nothing_leaves_an_internal_network(wherry, busybox, tmp_path):
    wherry("network", "create", "--internal", wherry.name("in"))
    run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
    try:
        with dnsmasq(tmp_path, "--listen-address=198.51.100.1", "--bind-interfaces", "--log-queries",
                     "--address=/far.test/192.0.2.79"):  # fmt: skip
            sleeper(wherry, busybox, "web", "--network", wherry.name("in"), "--dns", "198.51.100.1")
            assert nslookup(wherry, "web", "web") == [address(wherry, "web", wherry.name("in"))]
            assert "SERVFAIL" in wherry("exec", "web", "nslookup", "far.test", check=False).stdout
        assert not any("far.test" in log.read_text() for log in tmp_path.glob("dnsmasq-*.log"))
    finally:
        run("ip", "addr", "del", "198.51.100.1/32", "dev", "lo")


# ---- what hostile clients do


@needs("dig")
def test_floods_rubbish_and_idle_connections_harm_nobody(wherry, busybox):
    web = sleeper(wherry, busybox, "web")
    other = sleeper(wherry, busybox, "other")
    keeper = only_keeper(wherry.state)
    assert asked(wherry, other, "+short", "web").split() == [address(wherry, "web")]
    gateway = wherry.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
    before, open_before = resident(keeper), len(audit.open_descriptors(keeper))
    program = f"""
import os, random, socket, sys, time
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
random.seed(1)
for n in range(4000):
    size = random.choice((0, 3, 12, 60, 1400, 9000))
    udp.sendto(random.randbytes(size), ("{gateway}", 53))
for n in range(2000):  # good questions, for names that nobody answers
    udp.sendto(n.to_bytes(2, "big") + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4slow\\4test\\0\\0\\1\\0\\1", ("{gateway}", 53))
tcp = []
for n in range(200):
    one = socket.socket()
    one.connect(("{gateway}", 53))
    one.send(b"\\xff\\xff" + bytes(100) if n % 2 else b"\\0")
    tcp.append(one)
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen(
        ["nsenter", f"--net={wherry.state}/netns/{web}", "python3", "-c", program], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        assert asked(wherry, other, "+short", "web").split() == [address(wherry, "web")]
        assert asked(wherry, other, "+short", "+tcp", "web").split() == [address(wherry, "web")]
        assert len(audit.open_descriptors(keeper)) < 100, "connections and questions in flight of one asker are few"
        until(lambda: len(audit.open_descriptors(keeper)) <= open_before, 20, "idle connections end")
        assert resident(keeper) < before + 16_000, "KiB"
    finally:
        holder.communicate()
    assert keepers(state=wherry.state) == [keeper]


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))


@needs("dig")
def test_a_stranger_is_refused(wherry, busybox):
    sleeper(wherry, busybox, "web")
    gateway = wherry.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
    said = run("dig", f"@{gateway}", "+time=3", "+tries=1", "web").stdout
    assert "REFUSED" in said


# ---- the keeper


def test_a_keeper_is_nobody_s_and_goes_some_seconds_after_the_last_member(wherry, busybox):
    read, write = os.pipe()
    wherry.popen("run", "-d", "--name", "web", busybox, "sleep", "1000", stdout=write, stderr=write).wait()
    os.close(write)
    with open(read, "rb") as said:
        assert len(said.read().split()[-1]) == 64, "the end comes: it holds no pipe of the caller's"
    pid = only_keeper(wherry.state)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "wherry-keeper\n")
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert [g for g in groups if g.startswith("0::")] == ["0::/wherry-monitors"]
    wherry("run", "--rm", busybox, "true")
    wherry("rm", "-f", "web")
    assert keepers(state=wherry.state) == [pid], "it lingers"
    wherry("run", "--rm", busybox, "true")
    assert keepers(state=wherry.state) == [pid]
    until(lambda: not keepers(state=wherry.state), 12)
    assert list((wherry.state / "names").iterdir()) == []


def test_a_killed_keeper_is_started_by_the_next_command(wherry, busybox):
    sleeper(wherry, busybox, "web")
    first = only_keeper(wherry.state)
    os.kill(first, signal.SIGKILL)
    until(lambda: not keepers(state=wherry.state))
    wherry("create", busybox, "true")
    assert only_keeper(wherry.state) != first
    assert nslookup(wherry, "web", "web") == [address(wherry, "web")]


def test_many_starts_at_once_have_one_keeper_also_while_it_leaves(wherry, busybox):
    wherry("create", busybox, "true")
    for pause in (0.0, 4.95, 5.05):  # about when the one before leaves
        time.sleep(pause)
        command = ["run", "--rm", "--name"]
        started = [wherry.popen(*command, f"c{n}", busybox, "nslookup", f"c{n}", stdout=subprocess.PIPE)
                   for n in range(4)]  # fmt: skip
        for n, one in enumerate(started):
            said = one.communicate(timeout=60)[0].decode()
            assert one.returncode == 0, said
            assert f"Name:\tc{n}" in said
        assert len(keepers(state=wherry.state)) == 1


@pytest.mark.seconds(300)
def test_thirty_come_and_go_at_once(wherry, busybox):
    names = [f"n{n}" for n in range(30)]
    started = [wherry.popen("run", "-d", "--name", name, busybox, "sleep", "1000", stdout=subprocess.DEVNULL)
               for name in names]  # fmt: skip
    assert [one.wait(200) for one in started] == [0] * 30
    assert len(keepers(state=wherry.state)) == 1
    for name in random.sample(names, 5):
        assert nslookup(wherry, "n0", name) == [address(wherry, name)]
    gone = [wherry.popen("rm", "-f", name, stdout=subprocess.DEVNULL) for name in names[1:]]
    assert [one.wait(200) for one in gone] == [0] * 29
    assert nslookup(wherry, "n0", "n1", check=False) == []
    assert nslookup(wherry, "n0", "n0") == [address(wherry, "n0")]


def test_a_network_that_is_removed_takes_its_keeper_at_once(wherry, busybox):
    network = wherry.name("net")
    wherry("network", "create", network)
    wherry("run", "--rm", "--network", network, busybox, "true")
    assert len(keepers(network, wherry.state)) == 1
    wherry("network", "rm", network)
    assert keepers(network, wherry.state) == []
    wherry("run", "--rm", busybox, "true")
    assert len(keepers(state=wherry.state)) == 1
    wherry("system", "reset", "-f")
    assert keepers(state=wherry.state) == []


@needs("dnsmasq")
def test_where_another_program_has_port_53_questions_are_led_elsewhere(wherry, busybox, tmp_path):
    network = wherry.name("net")
    wherry("network", "create", network)
    with dnsmasq(tmp_path, "--address=/far.test/192.0.2.77"):  # all addresses of the host
        sleeper(wherry, busybox, "web", "--network", network)
        assert nslookup(wherry, "web", "web") == [address(wherry, "web", network)]
        run("nft", "flush", "ruleset")
        until(lambda: nslookup(wherry, "web", "web", check=False) == [address(wherry, "web", network)], 5)
        assert "names_" in run("nft", "list", "ruleset").stdout
        os.kill(only_keeper(wherry.state, network), signal.SIGKILL)
    wherry("create", busybox, "true")
    until(lambda: nslookup(wherry, "web", "web", check=False) == [address(wherry, "web", network)], 5)
    assert "names_" not in run("nft", "list", "ruleset").stdout, "port 53 is free again"


def test_a_container_may_publish_port_53_beside_keepers_that_have_it(wherry, busybox):
    """On its own network and others; names are resolved as before, also by itself and after a repair."""
    sleeper(wherry, busybox, "web")
    apart = f"n-{wherry.id}"
    wherry("network", "create", apart)
    sleeper(wherry, busybox, "other", "--network", apart)
    sleeper(wherry, busybox, "server", "-p", "53:53/udp", "-p", "53:53/tcp")
    assert wherry.out("port", "server").split() == ["53/tcp", "->", "0.0.0.0:53", "53/udp", "->", "0.0.0.0:53"]
    for who, name, net in (("web", "server", "bridge"), ("server", "web", "bridge"), ("other", "other", apart)):
        assert nslookup(wherry, who, name) == [address(wherry, name, net)]
    run("nft", "flush", "ruleset")
    until(lambda: nslookup(wherry, "web", "server", check=False) == [address(wherry, "server")])
    assert wherry("run", "--name", "second", "-p", "53:53/udp", busybox, "true", check=False).returncode == 125
    assert nslookup(wherry, "other", "other") == [address(wherry, "other", apart)]


# ---- what a flush takes


def test_a_published_port_survives_flushes(wherry, busybox, outside, tmp_path):
    """From the host's loopback, from its address, and from another host; time after time."""
    wherry("run", "-d", "--name", "web", "-p", "18080:80", busybox, "httpd", "-f", "-p", "80", "-h", "/etc")
    only_keeper(wherry.state)
    for count in (1, 1, 5):
        for _ in range(count):
            run("nft", "flush", "ruleset")
            time.sleep(0.05 * (count - 1))
        until(lambda: fetched("127.0.0.1:18080"), 5, "not back within 5 s")
        assert fetched(f"{outside.own}:18080")
    fetch = f"import urllib.request as u; u.urlopen('http://{outside.own}:18080/hostname', timeout=5)"
    outside.run("python3", "-c", fetch)
    table = next(line.split()[2] for line in run("nft", "list", "tables").stdout.splitlines() if "wherry" in line)
    for loss in (["delete", "table", "inet", table], ["flush", "table", "inet", table]):
        run("nft", *loss)
        until(lambda: fetched("127.0.0.1:18080"), 5, f"not back within 5 s of {loss}")


def fetched(where):
    try:
        with urllib.request.urlopen(f"http://{where}/hostname", timeout=1) as page:
            return bool(page.read())
    except OSError:
        return False


def test_the_guard_does_not_answer_itself(wherry, busybox):
    """After a repair nothing more happens to the ruleset, nor do a container's end and its own rules start one."""
    sleeper(wherry, busybox, "web", "-p", "18081:80")
    only_keeper(wherry.state)
    run("nft", "flush", "ruleset")
    until(lambda: "masq4" in run("nft", "list", "ruleset").stdout, 5)
    time.sleep(1.5)
    watcher = subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.5)
        wherry("run", "--rm", busybox, "true")
        time.sleep(1.5)  # a repair is made at once, or after the pause of a second that the one before makes
    finally:
        watcher.terminate()
        said = watcher.communicate()[0]
    generations = said.count("# new generation")
    assert 2 <= generations <= 4, said


def test_a_guard_that_waits_costs_nothing(wherry, busybox):
    """What happens to the ruleset while it makes a pause is heard at once, not by being woken for it without end."""
    sleeper(wherry, busybox, "web")
    pid = only_keeper(wherry.state)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "wherry-keeper\n")
    for _ in range(4):  # each repair is followed by a second's pause
        run("nft", "flush", "ruleset")
        time.sleep(0.1)
    until(lambda: "masq4" in run("nft", "list", "ruleset").stdout, 5)
    run("nft", "add", "table", "inet", "theirs")  # is told while it pauses
    before = ticks(pid)
    time.sleep(0.5)
    run("nft", "delete", "table", "inet", "theirs")
    assert ticks(pid) - before <= 0.1 * os.sysconf("SC_CLK_TCK")


def ticks(pid):
    """Of the processor's time."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_other_tables_are_left_alone(wherry, busybox):
    sleeper(wherry, busybox, "web")
    only_keeper(wherry.state)
    run("nft", "add", "table", "inet", "theirs")
    before = run("nft", "list", "table", "inet", "theirs").stdout
    run("nft", "add", "chain", "inet", "theirs", "c")
    run("nft", "delete", "chain", "inet", "theirs", "c")
    time.sleep(1)
    assert run("nft", "list", "table", "inet", "theirs").stdout == before
    run("nft", "delete", "table", "inet", "theirs")


@needs("dig")
def test_a_conversation_by_tcp_is_several_questions(wherry, busybox):
    cid = sleeper(wherry, busybox, "web")
    gateway = wherry.inspect("web")["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
    said = inside(wherry, cid, "dig", f"@{gateway}", "+tcp", "+keepopen", "+short", "web", "A", "web", "A").stdout
    assert said.split() == [address(wherry, "web")] * 2
