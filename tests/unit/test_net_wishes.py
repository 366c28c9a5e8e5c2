"""What an attachment tells the plugins: each capability as CNI's conventions write it, and only to who declares it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, Place, PortMapping
from wherry.net.networks import Networks

EVERY = ("portMappings", "bandwidth", "ipRanges", "ips", "mac", "dns", "aliases", "infinibandGUID", "deviceID")
OPTIONS = {
    "bandwidth.ingressRate": "1000000", "bandwidth.egressBurst": "2000", "infinibandGUID": "c2:11:22:33:44:55:66:77",
    "deviceID": "0000:04:00.5", "ipRanges": '[[{"subnet": "10.1.0.0/24"}]]', "args.POOL": "gold",
}  # fmt: skip
WISH = Attachment("net", ("db",), "10.0.0.7", "02:00:00:00:00:07", "eth0", "fd00::7", OPTIONS)
DNS = {"servers": ("10.0.0.1",), "searches": ("example.com",), "options": ()}


class Host:
    """A host whose one list names a plugin that writes down what it is given."""

    def __init__(self, path: Path, *declared: str) -> None:
        self.path = path
        for name in ("bin", "net.d"):
            (path / name).mkdir()
        plugin = path / "bin" / "note"
        plugin.write_text(f'#!/bin/sh\ncat > {path}/given\necho "$CNI_ARGS" > {path}/args\n'
                          'echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.7/24"}]}\'\n')
        plugin.chmod(0o755)
        plugins = [{"type": "note", "capabilities": dict.fromkeys(declared, True)}]
        (path / "net.d" / "net.conflist").write_text(
            json.dumps({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}))
        self.nets = Networks(Place(root=str(path / "root"), state=str(path / "state"), cni_conf=str(path / "net.d"),
                                   cni_bin=(str(path / "bin"),)))

    def runtime(self) -> Any:
        return json.loads((self.path / "given").read_text()).get("runtimeConfig")


def test_every_capability_as_the_conventions_write_it(tmp_path: Path) -> None:
    host = Host(tmp_path, *EVERY)
    ports = (PortMapping(80, 18080, "tcp", "127.0.0.1"),)
    result = host.nets.attach("c1", "/none", WISH, ports, {"K8S_POD_NAME": "web"}, dns=DNS)
    assert host.runtime() == {
        "portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 1000000, "egressBurst": 2000}, "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
        "ips": ["10.0.0.7", "fd00::7"], "mac": "02:00:00:00:00:07", "aliases": ["db"],
        "dns": {"servers": ["10.0.0.1"], "searches": ["example.com"]},
        "infinibandGUID": "c2:11:22:33:44:55:66:77", "deviceID": "0000:04:00.5",
    }  # fmt: skip
    assert result.ports == ports
    args = dict(pair.split("=", 1) for pair in (tmp_path / "args").read_text().strip().split(";"))
    assert args == {"IgnoreUnknown": "1", "K8S_POD_NAME": "web", "POOL": "gold", "IP": "10.0.0.7",
                    "MAC": "02:00:00:00:00:07"}  # fmt: skip


@pytest.mark.parametrize("lacking", ["bandwidth", "infinibandGUID", "deviceID", "ipRanges"])
def test_what_only_a_capability_can_give_is_refused_where_none_is_declared(tmp_path: Path, lacking: str) -> None:
    host = Host(tmp_path, *(name for name in EVERY if name != lacking))
    with pytest.raises(WherryError, match=f"network net has no plugin for {lacking}") as caught:
        host.nets.attach("c1", "/none", WISH, (PortMapping(80, 18081),))
    assert caught.value.kind is Kind.UNSUPPORTED
    assert not (tmp_path / "given").exists()
    host.nets.claim_ports("c2", (PortMapping(80, 18081),))  # no port was kept


def test_who_declares_nothing_is_told_by_arguments_alone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    result = host.nets.attach("c1", "/none", WISH._replace(options={}), (PortMapping(80, 18082),))
    assert host.runtime() is None
    assert result.ports == ()
    assert "IP=10.0.0.7" in (tmp_path / "args").read_text()


@pytest.mark.parametrize("options", [
    {"nope": "1"}, {"bandwidth.ingressRate": "fast"}, {"ipRanges": "10.0.0.0/8"}, {"ipRanges": "[[{}]]"},
    {"args.A;B": "1"}, {"args.A": "1;IP=10.0.0.1"}, {"ipRanges": '[[{"subnet": "x"}]]'},
])
def test_bad_endpoint_options_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    host = Host(tmp_path, *EVERY)
    with pytest.raises(WherryError) as caught:
        host.nets.attach("c1", "/none", Attachment("net", options=options))
    assert caught.value.kind is Kind.INVALID
    assert not (tmp_path / "given").exists()


def test_a_list_that_was_used_is_collected_after_a_boot_and_no_other(tmp_path: Path) -> None:
    host = Host(tmp_path)
    other = {"cniVersion": "1.1.0", "name": "unused", "plugins": [{"type": "absent"}]}
    (tmp_path / "net.d" / "other.conflist").write_text(json.dumps(other))
    host.nets.attach("c1", "/none", Attachment("net"))
    note = tmp_path / "state" / "cni" / "boot"
    (tmp_path / "given").unlink()
    assert host.nets.collect() == {}
    assert json.loads((tmp_path / "given").read_text())["cni.dev/valid-attachments"] == [
        {"containerID": "c1", "ifname": "eth0"}]  # fmt: skip
    plugin = tmp_path / "bin" / "note"
    plugin.write_text(plugin.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho $CNI_COMMAND >> {tmp_path}/verbs\n"))
    host.nets.attach("c2", "/none", Attachment("net"))
    note.write_text("another boot\n")
    host.nets.attach("c3", "/none", Attachment("net"))
    host.nets.attach("c4", "/none", Attachment("net"))
    assert (tmp_path / "verbs").read_text().split() == ["ADD", "GC", "ADD", "ADD"]
