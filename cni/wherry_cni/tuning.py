"""The plugin tuning: sysctls of a container's network namespace, and attributes of the interface that was made in it.

Decides which sysctls may be written: those below net. alone, and where the administrator's list exists, what one of its
regular expressions matches. What was before is kept in a file, for a namespace or an interface that lives on after DEL.
A setting that fails takes those before it back.
Refuses to know how the interface was made. Keys are the reference plugin's; args.cni goes before runtimeConfig, that
before CNI_ARGS, and those before the configuration.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from wherry_cni import linkattrs, netlink, rtnetlink, skel
from wherry_cni.config import boolean, integer, text
from wherry_cni.errors import BAD_CONFIG, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.linkattrs import ALLMULTI, PROMISC, Attrs
from wherry_cni.nlwire import Message, Wire
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["ALLOWED", "VERBS", "add", "check", "collect", "delete", "entry", "main", "status"]

ALLOWED = "/etc/cni/tuning/allowlist.conf"  # a regular expression a line; without the file everything below net. goes
_DATA = "/run/cni/tuning"
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_MOST_QUEUE = (1 << 31) - 1


class _Wish(NamedTuple):
    """The configuration, typed; None and 0 leave an attribute as it is."""

    sysctls: Mapping[str, str]
    mac: str
    mtu: int
    txqlen: int | None
    promisc: bool
    allmulti: bool | None

    @property
    def flags(self) -> dict[int, bool]:
        wanted = {PROMISC: self.promisc or None, ALLMULTI: self.allmulti}
        return {bit: value for bit, value in wanted.items() if value is not None}

    @property
    def touches_link(self) -> bool:
        return bool(self.mac or self.mtu or self.flags or self.txqlen is not None)


def add(call: Call) -> Json:
    """Set all; the interface's MAC and MTU of prevResult follow."""
    wish, previous = _wish(call), call.previous
    if previous is None:
        raise CniError(BAD_CONFIG, "tuning must be called as a chained plugin: no prevResult")
    former = netlink.in_namespace(call.netns, lambda: {name: _sysctl(name) for name in wish.sysctls})
    with rtnetlink.wired(call.netns) as wire:
        found = _link(wire, call) if wish.touches_link else None
        kept = bool(former or found) and _keep(call, found, former)
        try:
            netlink.in_namespace(call.netns, lambda: _write(wish.sysctls))
            if found:
                wire.do(f"changing {call.ifname}", _towards(found.number, _as_wished(found, wish), found))
        except BaseException:
            if found:
                wire.ask(_towards(found.number, found))
            netlink.in_namespace(call.netns, lambda: _write_what_is_left(former))
            if kept:
                os.unlink(_backup(call))
            raise
    return {**previous, "interfaces": [_tuned(call, wish, part) for part in previous.get("interfaces") or []]}


def delete(call: Call) -> None:
    """Give the namespace and the interface what they had, where they are still there; absent is success. What another
    network's attachment of the same name had is not ours, for a DEL follows an ADD that was refused because of it."""
    try:
        path = _backup(call)
    except CniError:
        return  # ADD refused it
    with suppress(FileNotFoundError, NotADirectoryError):
        kept = _read_backup(path)
        if kept and kept["network"] != call.network:
            return
        if kept and call.netns and os.path.exists(call.netns) and os.stat(call.netns).st_ino == kept["space"]:
            _restore(call, kept)
        os.unlink(path)


def check(call: Call) -> None:
    """Everything still is as ADD set it."""
    wish = _wish(call)
    held = netlink.in_namespace(call.netns, lambda: {name: _sysctl(name) for name in wish.sysctls})
    for name, wanted in wish.sysctls.items():
        if held[name].split() != wanted.split():
            raise CniError(IO_ERROR, f"sysctl {name} is {held[name]}, not {wanted}")
    if not wish.touches_link:
        return
    with rtnetlink.wired(call.netns) as wire:
        found = _link(wire, call)
    wanted_now = _as_wished(found, wish)
    for key, is_now, should in zip(Attrs._fields, found, wanted_now, strict=True):
        if is_now != should:
            raise CniError(IO_ERROR, f"{call.ifname}: {key} is {is_now}, not {should}")


def collect(call: Call) -> None:
    """GC: what is kept of this network's attachments that the runtime no longer knows."""
    directory, valid = _directory(call), skel.valid_attachments(call)
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            kept = _read_backup(path) if name.endswith(".json") else {}
            if kept.get("network") == call.network and (kept.get("containerId"), kept.get("ifname")) not in valid:
                os.unlink(path)


def status(call: Call) -> None:
    """An ADD could work: the configuration is sound and allowed."""
    _wish(call)


# ---- the link


def _link(wire: Wire, call: Call) -> Attrs:
    found = linkattrs.read(wire, call.ifname)
    if found is None:
        raise CniError(IO_ERROR, f"the container has no interface {call.ifname}")
    return found


def _as_wished(found: Attrs, wish: _Wish) -> Attrs:
    return found._replace(
        mac=wish.mac or found.mac, mtu=wish.mtu or found.mtu,
        txqlen=found.txqlen if wish.txqlen is None else wish.txqlen, promisc=wish.promisc or found.promisc,
        allmulti=found.allmulti if wish.allmulti is None else wish.allmulti)


def _towards(number: int, wanted: Attrs, now: Attrs | None = None) -> Message:
    """The change to `wanted`. What is so already is not touched: a kernel may refuse to set it at all."""
    return linkattrs.changed(
        number, mac="" if now and now.mac == wanted.mac else wanted.mac,
        mtu=0 if now and now.mtu == wanted.mtu else wanted.mtu,
        txqlen=None if now and now.txqlen == wanted.txqlen else wanted.txqlen,
        flags={PROMISC: wanted.promisc, ALLMULTI: wanted.allmulti})


def _tuned(call: Call, wish: _Wish, part: Json) -> Json:
    if not part.get("sandbox") or part.get("name") != call.ifname:
        return part
    return {**part, **({"mac": wish.mac} if wish.mac else {}), **({"mtu": wish.mtu} if wish.mtu else {})}


# ---- what was before


def _keep(call: Call, found: Attrs | None, former: Mapping[str, str]) -> bool:
    """Before anything is changed, and once: False for what a killed ADD left, which tells of the time before it."""
    path, space = _backup(call), os.stat(call.netns).st_ino
    if os.path.exists(path) and _read_backup(path).get("space") == space:
        return False
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    kept = {"network": call.network, "containerId": call.container_id, "ifname": call.ifname,
            "space": space, "sysctl": former, "link": found}
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
        json.dump(kept, stream)
    os.replace(temporary, path)
    return True


def _restore(call: Call, kept: Json) -> None:
    """The number tells whether it is the same interface: another may have got the name since."""
    former = Attrs(*kept["link"]) if kept["link"] else None
    with rtnetlink.wired(call.netns) as wire:
        found = linkattrs.read(wire, call.ifname)
        if found and former and found.number == former.number:
            wire.do(f"giving {call.ifname} back what it was", _towards(found.number, former, found))
    netlink.in_namespace(call.netns, lambda: _write_what_is_left(kept["sysctl"]))


def _read_backup(path: str) -> Json:
    """What was kept, {} where it is not ours or not whole."""
    try:
        with open(path, encoding="utf-8") as stream:
            kept = json.load(stream)
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) and {"network", "space", "sysctl", "link"} <= kept.keys() else {}


def _backup(call: Call) -> str:
    return os.path.join(_directory(call), f"{call.container_id}:{call.ifname}.json")


def _directory(call: Call) -> str:
    return text(call.config, "dataDir", _DATA)


# ---- sysctls


def _write(wanted: Mapping[str, str]) -> None:
    """Set them in the namespace that the thread stands in."""
    for name, value in wanted.items():
        netlink.sysctl(_path(name), value)


def _write_what_is_left(former: Mapping[str, str]) -> None:
    """Those of an interface may have gone with it."""
    for name, value in former.items():
        with suppress(CniError):
            netlink.sysctl(_path(name), value)


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{_path(name)}", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError as problem:
        raise CniError(IO_ERROR, f"sysctl {name}: {problem.strerror}",
                       "is the kernel's module loaded, and is it one of a network namespace?") from None


def _path(name: str) -> str:
    """sysctl(8): the first separator tells which; with slashes a dot is part of a name, such as that of eth0.100."""
    first = next((char for char in name if char in "./"), ".")
    return name if first == "/" else name.translate(str.maketrans("./", "/."))


def _checked_sysctls(call: Call, given: Mapping[str, Any]) -> dict[str, str]:
    """Names with IFNAME replaced, values as text."""
    allowed, link = _allowed(), call.ifname or "IFNAME"  # STATUS has none
    found = {}
    for name, value in given.items():
        if not isinstance(value, str | int):
            raise CniError(BAD_CONFIG, f"sysctl {name}: a text, not {value!r}")
        if allowed is not None and not any(pattern.search(name) for pattern in allowed):
            raise CniError(BAD_CONFIG, f"sysctl {name} is not allowed", f"{ALLOWED} lists what is")
        path = _path(name.replace("IFNAME", link, 1) if "/" in name else
                     name.replace("IFNAME", link.replace(".", "/"), 1))
        if not path.startswith("net/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise CniError(BAD_CONFIG, f"sysctl {name} is none of a network namespace", "only net.* can be set")
        found[path] = str(value)
    return found


def _allowed() -> list[re.Pattern[str]] | None:
    try:
        with open(ALLOWED, encoding="utf-8") as stream:
            return [re.compile(line.strip()) for line in stream if line.strip()]
    except FileNotFoundError:
        return None
    except (re.error, ValueError) as problem:
        raise CniError(BAD_CONFIG, f"{ALLOWED}: {problem}") from None


# ---- the configuration


def _wish(call: Call) -> _Wish:
    given = call.given
    config = {**call.config, **{key: value for key, value in given.items() if value is not None}}
    try:
        sysctls = {**(call.config.get("sysctl") or {}), **(given.get("sysctl") or {})}
    except TypeError:
        raise CniError(BAD_CONFIG, "sysctl is not an object") from None
    mac = str(given.get("mac") or call.runtime.get("mac") or call.args.get("MAC") or text(config, "mac")).lower()
    if mac and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1):
        raise CniError(BAD_CONFIG, f'mac: "{mac}" is not a unicast MAC address')
    queue = config.get("txQLen")
    return _Wish(
        _checked_sysctls(call, sysctls), mac, integer(config, "mtu", 68, 65535),
        None if queue is None else integer(config, "txQLen", 0, _MOST_QUEUE), boolean(config, "promisc"),
        None if config.get("allmulti") is None else boolean(config, "allmulti"))


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
