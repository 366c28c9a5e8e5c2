"""Which device host-device means: by PCI address and kernel path, in a tree like that of sysfs(5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wherry_cni import host_device, skel


def call(verb: str, **config: Any) -> tuple[int, Any]:
    body = {"cniVersion": "1.1.0", "name": "net", "type": "host-device", **config}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/none", "CNI_IFNAME": "none1",
           "CNI_PATH": "/none"}
    code, out = skel.capture(host_device.VERBS, ["host-device"], env, json.dumps(body).encode())
    return code, json.loads(out) if out else None


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """0000:00:01.0 with lo as its link, 0000:00:02.0 of virtio with lo, 0000:00:03.0 given to vfio."""
    devices = ("0000:00:01.0/net/lo", "0000:00:02.0/virtio3/net/lo", "0000:00:03.0")
    for below in (*devices, "drivers/vfio-pci", "drivers/e1000"):
        (tmp_path / below).mkdir(parents=True)
    (tmp_path / "0000:00:01.0" / "driver").symlink_to("../drivers/e1000")
    (tmp_path / "0000:00:03.0" / "driver").symlink_to("../drivers/vfio-pci")
    monkeypatch.setattr(host_device, "_PCI", str(tmp_path))
    monkeypatch.setattr(host_device, "_DEVICES", str(tmp_path))
    return tmp_path


def test_status_finds_the_device_by_each_way(pci: Path) -> None:
    for way in ({"pciBusID": "0000:00:01.0"}, {"pciBusID": "0000:00:02.0"}, {"kernelpath": f"{pci}/0000:00:01.0"},
                {"runtimeConfig": {"deviceID": "0000:00:01.0"}}, {"device": "lo"},
                {"pciBusID": "0000:00:09.0", "runtimeConfig": {"deviceID": "0000:00:02.0"}}):
        assert call("STATUS", **way) == (0, None)


@pytest.mark.parametrize(("way", "code"), [
    ({}, 7), ({"pciBusID": "../../x"}, 7), ({"kernelpath": "/etc"}, 7), ({"pciBusID": "0000:00:09.0"}, 50),
    ({"hwaddr": "02:00:00:00:00:99"}, 50), ({"device": "none0"}, 50), ({"device": 5}, 7),
])
def test_what_is_no_device_is_told(pci: Path, way: dict[str, Any], code: int) -> None:
    assert call("STATUS", **way)[1]["code"] == code
    assert call("DEL", **way) == (0, None)


def test_a_kernel_path_does_not_climb_out(pci: Path) -> None:
    assert call("STATUS", kernelpath=f"{pci}/../../etc")[1]["code"] == 7


def test_a_device_in_user_space_has_no_link(pci: Path) -> None:
    """DPDK: nothing is moved, the result has no interface, and CHECK and DEL have nothing to look at."""
    dpdk = {"pciBusID": "0000:00:03.0"}
    code, result = call("ADD", **dpdk)
    assert (code, result.get("interfaces", [])) == (0, [])
    assert call("CHECK", **dpdk, prevResult=result) == (0, None)
    assert call("DEL", **dpdk) == (0, None)
