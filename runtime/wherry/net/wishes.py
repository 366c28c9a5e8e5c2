"""What one attachment tells the plugins: CNI_ARGS, and runtimeConfig by the capabilities that they declare.

Decides how each wish is written (CNI's conventions document). Refuses to know which plugins there are.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, Json, PortMapping

__all__ = ["arguments", "capabilities", "declares", "port_mappings"]

_BANDWIDTH = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")  # bits a second, bits
_ENDPOINT = (*(f"bandwidth.{key}" for key in _BANDWIDTH), "infinibandGUID", "deviceID", "cgroupPath",
             "ipRanges", "com.docker.network.endpoint.ifname", "args.NAME")  # fmt: skip


def arguments(conflist: Json, attachment: Attachment, extra: Mapping[str, str]) -> dict[str, str]:
    """CNI_ARGS, for plugins that do not know the capabilities; IgnoreUnknown for those that know neither."""
    pairs = {"IgnoreUnknown": "1", **extra}
    pairs |= {key.removeprefix("args."): value for key, value in attachment.options.items() if key.startswith("args.")}
    if (conflist.get("wherry") or {}).get("ipam") == "static":
        pairs |= _static(conflist, attachment)
    elif attachment.ip or attachment.ip6:
        pairs["IP"] = attachment.ip or attachment.ip6
    if attachment.mac:
        pairs["MAC"] = attachment.mac
    if any(";" in text or "=" in text for pair in pairs.items() for text in pair):
        raise WherryError(Kind.INVALID, "a network argument holds \";\" or \"=\"")
    return pairs


def _static(conflist: Json, attachment: Attachment) -> dict[str, str]:
    """The addresses of a container where nobody gives any out: with the subnet's length, and its gateway."""
    wanted = [text for text in (attachment.ip, attachment.ip6) if text]
    parts = [(text, part) for text in wanted for part in conflist["wherry"]["subnets"]
             if ipaddress.ip_address(text) in ipaddress.ip_network(part["subnet"])]
    if not wanted or len(parts) < len(wanted):
        why = f"{', '.join(wanted)} is in no subnet of it" if wanted else "it gives out no addresses"
        raise WherryError(Kind.INVALID, f"network {conflist['name']}: {why}", hint="give one of its subnets with --ip")
    addresses = [f"{text}/{part['subnet'].partition('/')[2]}" for text, part in parts]
    return {"IP": ",".join(addresses), "GATEWAY": ",".join(part["gateway"] for _, part in parts)}


def port_mappings(ports: Sequence[PortMapping]) -> dict[str, object]:
    """The capability portMappings, where there are any."""
    return {"portMappings": [
        {"hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol}
        | ({"hostIP": port.host_ip} if port.host_ip else {}) for port in ports]} if ports else {}


def capabilities(conflist: Json, attachment: Attachment, ports: Sequence[PortMapping],
                  dns: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """runtimeConfig, by the conventions document; only what is asked is given."""
    given: dict[str, object] = port_mappings(ports)
    if addresses := [_checked_ip(text) for text in (attachment.ip, attachment.ip6) if text]:
        given["ips"] = addresses
    if attachment.mac:
        given["mac"] = attachment.mac
    if attachment.aliases:
        given["aliases"] = list(attachment.aliases)
    if told := {key: list(words) for key, words in dns.items() if words}:
        given["dns"] = told
    asked = _asked(attachment.options)
    if lacking := next((key for key in asked if not declares(conflist, key)), ""):
        raise WherryError(Kind.UNSUPPORTED, f"network {conflist['name']} has no plugin for {lacking}",
                          hint=f'one that declares the capability "{lacking}" belongs into its list')
    return given | asked


def _asked(options: Mapping[str, str]) -> dict[str, object]:
    """The capabilities that --driver-opt asks for."""
    texts = ("infinibandGUID", "deviceID", "cgroupPath")
    made: dict[str, object] = {key: options[key] for key in texts if key in options}
    numbers = {key: options[f"bandwidth.{key}"] for key in _BANDWIDTH if f"bandwidth.{key}" in options}
    for key, value in numbers.items():
        if not (value.isascii() and value.isdigit()):
            hint = "bits a second, or bits"
            raise WherryError(Kind.INVALID, f'bandwidth.{key}: "{value}" is not a number', hint=hint)
    if numbers:
        made["bandwidth"] = {key: int(value) for key, value in numbers.items()}
    if "ipRanges" in options:
        made["ipRanges"] = _ip_ranges(options["ipRanges"])
    for key in options:
        if key not in _ENDPOINT and not re.fullmatch(r"args\.[A-Za-z0-9_]+", key):
            hint = f"one of {', '.join(_ENDPOINT)}"
            raise WherryError(Kind.INVALID, f'endpoint option "{key}" is not known', hint=hint)
    return made


def _ip_ranges(text: str) -> list[list[Json]]:
    try:
        found = json.loads(text)
        for part in [part for group in found for part in group]:
            ipaddress.ip_network(part["subnet"])
    except (ValueError, TypeError, KeyError) as problem:
        raise WherryError(Kind.INVALID, f"ipRanges: {problem}", hint='as JSON: [[{"subnet": "10.1.0.0/24"}]]') from None
    return found  # type: ignore[no-any-return]


def declares(conflist: Json, capability: str) -> bool:
    """Whether a plugin of the list takes it."""
    return any((plugin.get("capabilities") or {}).get(capability) for plugin in conflist["plugins"])


def _checked_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        raise WherryError(Kind.INVALID, f'"{text}" is not an IP address') from None
