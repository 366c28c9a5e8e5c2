"""A pod's network: one attachment, eth0, to one CNI list. DEL undoes ADD, whatever is left of the pod by then.

Decides which list, what the plugins are told (CNI's conventions: CNI_ARGS, capabilities) and that a note beside the pod
says what a DEL is still owed for, so that it is owed after a reboot, too. Refuses to know plugins.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from fractions import Fraction

from wherry.engine import cleanup, keeping
from wherry.engine.house import House
from wherry.engine.joining import netns_path
from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Attachment, NetworkResult

from . import records
from .values import PodOptions

__all__ = ["choose", "join", "leave", "owed", "ready"]

_INTERFACE = "eth0"
_NOTE_MAX = 1 << 16
_BURST = "2147483647"  # bits; no burst limit, as the kubelet's other runtimes ask of the bandwidth plugin
_RATES = {"kubernetes.io/ingress-bandwidth": "ingress", "kubernetes.io/egress-bandwidth": "egress"}
_QUANTITY = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|[eE][0-9]{1,2})?")
_UNITS: dict[str, int | Fraction] = {
    "": 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "Ki": 2**10,
    "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
_RATE_LEAST, _RATE_MOST = 1_000, 10**15  # bits a second: what Kubernetes takes


def choose(house: House) -> str:
    """The network of pods: the setting's, else the first of the host's CNI lists. UNAVAILABLE: there is none."""
    if house.settings.pod_network:
        return house.settings.pod_network
    names = house.networks.host_lists()
    if not names:
        from wherry.engine.config import networking

        where = networking(house.place, house.settings).cni_conf
        hint = "; ".join([*house.networks.problems(), f"install a CNI plugin's list in {where}, or set pod_network"])
        raise WherryError(Kind.UNAVAILABLE, f"no CNI network: there is no list in {where}", hint=hint)
    return names[0]


def ready(house: House) -> str:
    """"" where a pod could join the network now, else why not."""
    try:
        house.networks.probe(choose(house))
    except WherryError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return ""


def join(house: House, pod: str, options: PodOptions, cgroup: str) -> tuple[str, ...]:
    """ADD; the pod's addresses, the primary one first. Taken back by `leave`, also when this fails half way."""
    name = choose(house)
    known = house.networks.settings(name)
    declared = known["capabilities"] | ({"bandwidth"} if house.networks.is_own(known["name"]) else set())
    wish = Attachment(name, interface=_INTERFACE, options=_wishes(declared, options, cgroup))
    ports = tuple(port for port in options.ports if port.host_port)
    dns = {"servers": options.dns, "searches": options.dns_search, "options": options.dns_option}
    note = json.dumps({"network": name, "interface": _INTERFACE}).encode()
    files.atomic_write(_note(house, pod), note, 0o600)

    def once() -> NetworkResult:
        with keeping.room_for(house, ports):
            path = netns_path(house, pod)
            return house.networks.attach(pod, path, wish, ports, _arguments(pod, options), dns=dns)

    result = _patiently(house, once)
    ips = _addresses(result)
    if not ips:
        raise WherryError(Kind.UNAVAILABLE, f"network {known['name']} gave the pod no address")
    return ips


def _patiently(house: House, once: Callable[[], NetworkResult]) -> NetworkResult:
    """Where no address is left, those that a command before us has still to give back are worth waiting for."""
    try:
        return once()
    except WherryError as error:
        if error.kind is not Kind.EXHAUSTED:
            raise
    cleanup.await_rest(house)
    return once()


def leave(house: House, pod: str) -> None:
    """DEL, unless it was done, or never owed. The namespace and the list may be gone."""
    try:
        note = json.loads(files.read_small(_note(house, pod), _NOTE_MAX))
    except FileNotFoundError:
        return
    path = netns_path(house, pod)
    house.networks.detach(pod, path if os.path.exists(path) else "", note["network"], interface=note["interface"])
    os.unlink(_note(house, pod))


def owed(house: House, pod: str) -> bool:
    """Whether there is a DEL still to be done."""
    return os.path.exists(_note(house, pod))


def _note(house: House, pod: str) -> str:
    return f"{records.directory(house, pod)}/network"


def _addresses(result: NetworkResult) -> tuple[str, ...]:
    found = (a.address for one in result.interfaces if one.name == _INTERFACE for a in one.addresses)
    return tuple(dict.fromkeys(address.partition("/")[0] for address in found))


def _arguments(pod: str, options: PodOptions) -> dict[str, str]:
    """What plugins of Kubernetes look for in CNI_ARGS."""
    return {"K8S_POD_NAMESPACE": options.namespace, "K8S_POD_NAME": options.name, "K8S_POD_INFRA_CONTAINER_ID": pod,
            "K8S_POD_UID": options.uid}  # fmt: skip


def _wishes(declared: set[str], options: PodOptions, cgroup: str) -> dict[str, str]:
    """Capabilities of the conventions beside portMappings and dns, each as far as the list declares it."""
    found = {f"bandwidth.{way}{what}": value for annotation, way in _RATES.items() if annotation in options.annotations
             for what, value in (("Rate", str(_rate(annotation, options.annotations[annotation]))), ("Burst", _BURST))}
    if "bandwidth" not in declared:
        found = {}
    return found | ({"cgroupPath": cgroup} if cgroup and "cgroupPath" in declared else {})


def _rate(annotation: str, text: str) -> int:
    """A quantity of Kubernetes ("10M", "1.5Gi") in bits a second."""
    match = _QUANTITY.fullmatch(text.strip())
    if match:
        suffix = match[3] or ""
        factor = _UNITS[suffix] if suffix in _UNITS else Fraction(10) ** int(suffix[1:])
        value = int(Fraction(f"{match[1]}.{match[2] or 0}") * factor)
        if _RATE_LEAST <= value <= _RATE_MOST:
            return value
    hint = "a quantity such as 10M, between 1k and 1P"
    raise WherryError(Kind.INVALID, f"annotation {annotation}: {text[:80]!r} is no rate", hint=hint)
