"""What of the settings only wherryd can judge, before it serves. Decides what is wrong, and says so."""

from __future__ import annotations

import ipaddress
import re

from wherry.engine.config import Settings
from wherry.errors import Kind, WherryError

from .log import FORMATS, LEVELS

__all__ = ["address", "settings"]

_PLUGIN_SECONDS = 60  # the kubelet's own patience is two minutes
_LOG_DRIVERS = ("json-file", "local", "journald", "none")
_DRIVERS = ("auto", "cgroupfs", "systemd")


def settings(path: str, known: Settings) -> None:
    """INVALID, naming the key, for a value that could not be served."""
    _one_of(path, "pod_cgroup_driver", known.pod_cgroup_driver, _DRIVERS)
    _one_of(path, "log_level", known.log_level, tuple(LEVELS))
    _one_of(path, "log_format", known.log_format, FORMATS)
    _one_of(path, "docker_log_driver", known.docker_log_driver, _LOG_DRIVERS)
    if known.nri_socket and not known.nri_socket.startswith("/"):
        message = f"{path}: nri_socket must be an absolute path, not {known.nri_socket[:80]!r}"
        raise WherryError(Kind.INVALID, message, hint="plugins look at /var/run/nri/nri.sock")
    if not 0 < known.nri_timeout <= _PLUGIN_SECONDS:
        raise WherryError(Kind.INVALID, f"{path}: nri_timeout must be 1 to {_PLUGIN_SECONDS} seconds")
    for name, program in known.handlers.items():
        _handler(path, name, program)
    _address(path, "stream_address", known.stream_address, hint="127.0.0.1:0 is any free port of this host")
    if known.otlp_endpoint and not re.match(r"https?://[^/]", known.otlp_endpoint):
        message = f"{path}: otlp_endpoint must be an http or https URL, not {known.otlp_endpoint[:80]!r}"
        raise WherryError(Kind.INVALID, message, hint="such as http://127.0.0.1:4318")
    if known.docker_tcp:
        _address(path, "docker_tcp", known.docker_tcp, hint="such as 0.0.0.0:2376")
        from .docker import tls

        tls.context(tls.Files.of(known))


def _handler(path: str, name: str, program: object) -> None:
    """A RuntimeClass handler: a DNS label, and a program by its whole path."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise WherryError(Kind.INVALID, f"{path}: {name[:80]!r} is no name of a handler", hint="a DNS label, as crun")
    if not isinstance(program, str) or not program.startswith("/"):
        raise WherryError(Kind.INVALID, f"{path}: handler {name} needs the absolute path of an OCI runtime")


def _address(path: str, key: str, value: str, hint: str) -> None:
    try:
        address(value)
    except ValueError as error:
        raise WherryError(Kind.INVALID, f"{path}: {key} must be ADDRESS:PORT, not {value[:80]!r}", hint=hint) from error


def _one_of(path: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise WherryError(Kind.INVALID, f"{path}: {key} must be one of {', '.join(known)}, not {value[:80]!r}")


def address(text: str) -> tuple[str, int]:
    """ADDRESS:PORT or [ADDRESS]:PORT of an IP address; ValueError."""
    host, _, port = text.rpartition(":")
    number = int(port)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), number
