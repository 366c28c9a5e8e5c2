"""The plugins as programs: called barely, as any CNI runtime would, and mixed with the reference plugins."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.nethost import OUTSIDE, NetHost
from wherry.model import Place
from wherry.net import launchers
from wherry.net.cni import Cni

pytestmark = pytest.mark.root
REFERENCE = "/usr/lib/cni"


class Caller:
    """Bare calls: environment and standard input, nothing else."""

    def __init__(self, host: NetHost, directory: str, data: Path, version: str) -> None:
        self.host, self.directory, self.version = host, directory, version
        self.bridge: dict[str, Any] = {
            "type": "bridge", "bridge": f"b{host.name}"[:15], "isGateway": True, "ipMasq": True, "hairpinMode": True,
            "nftTable": "t_plugins",
            "ipam": {"type": "host-local", "dataDir": str(data), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                     "ranges": [[{"subnet": "10.33.0.0/24"}], [{"subnet": "fd33::/64"}]]},
        }

    def __call__(self, verb: str, config: dict[str, Any], container: str, netns: str,
                 previous: Any = None, **env: str) -> tuple[int, Any]:
        body = {"cniVersion": self.version, "name": "plain", **config, **({"prevResult": previous} if previous else {})}
        done = subprocess.run(
            [os.path.join(self.directory, config["type"])], input=json.dumps(body).encode(), capture_output=True,
            check=False, timeout=60, env={
                "PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns,
                "CNI_IFNAME": "eth0", "CNI_PATH": f"{self.directory}:{REFERENCE}", **env})
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr.decode()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_one_life_in_every_version(host: NetHost, bin_dir: str, tmp_path: Path, version: str) -> None:
    call = Caller(host, bin_dir, tmp_path / "leases", version)
    ports = {"type": "portmap", "nftTable": "t_plugins",
             "runtimeConfig": {"portMappings": [{"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}]}}
    space = host.space("c")
    code, result = call("ADD", call.bridge, "one", space)
    assert code == 0, result
    assert result["cniVersion"] == version
    assert [part["address"] for part in result["ips"]] == ["10.33.0.2/24", "fd33::2/64"]
    code, chained = call("ADD", ports, "one", space, result)
    assert (code, chained) == (0, result)
    assert "8088" in host.rules()
    if version >= "0.4.0":
        assert call("CHECK", call.bridge, "one", space, result)[0] == 0
        assert call("CHECK", ports, "one", space, result)[0] == 0
    again, refused = call("ADD", call.bridge, "one", space)
    assert (again, refused["code"]) == (1, 7)
    assert host.run(space, "ip", "-4", "route", "show", "default").stdout.startswith("default via 10.33.0.1")
    for _ in range(2):
        assert call("DEL", ports, "one", space) == (0, "")
        assert call("DEL", call.bridge, "one", space) == (0, "")
    assert "one/eth0" not in host.rules()
    assert "veth" not in host.links()
    assert "10.33.0.2" not in os.listdir(tmp_path / "leases" / "plain")


def test_a_second_add_that_fails_does_not_cut_the_first(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    """The refused ADD must undo its own work only."""
    call = Caller(host, bin_dir, tmp_path / "leases", "1.0.0")
    space = host.space("c")
    _, result = call("ADD", call.bridge, "one", space)
    assert call("ADD", call.bridge, "one", space)[0] == 1
    assert call("CHECK", call.bridge, "one", space, result)[0] == 0
    host.run(space, "busybox", "ping", "-c1", "-W2", OUTSIDE)
    call("DEL", call.bridge, "one", space)


def test_gc_takes_what_is_not_valid_and_status_tells(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    call = Caller(host, bin_dir, tmp_path / "leases", "1.1.0")
    for name in ("one", "two"):
        assert call("ADD", call.bridge, name, host.space(name))[0] == 0
    valid = {"cni.dev/valid-attachments": [{"containerID": "two", "ifname": "eth0"}]}
    assert call("GC", {**call.bridge, **valid}, "", "")[0] == 0
    assert "one/eth0@plain" not in host.rules()
    assert "two/eth0@plain" in host.rules()
    assert {"10.33.0.3", "fd33::3"} <= set(os.listdir(tmp_path / "leases" / "plain"))
    assert "10.33.0.2" not in os.listdir(tmp_path / "leases" / "plain")
    assert call("STATUS", call.bridge, "", "")[0] == 0
    code, answer = call("STATUS", {**call.bridge, "ipam": {"type": "absent"}}, "", "")
    assert (code, answer["code"]) == (1, 4)
    call("DEL", call.bridge, "two", f"/run/netns/{host.name}two")


def test_failures_leave_nothing(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    call = Caller(host, bin_dir, tmp_path / "leases", "1.0.0")
    space = host.space("c")
    host.run(space, "ip", "link", "add", "eth0", "type", "bridge")
    code, answer = call("ADD", call.bridge, "one", space)
    assert (code, "eth0 already" in answer["msg"]) == (1, True)
    code, answer = call("ADD", call.bridge, "two", "/run/netns/none-such")
    assert (code, answer["code"]) == (1, 3) or "none-such" in answer["msg"]
    host.run("h", "ip", "addr", "add", "10.44.0.1/24", "dev", call.bridge["bridge"])
    host.run("h", "ip", "addr", "del", "10.33.0.1/24", "dev", call.bridge["bridge"])
    code, answer = call("ADD", call.bridge, "three", host.space("d"))
    assert (code, "forceAddress" in answer["details"]) == (1, True)
    assert "veth" not in host.links()
    assert [name for name in os.listdir(tmp_path / "leases" / "plain") if name[0] in "f1"] == []
    code, answer = call("ADD", {**call.bridge, "forceAddress": True}, "three", f"/run/netns/{host.name}d")
    assert code == 0, answer
    call("DEL", call.bridge, "three", f"/run/netns/{host.name}d")


def test_loopback(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    call = Caller(host, bin_dir, tmp_path, "1.0.0")
    space = host.space("c")
    host.run(space, "ip", "link", "set", "lo", "down")
    lo = {"type": "loopback"}
    code, result = call("ADD", lo, "one", space, CNI_IFNAME="lo")
    assert (code, result["interfaces"][0]["name"]) == (0, "lo")
    assert call("CHECK", lo, "one", space, result, CNI_IFNAME="lo")[0] == 0
    host.run(space, "ip", "link", "set", "lo", "down")
    assert call("CHECK", lo, "one", space, result, CNI_IFNAME="lo")[0] == 1
    for _ in range(2):
        assert call("DEL", lo, "one", space, CNI_IFNAME="lo")[0] == 0
    assert call("DEL", lo, "one", "/run/netns/none-such", CNI_IFNAME="lo")[0] == 0


needs_reference = pytest.mark.skipif(not os.path.exists(f"{REFERENCE}/bridge"),
                                     reason="the reference plugins are not installed (containernetworking-plugins)")


@needs_reference
def test_our_bridge_with_the_references_host_local(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    os.unlink(os.path.join(bin_dir, "host-local"))  # CNI_PATH goes on to the reference's directory
    call = Caller(host, bin_dir, tmp_path / "leases", "1.0.0")
    space = host.space("c")
    code, result = call("ADD", call.bridge, "one", space)
    assert (code, result["ips"][0]["address"]) == (0, "10.33.0.2/24")
    assert call("CHECK", call.bridge, "one", space, result)[0] == 0
    assert call("DEL", call.bridge, "one", space)[0] == 0
    assert "10.33.0.2" not in os.listdir(tmp_path / "leases" / "plain")


@needs_reference
def test_our_runtime_with_the_reference_plugins(host: NetHost, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of a host that has only the reference's plugins."""
    monkeypatch.setattr(launchers, "provide", lambda _, **__: None)
    cni = Cni(Place(root=str(tmp_path / "r"), state=str(tmp_path / "s"), cni_bin=(REFERENCE,)))
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.34.0.0/24"}
    conflist = {"cniVersion": "1.0.0", "name": "ref", "plugins": [
        {"type": "ptp", "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]}
    space = host.space("c")
    result = cni.add(conflist, "one", space, capabilities={"portMappings": []})
    assert result["ips"][0]["address"] == "10.34.0.2/24"
    cni.check("ref", "one")
    cni.delete(None, "one", network="ref")
    cni.delete(None, "one", network="ref")
    assert "veth" not in host.links()
    assert os.listdir(tmp_path / "s" / "cni" / "results") == []


@needs_reference
def test_our_portmap_behind_the_references_bridge(host: NetHost, bin_dir: str, tmp_path: Path) -> None:
    reference = Caller(host, REFERENCE, tmp_path / "leases", "1.0.0")
    ours = Caller(host, bin_dir, tmp_path / "leases", "1.0.0")
    space = host.space("c")
    plain = {key: value for key, value in reference.bridge.items() if key != "ipMasq"}
    code, result = reference("ADD", plain, "one", space)
    assert code == 0, result
    ports = {"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8089, "containerPort": 80}]}}
    assert ours("ADD", ports, "one", space, result)[0] == 0
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("mixed")
    host.serve(space, tmp_path / "www")
    assert host.fetch("h", "http://127.0.0.1:8089/") == "mixed"
    assert host.fetch(space, "http://192.0.2.2:8089/") == "mixed"
    assert ours("DEL", ports, "one", space)[0] == 0
    assert ours("DEL", plain, "one", space, result)[0] == 0  # our DEL cleans what the reference's ADD made
    assert "veth" not in host.links()
    assert "10.33.0.2" not in os.listdir(tmp_path / "leases" / "plain")
