"""The skeleton: environments, versions, results and errors, without a kernel."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from wherry_cni import (
    bandwidth,
    bridge,
    firewall,
    host_device,
    host_local,
    ipvlan,
    loopback,
    macvlan,
    nft,
    overlay,
    portmap,
    ptp,
    sbr,
    skel,
    static,
    tuning,
)
from wherry_cni.results import VERSIONS, to_version

ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/none", "CNI_IFNAME": "eth0", "CNI_PATH": "/none"}
RESULT = {"interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n", "mtu": 1500}],
          "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::2/64"}],
          "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}], "dns": {}}
PLUGINS = {
    "bandwidth": bandwidth,
    "bridge": bridge,
    "firewall": firewall,
    "host-device": host_device,
    "host-local": host_local,
    "ipvlan": ipvlan,
    "loopback": loopback,
    "macvlan": macvlan,
    "overlay": overlay,
    "portmap": portmap,
    "ptp": ptp,
    "sbr": sbr,
    "static": static,
    "tuning": tuning,
}


def serve(config: Any, env: dict[str, str] | None = None, verbs: Any = None) -> tuple[int, Any]:
    out = io.BytesIO()
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    code = skel.main({"ADD": lambda _: RESULT} if verbs is None else verbs, ["x"], {**ENV, **(env or {})},
                     io.BytesIO(text), out)
    return code, json.loads(out.getvalue()) if out.getvalue() else None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_has_the_shape_of_the_callers_version(version: str) -> None:
    code, answer = serve({"cniVersion": version, "name": "n"})
    assert code == 0
    assert answer["cniVersion"] == version
    assert [part.get("version") for part in answer["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])
    assert ("mtu" in answer["interfaces"][0]) == (version >= "1.1.0")
    assert ("mtu" in answer["routes"][0]) == (version >= "1.1.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_previous_result_survives_a_round_trip(version: str) -> None:
    told = to_version(RESULT, version)
    config = {"cniVersion": version, "name": "n", "prevResult": told}
    _, answer = serve(config, verbs={"ADD": lambda call: call.previous})
    assert answer == told


@pytest.mark.parametrize(("config", "env", "code"), [
    ({"cniVersion": "9.9.9", "name": "n"}, {}, 1),
    ({"cniVersion": "0.2.0", "name": "n"}, {}, 1),
    ({"name": "n"}, {}, 1),
    ({"cniVersion": "0.3.1", "name": "n"}, {"CNI_COMMAND": "CHECK"}, 1),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_COMMAND": "GC"}, 1),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_COMMAND": ""}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_COMMAND": "add"}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_CONTAINERID": "../x"}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_IFNAME": "sixteen-letters0"}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_IFNAME": ".."}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_IFNAME": "é" * 8}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_IFNAME": "eth\x01"}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_NETNS": "/proc/thread-self/ns/net"}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_NETNS": ""}, 4),
    ({"cniVersion": "1.0.0", "name": "n"}, {"CNI_ARGS": "nonsense"}, 4),
    ({"cniVersion": "1.0.0", "name": "../n"}, {}, 7),
    ({"cniVersion": "1.0.0"}, {}, 7),
    (b"{", {}, 6),
    (b"[]", {}, 6),
])
def test_bad_calls_get_the_specifications_codes(config: Any, env: dict[str, str], code: int) -> None:
    exit_code, answer = serve(config, env)
    assert (exit_code, answer["code"]) == (1, code)
    assert answer["msg"]


def test_an_unexpected_failure_is_an_error_object_too() -> None:
    def broken(_: Any) -> None:
        raise KeyError("x")

    code, answer = serve({"cniVersion": "1.0.0", "name": "n"}, verbs={"ADD": broken})
    assert (code, answer["code"]) == (1, 199)
    assert "test_cni_skel.py" in answer["details"]


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_tells_its_versions_without_heavy_imports(name: str) -> None:
    script = (f"import sys, wherry_cni.{name.replace('-', '_')} as plugin\n"
              "code = plugin.entry()\n"
              "heavy = [m for m in ('pyroute2.iproute', 'asyncio', 'requests') if m in sys.modules]\n"
              "sys.stderr.write(' '.join(heavy))\nsys.exit(code)")
    done = subprocess.run([sys.executable, "-c", script], input=b'{"cniVersion":"0.4.0"}', capture_output=True,
                          env={"CNI_COMMAND": "VERSION", "PYTHONPATH": ":".join(sys.path)}, check=True)
    assert json.loads(done.stdout) == {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)}
    assert done.stderr == b""


@pytest.mark.parametrize(("plugin", "config", "field"), [
    (bridge, {"ipMasqBackend": "iptables"}, "ipMasqBackend"),
    (portmap, {"conditionsV4": ["!", "-d", "1.2.3.4"]}, "conditionsV4"),
    (portmap, {"backend": "iptables"}, "backend"), (portmap, {"markMasqBit": 5}, "markMasqBit"),
])
def test_what_is_not_built_is_refused_by_name(plugin: Any, config: dict[str, Any], field: str) -> None:
    previous = {"ips": [{"address": "10.0.0.2/24"}]}
    asked = {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1}]}} if plugin is portmap else {}
    code, answer = serve({"cniVersion": "1.0.0", "name": "n", "prevResult": previous, **asked, **config},
                         verbs=plugin.VERBS)
    assert (code, answer["code"]) == (1, 2)
    assert field in answer["msg"]


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%x }\nflush ruleset\n#", "127.0.0.1/8", "here"])
def test_a_host_address_is_an_address(address: str) -> None:
    """It becomes a word of nft's; Python takes any characters for the zone of an IPv6 address."""
    asked = {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": address}]}}
    previous = {"ips": [{"address": "fd00::2/64"}]}
    code, answer = serve({"cniVersion": "1.0.0", "name": "n", "prevResult": previous, **asked}, verbs=portmap.VERBS)
    assert (code, answer["code"]) == (1, 7)
    assert "port mapping" in answer["msg"]


def test_owner_names_fit_into_a_comment_and_stay_distinct() -> None:
    names = {nft.owner(network, container, "eth0123456789ab") for network in ("n", "n" * 128, "m" * 128)
             for container in ("c", "c" * 64, "c" * 200, "d" * 200)}
    assert len(names) == 12
    assert max(map(len, names)) <= 127
    assert all(name.endswith(nft.owner_of_network("m" * 128)) for name in
               [nft.owner("m" * 128, "c", "e")])


@pytest.mark.parametrize("config", [
    {}, {"peersFile": "peers.json"}, {"mode": "ipip"}, {"vni": "x"}, {"ipam": 5}, {"isDefaultGateway": 5},
    {"nftTable": "a b"}, {"address": "nowhere"},
])
def test_del_of_an_overlay_after_an_add_that_refused_it(config: dict[str, Any]) -> None:
    told = {"cniVersion": "1.0.0", "name": "n", **({"peersFile": "/none", **config} if config else {})}
    assert serve(told, {"CNI_COMMAND": "ADD"}, overlay.VERBS)[1]["code"] == 7
    assert serve(told, {"CNI_COMMAND": "DEL"}, overlay.VERBS) == (0, None)


@pytest.mark.parametrize("previous", [
    5, [], {"ips": 5}, {"ips": [5]}, {"ips": [{}]}, {"ips": [{"address": "10.0.0.1 }\nflush ruleset"}]},
    {"interfaces": ["eth0"]}, {"routes": [{"dst": "default"}]}, {"routes": {"dst": "::/0"}},
])
def test_a_previous_result_is_one(previous: Any) -> None:
    code, answer = serve({"cniVersion": "1.0.0", "name": "n", "prevResult": previous},
                         verbs={"ADD": lambda call: call.previous})
    assert (code, answer["code"]) == (1, 7)


def test_a_del_for_the_plugins_own_namespace_is_one_without_a_namespace() -> None:
    """/proc/PID/ns/net of a container whose process is one of the host's by now: nothing there is ours."""
    seen: list[str] = []
    code, _ = serve({"cniVersion": "1.0.0", "name": "n"}, {"CNI_COMMAND": "DEL", "CNI_NETNS": "/proc/self/ns/net"},
                    {"DEL": lambda call: seen.append(call.netns)})
    assert (code, seen) == (0, [""])


def test_the_devices_of_many_attachments_have_names_of_their_own() -> None:
    call = skel.Call("ADD", "", "/n", "eth0", {}, (), {"name": "net"}, {}, "")
    names = {bandwidth.ifb_name(call._replace(container_id=f"c{number}")) for number in range(20_000)}
    assert len(names) == 20_000
    assert max(map(len, names)) == 15


def test_capabilities_may_be_written_as_containerd_does() -> None:
    ports = [{"HostPort": 80, "HostIP": ""}]
    call = skel.Call("ADD", "c", "/n", "eth0", {}, (), {"runtimeConfig": {"portMappings": ports, "mac": "X"}}, {}, "")
    assert call.runtime == {"portMappings": [{"hostPort": 80, "hostIP": ""}], "mac": "X"}
