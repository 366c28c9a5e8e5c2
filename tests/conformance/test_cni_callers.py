"""Our CNI plugins under other runtimes: called barely as the specification says, by cnitool, podman, containerd's CRI.

One table of chains, all of which every caller lives through twice: after the second life the host is as before it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers import gotools, tools
from helpers.engines import IMAGE, Podman, kubernetes
from helpers.nethost import HOST, OUTSIDE, NetHost
from helpers.ociruntime import Space
from helpers.wherry import until
from wherry.engine import cni
from wherry.net.launchers import PLUGINS

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), tools.needs("ip", "nft", "curl", "nsenter")]
Json = dict[str, Any]
Words = Callable[..., str]
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
PORT, TABLE = 8094, "t_callers"
PAGE = f"http://{{}}:{PORT}/index.html"


# ---- what is called, and how it is seen that it works ----


class Net:
    """What a look needs: the host, and a way to run the host's programs in the container's network."""

    def __init__(self, host: NetHost, inside: Words) -> None:
        self.host, self.inside = host, inside


def reaches_the_world(net: Net) -> None:
    net.inside("busybox", "ping", "-c1", "-W2", OUTSIDE)


def is_published(net: Net) -> None:
    """From the world, from the host's loopback, and from the container through its own published port."""
    reaches_the_world(net)
    until(lambda: net.host.fetch("o", PAGE.format(HOST)) == "there", 5)
    assert net.host.fetch("h", PAGE.format("127.0.0.1")) == "there"
    assert net.inside("curl", "-s", "-m", "2", PAGE.format(HOST)) == "there"


def speaks_by_its_own_table(net: Net) -> None:
    """sbr: what comes from the address goes by a table of its own, and nothing else has a way out."""
    net.inside("busybox", "ping", "-I", "192.0.2.77", "-c1", "-W2", OUTSIDE)
    assert "from 192.0.2.77 lookup" in net.inside("ip", "rule")


def is_shaped(net: Net) -> None:
    reaches_the_world(net)
    shaped = tools.run("tc", "qdisc", "show").stdout
    assert "rate 8Mbit" in shaped, shaped
    assert "rate 4Mbit" in shaped, shaped


def is_tuned(net: Net) -> None:
    reaches_the_world(net)
    assert net.inside("sysctl", "-n", "net.ipv4.conf.eth0.log_martians") == "1\n"
    assert "mtu 1400" in net.inside("ip", "link", "show", "eth0")


def has_the_device(net: Net) -> None:
    assert "10.39.0.2/24" in net.inside("ip", "-br", "addr", "show", "eth0")
    assert "spare0" not in net.host.links()


def is_loopback(net: Net) -> None:
    assert "LOOPBACK,UP" in net.inside("ip", "link", "show", "lo")


@dataclass(frozen=True)
class Chain:
    """The plugins of one list, how it is seen that they work, and whether an engine can: it wants an address."""

    plugins: Sequence[Json]
    look: Callable[[Net], None]
    ifname: str = "eth0"
    engines: bool = True
    kind: str = ""  # of link, which some kernels do not have

    def need(self) -> None:
        """Skip where the kernel cannot."""
        if not self.kind:
            return
        words = ("ip", "link", "add", "link", "up0", "name", "probe0", "type", self.kind)
        if tools.run(*words, check=False).returncode:
            pytest.skip(f"this kernel has no {self.kind}")
        tools.run("ip", "link", "del", "probe0")


IPAM: Json = {"type": "host-local", "dataDir": "{place}/leases", "ranges": [[{"subnet": "10.38.0.0/24"}]],
              "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
BRIDGE: Json = {"type": "bridge", "bridge": "call0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
                "nftTable": TABLE, "ipam": IPAM}  # fmt: skip
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}, "nftTable": TABLE}
PTP: Json = {"type": "ptp", "ipMasq": True, "nftTable": TABLE, "ipam": IPAM}
STATIC: Json = {"type": "static", "addresses": [{"address": "192.0.2.77/24", "gateway": OUTSIDE}],
                "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
MACVLAN: Json = {"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": STATIC}
RATES: Json = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 800_000}
TUNING: Json = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}, "mtu": 1400,
                "dataDir": "{place}/tuning"}  # fmt: skip
DEVICE: Json = {"type": "host-device", "device": "spare0",
                "ipam": {"type": "static", "addresses": [{"address": "10.39.0.2/24"}]}}  # fmt: skip
OVERLAY: Json = {"type": "overlay", "peersFile": "{place}/peers.json", "bridge": "call1", "ipMasq": True,
                 "nftTable": TABLE, "ipam": {"type": "host-local", "dataDir": "{place}/leases"}}  # fmt: skip
CHAINS = {
    "loopback": Chain([{"type": "loopback"}], is_loopback, ifname="lo", engines=False),
    "bridge": Chain([BRIDGE], reaches_the_world),
    "bridge, portmap": Chain([BRIDGE, PORTMAP], is_published),
    "bridge, portmap, firewall": Chain(
        [BRIDGE, PORTMAP, {"type": "firewall", "ingressPolicy": "same-bridge", "nftTable": TABLE}], is_published),
    "bridge, bandwidth": Chain([BRIDGE, {"type": "bandwidth", **RATES}], is_shaped),
    "bridge, tuning": Chain([BRIDGE, TUNING], is_tuned),
    "ptp": Chain([PTP], reaches_the_world),
    "ptp, portmap": Chain([PTP, PORTMAP], is_published),
    "macvlan": Chain([MACVLAN], reaches_the_world),
    "macvlan, sbr": Chain([MACVLAN, {"type": "sbr"}], speaks_by_its_own_table),
    "ipvlan": Chain([{**MACVLAN, "type": "ipvlan", "mode": "l2"}], reaches_the_world, kind="ipvlan"),
    "host-device": Chain([DEVICE], has_the_device),
    "overlay by VXLAN": Chain([{**OVERLAY, "mode": "vxlan"}], reaches_the_world),
    "overlay by routes": Chain([{**OVERLAY, "mode": "host-gw"}], reaches_the_world),
}  # fmt: skip
CAPABILITIES: Json = {"portMappings": [{"hostPort": PORT, "containerPort": 80, "protocol": "tcp"}]}
ALL = "bridge, portmap"


def every_chain(*versions: str, engines: bool = False) -> pytest.MarkDecorator:
    """One chain in all these versions, the others in the last of them."""
    names = [name for name, chain in CHAINS.items() if chain.engines or not engines]
    pairs = [(name, version) for name in names for version in (versions if name == ALL else versions[-1:])]
    return pytest.mark.parametrize(
        ("chain", "version"), [pytest.param(CHAINS[name], version, id=f"{name}-{version}") for name, version in pairs]
    )


class Lent:
    """A place with our plugins as `wherry cni install` puts them, lists beside them, leases, a page to serve."""

    def __init__(self, host: NetHost, place: Path) -> None:
        self.host, self.place, self.lists, self.bin = host, place, place / "net.d", place / "bin"
        for directory in (self.lists, self.bin, place / "www"):
            directory.mkdir(parents=True)
        (place / "www/index.html").write_text("there")
        (place / "peers.json").write_text(json.dumps({"peers": [
            {"address": HOST, "subnets": ["10.38.0.0/24"]}, {"address": OUTSIDE, "subnets": ["10.38.1.0/24"]}]}))
        tools.run("ip", "link", "add", "spare0", "type", "veth", "peer", "name", "spare1")
        cni.install(str(self.bin))

    def write(self, chain: Chain, version: str) -> Json:
        """The list of a chain, written for those who read it; skips where the kernel lacks what it needs."""
        chain.need()
        text = json.dumps({"cniVersion": version, "name": "lent", "plugins": chain.plugins})
        text = text.replace("{place}", str(self.place))
        (self.lists / "10-lent.conflist").write_text(text)
        return dict(json.loads(text))

    def leases(self) -> list[str]:
        """The addresses that are leased."""
        return [path.name for path in self.place.glob("leases/*/*") if path.name[0].isdigit()]

    def live_twice(self, live: Callable[[], None]) -> None:
        """For the first life makes what stays: a bridge, a table."""
        live()
        before = audit.take(audit.Mark())
        live()
        assert audit.settle(before, audit.Mark()) == []
        assert self.leases() == []

    def container(self) -> str:
        """A namespace that serves the page on port 80."""
        space = self.host.space("c")
        self.host.serve(space, self.place / "www")
        return space

    def net(self, space: str) -> Net:
        return Net(self.host, lambda *words: self.host.run(space, *words).stdout)


@pytest.fixture
def host(test_id: str, place: Path) -> Iterator[NetHost]:
    made = NetHost(test_id)
    yield made
    made.close()


@pytest.fixture
def lent(host: NetHost, tmp_path: Path) -> Lent:
    return Lent(host, tmp_path)


# ---- bare calls: environment, standard input, standard output ----


class Bare:
    """A runtime that does what sections 2 and 3 of the specification say, and nothing else."""

    def __init__(self, lent: Lent, conflist: Json, ifname: str) -> None:
        self.lent, self.conflist, self.ifname = lent, conflist, ifname

    def call(self, verb: str, plugin: Json, space: str, **more: Any) -> tuple[int, Json]:
        """One plugin, with what is derived from its part of the list."""
        body = {key: value for key, value in plugin.items() if key != "capabilities"}
        wanted = {key: CAPABILITIES[key] for key, on in plugin.get("capabilities", {}).items() if on}
        head = {"cniVersion": self.conflist["cniVersion"], "name": self.conflist["name"]}
        config = {**body, **head, **({"runtimeConfig": wanted} if wanted else {}), **more}
        env = {"CNI_COMMAND": verb, "CNI_PATH": str(self.lent.bin), "PATH": os.environ["PATH"], "WHERRY_WARM": "off"}
        if verb in ("ADD", "DEL", "CHECK"):
            env.update(CNI_CONTAINERID="bare", CNI_NETNS=space, CNI_IFNAME=self.ifname)
        done = subprocess.run([self.lent.bin / plugin["type"]], input=json.dumps(config).encode(), env=env,
                              capture_output=True, check=False, timeout=60)  # fmt: skip
        return done.returncode, json.loads(done.stdout) if done.stdout else {}

    def add(self, space: str) -> Json:
        """ADD of all, each with the result of the one before it; the last one's."""
        result: Json = {}
        for plugin in self.conflist["plugins"]:
            code, result = self.call("ADD", plugin, space, **({"prevResult": result} if result else {}))
            assert code == 0, result
            assert result["cniVersion"] == self.conflist["cniVersion"]
        return result

    def all(self, verb: str, space: str, **more: Any) -> None:
        """A verb without a result; DEL goes backward."""
        plugins = self.conflist["plugins"]
        for plugin in plugins[::-1] if verb == "DEL" else plugins:
            assert self.call(verb, plugin, space, **more) == (0, {}), (verb, plugin["type"])


@every_chain(*VERSIONS)
def test_bare_calls(lent: Lent, chain: Chain, version: str) -> None:
    """ADD, CHECK (0.4.0), GC and STATUS (1.1.0); DEL twice, the second one with the namespace gone."""
    bare = Bare(lent, lent.write(chain, version), chain.ifname)

    def live() -> None:
        space = lent.container()
        if version >= "1.1.0":
            bare.all("STATUS", "")
        result = bare.add(space)
        chain.look(lent.net(space))
        if version >= "0.4.0":
            bare.all("CHECK", space, prevResult=result)
        if version >= "1.1.0":
            bare.all("GC", "", **{"cni.dev/valid-attachments": [{"containerID": "bare", "ifname": chain.ifname}]})
            chain.look(lent.net(space))
        bare.all("DEL", space, **({"prevResult": result} if version >= "0.4.0" else {}))
        lent.host.quit(space)
        bare.all("DEL", space)

    lent.live_twice(live)


#: section 2, "Parameters", and section 5, "Error": what is given wrongly, and the code that answers
WRONG = {
    "no container id": ("ADD", {"CNI_CONTAINERID": ""}, {}, 4),
    "an id with a slash": ("ADD", {"CNI_CONTAINERID": "a/b"}, {}, 4),
    "no interface": ("ADD", {"CNI_IFNAME": ""}, {}, 4),
    "an interface of 16 characters": ("ADD", {"CNI_IFNAME": "e" * 16}, {}, 4),
    "no namespace": ("ADD", {"CNI_NETNS": ""}, {}, 4),
    "no verb": ("", {}, {}, 4),
    "an unknown verb": ("JOIN", {}, {}, 4),
    "an unknown version": ("ADD", {}, {"cniVersion": "9.9.9"}, 1),
    "a verb that its version lacks": ("STATUS", {}, {"cniVersion": "1.0.0"}, 1),
    "a name with a slash": ("ADD", {}, {"name": "a/b"}, 7),
}


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
def test_what_is_given_wrongly(lent: Lent, plugin: str) -> None:
    """An error object on standard output, never a traceback; nothing is made."""
    before, space = audit.take(audit.Mark()), lent.host.space("c")
    given = {"CNI_CONTAINERID": "bare", "CNI_NETNS": space, "CNI_IFNAME": "eth0", "CNI_PATH": str(lent.bin),
             "WHERRY_WARM": "off"}  # fmt: skip
    for what, (verb, env, config, code) in WRONG.items():
        body = {"cniVersion": "1.1.0", "name": "lent", "type": plugin, **config}
        done = subprocess.run([lent.bin / plugin], input=json.dumps(body).encode(), capture_output=True, check=False,
                              env={**given, **env, "CNI_COMMAND": verb}, timeout=60)  # fmt: skip
        assert done.returncode != 0, what
        told = json.loads(done.stdout)
        assert (told["code"], bool(told["msg"])) == (code, True), (what, told)
        assert told["cniVersion"] in VERSIONS
        assert b"Traceback" not in done.stderr, what
    assert audit.take(audit.Mark()).left_since(before) == []
    assert lent.leases() == []


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize("valid", [None, [], [{"containerID": "another", "ifname": "eth0"}]])
def test_gc_by_either_key(lent: Lent, key: str, valid: Any) -> None:
    """libcni gives both, for the text once had the other; and null where a Go list is empty. Without
    either nobody is known to be dead, and nothing is taken."""
    bare = Bare(lent, lent.write(CHAINS["bridge, portmap"], "1.1.0"), "eth0")
    bare.add(lent.container())
    bare.all("GC", "")
    code, told = bare.call("GC", CHAINS["bridge, portmap"].plugins[1], "", **{key: "nobody"})
    assert (code, told["code"]) == (1, 7)
    assert len(lent.leases()) == 1
    bare.all("GC", "", **{key: valid})
    assert lent.leases() == []
    assert "bare/eth0" not in lent.host.rules()


# ---- cnitool: libcni as its authors run it ----


@pytest.fixture(scope="session")
def cnitool() -> Path:
    return gotools.tool("cnitool")


@every_chain(*VERSIONS)
@pytest.mark.seconds(600)
def test_cnitool(lent: Lent, cnitool: Path, tmp_path: Path, chain: Chain, version: str) -> None:
    lent.write(chain, version)
    env = {**os.environ, "NETCONFPATH": str(lent.lists), "CNI_PATH": str(lent.bin), "CNI_IFNAME": chain.ifname,
           "CAP_ARGS": json.dumps(CAPABILITIES)}  # fmt: skip
    # what libcni remembers of ADD lies below /var/lib/cni: here one of the test's own
    kept = tmp_path / "kept"
    kept.mkdir()
    apart = ("unshare", "--mount", "sh", "-c", f'mkdir -p /var/lib/cni; mount --bind {kept} /var/lib/cni; exec "$@"')

    def tool(verb: str, space: str) -> Json:
        done = tools.run(*apart, "sh", cnitool, verb, "lent", space, env=env)
        return dict(json.loads(done.stdout)) if done.stdout.startswith("{") else {}

    def live() -> None:
        space = lent.container()
        if version >= "1.1.0":
            tool("status", space)
        assert tool("add", space)["cniVersion"] == version
        chain.look(lent.net(space))
        if version >= "0.4.0":
            tool("check", space)
        tool("del", space)
        tool("del", space)
        if version >= "1.1.0":
            tool("gc", space)  # which gives no list
        lent.host.quit(space)

    lent.live_twice(live)


# ---- engines ----

SERVE = ("sh", "-c", "mkdir /www; printf there >/www/index.html; exec httpd -f -p 80 -h /www")


def looked_at(net: Lent, space: Space, pid: object) -> Net:
    """A container whose process has this number among the engine's."""
    return Net(net.host, lambda *words: space.run("nsenter", "--net", "--target", pid, *words).stdout)


@pytest.fixture
def podman(lent: Lent, runtime: Path, place: Path, busybox: str, test_id: str) -> Iterator[Podman]:
    tools.need("podman", "conmon")
    with Space(private=("/run/netns", "/var/lib/cni")) as space:
        (place / "networks").symlink_to(lent.lists)
        own = Podman(space, place, runtime, test_id, plugins=lent.bin)
        own.load(busybox)
        own.network = "lent"
        yield own
        own("rm", "-a", "-f", "-t", "0")


@every_chain("0.4.0", "1.0.0", engines=True)
def test_podman(podman: Podman, lent: Lent, chain: Chain, version: str) -> None:
    lent.write(chain, version)
    publish = ("-p", f"{PORT}:80") if PORTMAP in chain.plugins else ()

    def live() -> None:
        ref = podman.run("-d", *publish, IMAGE, *SERVE).stdout.strip()
        chain.look(looked_at(lent, podman.space, podman.inspect(ref)["State"]["Pid"]))
        assert podman.inspect(ref)["NetworkSettings"]["Networks"]["lent"]["IPAddress"]
        podman("restart", "-t", "0", ref)
        chain.look(looked_at(lent, podman.space, podman.inspect(ref)["State"]["Pid"]))
        podman("rm", "-f", "-t", "0", ref)

    lent.live_twice(live)


@pytest.fixture
def pods(lent: Lent, runtime: Path, place: Path, busybox: str, test_id: str) -> Callable[..., Any]:
    """`with pods(...) as crictl`: containerd's CRI, its CNI directories ours, and a pod with a network of its own."""
    for directory in (place / "cni", lent.place / "image"):
        directory.mkdir()
    (place / "cni/bin").symlink_to(lent.bin)
    (place / "cni/net.d").symlink_to(lent.lists)
    return partial(kubernetes, runtime, busybox, test_id, lent.place / "image", network=0)


@pytest.mark.seconds(900)
@every_chain("1.0.0", engines=True)
def test_containerd_by_cri(lent: Lent, pods: Callable[..., Any], chain: Chain, version: str) -> None:
    """containerd calls loopback for a pod by itself, and every list with all capabilities."""
    lent.write(chain, version)
    links = lent.host.links()
    publish: Json = {"port_mappings": [{"protocol": 0, "container_port": 80, "host_port": PORT}]}
    with pods(**(publish if PORTMAP in chain.plugins else {})) as crictl:
        for more in (False, True):
            ref = crictl.create("web", *SERVE)
            crictl("start", ref)
            pid = json.loads(crictl.out("inspect", ref))["info"]["pid"]
            assert json.loads(crictl.out("inspectp", crictl.pod))["status"]["network"]["ip"]
            net = looked_at(lent, crictl.space, pid)
            chain.look(net)
            is_loopback(net)
            crictl("rm", "-f", ref)
            if not more:
                crictl.next_pod()
    assert lent.leases() == []
    assert "/eth0@" not in lent.host.rules()
    assert lent.host.links().count("veth") == links.count("veth")
