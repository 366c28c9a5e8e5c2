"""The plugin host-device: a device of the host, moved into the container, and given back by DEL.

Decides which device is meant (by name, MAC, kernel path or PCI address; first found wins in this order, as in the
reference) and how it is handed over: its old name is kept as its alias, which DEL reads, whoever calls it.
A device without a kernel's driver (DPDK) has no link: for it there are addresses only.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from wherry_cni import interface, netlink, rtnetlink, skel
from wherry_cni.config import text
from wherry_cni.errors import BAD_CONFIG, NOT_AVAILABLE, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.interface import Steps, Style
from wherry_cni.ipam import delegate
from wherry_cni.nlwire import Wire
from wherry_cni.results import Json
from wherry_cni.rtnetlink import Link
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "status"]

_PCI, _DEVICES = "/sys/bus/pci/devices", "/sys/devices/"
_USER_SPACE = ("vfio-pci", "uio_pci_generic", "igb_uio")  # drivers that hand the device to a process
_FALLEN = re.compile(r"dev\d+")
_NAME = re.compile(r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}")
_STYLE = Style(dad=True, notify=True)


class _Wish(NamedTuple):
    """The configuration, typed; one of them is set."""

    device: str
    mac: str
    path: str
    pci: str


def add(call: Call) -> Json:
    """Address and device; whatever fails, the device goes back, and up where it was."""
    wish = _wish(call)
    if _in_user_space(wish.pci):
        with interface.undoing() as undo:
            return {**interface.leased(call, undo), "interfaces": []}
    with interface.undoing() as undo:
        interface.refuse_taken(call)
        with rtnetlink.wired() as wire:
            device = _found(wire, wish)
            leased = interface.leased(call, undo)
            _hand_over(wire, call, device, undo)
        ips = [{**part, "interface": 0} for part in leased.get("ips") or []]
        routes = leased.get("routes") or []
        inner = interface.configure(call, ips, interface.resolved(routes, ips), _STYLE)
    return {"interfaces": [interface.told(inner, call.netns)], "ips": ips, "routes": routes,
            "dns": interface.dns(call, leased)}


def delete(call: Call) -> None:
    """The device back under its old name, then the address; absent is success, and so is what ADD refused."""
    with rtnetlink.wired() as wire:
        here = rtnetlink.links(wire)
    _take_back(call, lambda link: _is_ours(call, link, here))
    _name_again(call)
    if interface.has_ipam(call):
        delegate(call, "DEL")


def check(call: Call) -> None:
    """The device is in the container as ADD left it."""
    wish = _wish(call)
    if interface.has_ipam(call):
        delegate(call, "CHECK")
    if not _in_user_space(wish.pci):
        interface.check(call, "")


def collect(call: Call) -> None:
    """GC: leases of attachments that the runtime no longer knows. Devices are where somebody uses them."""
    if interface.has_ipam(call):
        delegate(call, "GC")


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound, the device here, and so is IPAM."""
    wish = _wish(call)
    if not _in_user_space(wish.pci):
        with rtnetlink.wired() as wire:
            try:
                _found(wire, wish)
            except CniError as problem:
                raise CniError(NOT_AVAILABLE, problem.msg, problem.details) from None
    if interface.has_ipam(call):
        delegate(call, "STATUS")


def _hand_over(wire: Wire, call: Call, device: Link, undo: Steps) -> None:
    """The alias comes first: wherever the move ends, it tells the device from what else the container has."""
    def give_back() -> None:
        _take_back(call, lambda link: link.alias == device.name and link.name in (call.ifname, device.name))
        with rtnetlink.wired() as again:
            found = rtnetlink.find(again, device.name)
            number = found.number if found else 0
            again.do(f"giving {device.name} back what it was", rtnetlink.marked(number, device.alias),
                     *([rtnetlink.up(number)] if device.up else []))

    with interface.opened(call.netns) as fd:
        undo.append(give_back)
        wire.do(f"noting the name of {device.name}", rtnetlink.marked(device.number, device.name))
        wire.do(f"moving {device.name} into the container", rtnetlink.moved(device.number, fd, call.ifname))


def _is_ours(call: Call, link: Link, here: Sequence[Link]) -> bool:
    """Whether a link of the container is the device of this attachment, and not another's that has the name wanted: a
    DEL follows an ADD that was refused because of it. A device that is here is not there."""
    if link.name != call.ifname:
        return False
    try:
        wish = _wish(call)
    except CniError:
        return False  # ADD refused it
    by_alias = link.alias == wish.device if wish.device else link.alias and not _here(here, wish)
    return bool(by_alias) or link.mac in interface.told_macs(call)


def _take_back(call: Call, ours: Callable[[Link], bool]) -> None:
    """Out of the container, if it is there."""
    if not call.netns:
        return
    with netlink.if_there(), interface.opened("/proc/thread-self/ns/net") as home, rtnetlink.wired() as outside, \
            rtnetlink.wired(call.netns) as inside:
        for link in filter(ours, rtnetlink.links(inside)):
            _move_back(inside, outside, link, home, text(call.config, "device"))


def _move_back(inside: Wire, outside: Wire, link: Link, home: int, known: str) -> None:
    """Under the name that the configuration knows, else by the alias, which the container can have changed."""
    name = known or (link.alias if _NAME.fullmatch(link.alias) else link.name)
    if rtnetlink.find(outside, name) is not None:
        raise CniError(IO_ERROR, f"{name} cannot go back: the host has another link of this name")
    inside.do(f"moving {name} back to the host", rtnetlink.moved(link.number, home, name))


def _name_again(call: Call) -> None:
    """A namespace that ends without DEL drops real devices on the host, as they were called there or as dev7
    (default_device_exit_net() of the kernel): give it back its old name."""
    try:
        wish = _wish(call)
    except CniError:
        return  # ADD refused it
    with rtnetlink.wired() as wire:
        links = rtnetlink.links(wire)
        meant, names = _meant(links, wish), {link.name for link in links}
        for link in links:
            fallen = link.name == call.ifname or _FALLEN.fullmatch(link.name)
            named = _NAME.fullmatch(link.alias) and link.alias not in names
            if fallen and named and (link.alias == wish.device if wish.device else link.name in meant and not link.up):
                wire.do(f"naming {link.alias}", rtnetlink.down(link.number), rtnetlink.renamed(link.number, link.alias))


def _found(wire: Wire, wish: _Wish) -> Link:
    found = _here(rtnetlink.links(wire), wish)
    if found is None:
        what = wish.device or wish.mac or wish.path or wish.pci
        raise CniError(IO_ERROR, f"the host has no device {what}", "another container may have it")
    return found


def _here(links: Sequence[Link], wish: _Wish) -> Link | None:
    names = _meant(links, wish)
    return next((link for link in links if link.name in names), None)


def _meant(links: Sequence[Link], wish: _Wish) -> list[str]:
    if wish.device:
        return [wish.device]
    if wish.mac:
        return [link.name for link in links if link.mac == wish.mac]
    return _named_below(wish.path, wish.pci)


def _named_below(path: str, pci: str) -> list[str]:
    """The links of a device; those of a virtio device lie one level deeper."""
    below = path or os.path.join(_PCI, pci)
    found = glob.glob(f"{glob.escape(below)}/net/*") or glob.glob(f"{glob.escape(below)}/virtio*/net/*")
    return sorted(map(os.path.basename, found))


def _in_user_space(pci: str) -> bool:
    return bool(pci) and os.path.basename(os.path.realpath(os.path.join(_PCI, pci, "driver"))) in _USER_SPACE


def _wish(call: Call) -> _Wish:
    config = call.config
    wish = _Wish(text(config, "device"), text(config, "hwaddr").lower(), text(config, "kernelpath"),
                 str(call.runtime.get("deviceID") or text(config, "pciBusID")))
    if not any(wish):
        raise CniError(BAD_CONFIG, "host-device needs one of device, hwaddr, kernelpath and pciBusID")
    if wish.path and not os.path.normpath(wish.path).startswith(_DEVICES):
        raise CniError(BAD_CONFIG, f'kernelpath: "{wish.path}" is not below {_DEVICES}')
    if "/" in wish.pci:
        raise CniError(BAD_CONFIG, f'pciBusID: "{wish.pci}" is not a PCI address')
    return wish


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
