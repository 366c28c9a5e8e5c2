"""resolv.conf, hosts and hostname of a pod: one set for all its containers.

Decides what comes from the request and what from the host. The lines are net/files.py's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from wherry.engine.house import House
from wherry.kernel import files as kernel
from wherry.net import files as texts

from . import records
from .values import PodOptions

__all__ = ["write"]

_HOSTS = "/etc/hosts"
_MAX = 1 << 20  # bytes of the host's hosts file


def write(house: House, pod: str, options: PodOptions, hostname: str, ips: Sequence[str]) -> dict[str, str]:
    """Write them below the pod's directory: path inside -> file of the host."""
    place = records.directory(house, pod)
    made = {
        "/etc/resolv.conf": _resolv(options),
        "/etc/hosts": _hosts(options, hostname, ips),
        "/etc/hostname": texts.hostname_file(hostname),
    }
    found = {inside: f"{place}/{os.path.basename(inside)}" for inside in made}
    for inside, text in made.items():
        fd = os.open(found[inside], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
    return found


def _resolv(options: PodOptions) -> str:
    """What a DNSConfig says and nothing else; without one the host's, as far as it helps in another network."""
    shared = options.network == "host"
    if options.has_dns:
        return texts.resolv_conf("", options.dns, options.dns_search, options.dns_option, same_namespace=True)
    return texts.resolv_conf(texts.host_resolv_conf(), same_namespace=shared)


def _hosts(options: PodOptions, hostname: str, ips: Sequence[str]) -> str:
    """The kubelet mounts one of its own over it, but where the pod has the host's network."""
    if options.network == "host":
        try:
            return kernel.read_capped(_HOSTS, _MAX).decode("utf-8", "surrogateescape")
        except OSError:
            return texts.hosts_file(())
    return texts.hosts_file([texts.HostEntry(tuple(ips), (hostname,))] if ips else [])
