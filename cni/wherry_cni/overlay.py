"""The plugin overlay: a bridge network that reaches over several hosts, by VXLAN or by direct routes (host-gw).

Decides what a call means: the network's part comes first, so that a container that starts can speak to all of it, then
the local part, which is the plugin bridge in this process. Who takes part is said by a file that every host has; what
follows from it is overlay_state's, and a watcher (overlay_watch) follows its changes. No control plane, no exchange.
Keys: `peersFile`, `mode`, `address`, `vni`, `port`; the others are the bridge's.
Refuses to know how the file comes to each host.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence

from wherry_cni import bridge, nft, overlay_state, overlay_watch, rtnetlink, skel
from wherry_cni.config import boolean, integer, table_name, text
from wherry_cni.errors import BAD_CONFIG, NOT_AVAILABLE, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.overlay_state import HOST_GW, VXLAN, Network, Plan, State, locked
from wherry_cni.results import Json
from wherry_cni.skel import Call

__all__ = ["VERBS", "add", "check", "collect", "delete", "entry", "main", "rules", "status"]

_KEYS = ("peersFile", "mode", "address", "vni", "port")
_PORT = 4789  # IANA's for VXLAN
_RANGES = ("ranges", "subnet")  # host-local's ways to say where addresses come from


def add(call: Call) -> Json:
    """The network's part, then the bridge's; whatever fails, what this call began is undone."""
    network, port, first = _network(call), bridge.host_ifname(call), False
    bridge.rules(_local(call, network))  # what the bridge refuses in a configuration, before anything is begun
    try:
        with locked(overlay_state.place(network), make=True) as state:
            assert state is not None
            first = port not in state.every_port()
            state.join(port)
            plan = _apply(state, network)
            overlay_watch.start(state)
        return bridge.add(_local(call, network, plan))
    except BaseException:
        if first:  # a repeated ADD is refused, and the attachment that there is stays
            _leave(network, port)
        raise


def delete(call: Call) -> None:
    """The bridge's part, then the network's where this was the last attachment. The peers file is not needed.
    What ADD refused has neither."""
    try:
        network = _network(call)
        local = _local(call, network)
    except CniError:
        return
    bridge.delete(local)
    _leave(network, bridge.host_ifname(call))


def check(call: Call) -> None:
    """The attachment and the ways to the peers are as ADD left them. A broken file is told, and no fault of theirs."""
    network = _network(call)
    bridge.check(_local(call, network))
    path = overlay_state.place(network)
    if not overlay_state.watched(path):
        skel.note(f"overlay: nobody watches {network.peers_file}; the next ADD starts a watcher")
    try:
        _plan(network)
    except CniError as problem:
        skel.note(f"overlay: {problem.msg}; what was before stays")
        return
    with locked(path):
        problem_found = overlay_state.missing(network)
    if problem_found:
        raise CniError(IO_ERROR, f"overlay: {problem_found}")


def collect(call: Call) -> None:
    """GC: attachments that the runtime no longer knows, and with the last of them the network."""
    network = _network(call)
    bridge.collect(_local(call, network))
    valid = {bridge.host_ifname(call._replace(container_id=container, ifname=ifname))
             for container, ifname in skel.valid_attachments(call)}
    with locked(overlay_state.place(network)) as state:
        if state is not None:
            for port in state.every_port() - valid:
                state.leave(port)
            _end_if_left(state)


def status(call: Call) -> None:
    """An ADD could work: the file is sound, this host is in it, and so is IPAM."""
    network = _network(call)
    try:
        plan = _plan(network)
    except CniError as problem:
        raise CniError(NOT_AVAILABLE, problem.msg, problem.details) from None
    bridge.status(_local(call, network, plan))


def rules(call: Call) -> list[nft.Element]:
    """The elements of an attachment whose result is prevResult: the bridge's, and those last made of the file."""
    network = _network(call)
    return [*bridge.rules(_local(call, network)), *State(overlay_state.place(network)).elements()]


def _apply(state: State, network: Network) -> Plan:
    """Another configuration counts when it could be applied; a first one before that, for it must be undone."""
    if state.network() is None:
        state.remember(network)
    plan = overlay_state.apply(state, network, rules=True)
    state.remember(network)
    return plan


def _plan(network: Network) -> Plan:
    with rtnetlink.wired() as wire:
        return overlay_state.plan(wire, network)


def _leave(network: Network, port: str) -> None:
    with locked(overlay_state.place(network)) as state:
        if state is not None:
            state.leave(port)
            _end_if_left(state)


def _end_if_left(state: State) -> None:
    if not state.ports():
        state.end()


def _local(call: Call, network: Network, plan: Plan | None = None) -> Call:
    """The bridge's call, without a plan for verbs that choose no address. A container has routes to those who are peers
    now, so that another network may have its default route; to who joins later the default route leads."""
    config = {key: value for key, value in call.config.items() if key not in _KEYS}
    given = config.get("ipam") or {}
    if not isinstance(given, dict):
        raise CniError(BAD_CONFIG, "ipam is not an object")
    ipam = {"type": "host-local", **given}
    if plan is not None:
        config["mtu"] = plan.mtu
        ipam["routes"] = [*(ipam.get("routes") or []), *({"dst": subnet} for subnet in plan.beyond())]
        if ipam["type"] == "host-local" and not any(ipam.get(key) for key in _RANGES):
            ipam["ranges"] = _ranges(plan.subnets)
    config |= {"bridge": network.bridge, "ipam": ipam, "isGateway": True,
               "isDefaultGateway": boolean(config, "isDefaultGateway", True)}
    return call._replace(config=config)


def _ranges(subnets: Sequence[str]) -> list[list[Json]]:
    """host-local's sets: an address of each IP version."""
    sets = ([{"subnet": subnet} for subnet in subnets if nft.family(subnet) == suffix] for suffix in ("4", "6"))
    return [found for found in sets if found]


def _network(call: Call) -> Network:
    config = call.config
    path, mode = text(config, "peersFile"), text(config, "mode", VXLAN)
    if not os.path.isabs(path):
        raise CniError(BAD_CONFIG, f'peersFile: "{path}" is not an absolute path')
    if mode not in (VXLAN, HOST_GW):
        raise CniError(BAD_CONFIG, f'mode: "{mode}" is neither {VXLAN} nor {HOST_GW}')
    walled = boolean(config, "isolate") or boolean(config, "internal")
    network = Network(call.network, mode, path, _address(text(config, "address")),
                      integer(config, "vni", 1, (1 << 24) - 1, 1), integer(config, "port", 1, 65535, _PORT),
                      text(config, "bridge"), integer(config, "mtu", 68, 65535), table_name(config),
                      boolean(config, "ipMasq"), walled)
    return network if network.bridge else network._replace(bridge=f"br{network.device[2:]}")


def _address(given: str) -> str:
    try:
        return str(ipaddress.ip_address(given)) if given else ""
    except ValueError as problem:
        raise CniError(BAD_CONFIG, f"address: {problem}") from None


VERBS: Mapping[str, skel.Verb] = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}
main, entry = skel.faces(VERBS)
