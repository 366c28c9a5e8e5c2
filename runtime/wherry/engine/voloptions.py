"""`-d DRIVER` and `-o KEY=VALUE` of volumes: what they ask for. Pure.

Decides who serves a volume: a plain one of the built-in driver is a directory of ours; one that has a size, a file
system or another wish that a directory cannot keep is served by wherry's own CSI driver; an endpoint names any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["LOCAL", "OWN", "Request", "limits", "read", "size"]

LOCAL = "local"
OWN = "csi.wherry.dev"  # our driver's name, by which `-d` and `inspect` call it
_SOCKET = "unix://"
_SIZE = r"(?a)(\d{1,15}(?:\.\d{1,9})?) ?(?:([kmgtpe])i?)?b?"
_UNITS = " kmgtpe"
_SIZE_HELP = "a number of bytes with a unit: 512m, 2G, 1.5t (powers of 1024)"
#: what a limit is called here, by the driver (VolumeAttributesClass), and in the OCI configuration's blockIO
_LIMITS = {
    "read-bps": ("readBps", "throttleReadBpsDevice"),
    "write-bps": ("writeBps", "throttleWriteBpsDevice"),
    "read-iops": ("readIops", "throttleReadIOPSDevice"),
    "write-iops": ("writeIops", "throttleWriteIOPSDevice"),
}
_BIND = frozenset({"type", "o", "device"})
_PARAMETERS = frozenset({"backend", "pool", "provisioning"})
_COMMON = frozenset({"size", "fs", "access"})
_OF_OWN = _COMMON | _PARAMETERS | set(_LIMITS)
_OWN_HELP = f"-o size=2G, and of {', '.join(sorted(_OF_OWN - {'size'}))} what is wanted"
_WORDS = {"fs": ("ext4", "xfs"), "backend": ("auto", "directory", "image"), "provisioning": ("thin", "thick"),
          "access": ("mount", "block")}  # fmt: skip


class Request(NamedTuple):
    """A volume that a CSI driver is to make. `driver`: OWN, or unix:///PATH. `size` in bytes, 0: as the driver will."""

    driver: str
    size: int = 0
    fs: str = ""
    access: str = "mount"
    parameters: Mapping[str, str] = {}
    mutable: Mapping[str, str] = {}


def read(driver: str, options: Mapping[str, str]) -> Request | None:
    """What is asked for; None: a directory, or a bind, of the built-in driver."""
    if _is_endpoint(driver):
        return _of_foreign(_endpoint(driver), options)
    if driver not in (LOCAL, OWN):
        hint = f"the built-in ones are {LOCAL} and {OWN}; another CSI driver is named by its socket: -d unix:///PATH.sock"
        raise WherryError(Kind.NOT_FOUND, f'volume driver "{driver}" is not there', hint=hint)
    if driver == LOCAL and not _OF_OWN & set(options):
        return None
    return _of_own(options)


def _is_endpoint(driver: str) -> bool:
    return driver.startswith((_SOCKET, "/"))


def _endpoint(driver: str) -> str:
    path = driver.removeprefix(_SOCKET)
    if not path.startswith("/") or "\0" in path or os.path.normpath(path) != path:
        raise WherryError(Kind.INVALID, f'"{driver}" is no endpoint', hint="an absolute path: unix:///run/x/csi.sock")
    return _SOCKET + path


def _of_own(options: Mapping[str, str]) -> Request:
    if unknown := sorted(set(options) - _OF_OWN):
        why = "does not go with a volume that has a size" if unknown[0] in _BIND else "is unknown"
        raise WherryError(Kind.INVALID, f'volume option "{unknown[0]}" {why}', hint=_OWN_HELP)
    for key, words in _WORDS.items():
        _choose(key, options, words)
    if "size" not in options:
        raise WherryError(Kind.INVALID, "a volume of the driver needs a size", hint="add -o size=2G")
    parameters = {key: options[key] for key in sorted(_PARAMETERS & set(options))}
    return _common(OWN, options)._replace(parameters=parameters, mutable=_mutable(options))


def _of_foreign(driver: str, options: Mapping[str, str]) -> Request:
    """The driver knows its parameters: what is not size, fs or access is handed on."""
    _choose("access", options, _WORDS["access"])
    return _common(driver, options)._replace(parameters={k: v for k, v in options.items() if k not in _COMMON})


def _common(driver: str, options: Mapping[str, str]) -> Request:
    access, fs = options.get("access", "mount"), options.get("fs", "")
    if access == "block" and fs:
        raise WherryError(Kind.INVALID, "a block volume has no file system", hint="leave fs or access=block out")
    return Request(driver, size(options["size"]) if "size" in options else 0, fs, access)


def _choose(key: str, options: Mapping[str, str], words: tuple[str, ...]) -> None:
    if options.get(key, words[0]) not in words:
        raise WherryError(Kind.INVALID, f'invalid {key}="{options[key]}"', hint=f"one of {', '.join(words)}")


def size(text: str, what: str = "size") -> int:
    """Bytes of "2G" and the like, at least 1."""
    found = re.fullmatch(_SIZE, text.lower())
    number = int(float(found[1]) * 1024 ** _UNITS.index(found[2] or " ")) if found else 0
    if not 0 < number < 1 << 63:
        raise WherryError(Kind.INVALID, f'invalid {what}="{text[:80]}"', hint=_SIZE_HELP)
    return number


def limits(options: Mapping[str, str]) -> dict[str, int]:
    """io limits by the OCI configuration's names: bytes or operations a second."""
    return {_LIMITS[key][1]: _rate(key, options[key]) for key in _LIMITS if key in options}


def _mutable(options: Mapping[str, str]) -> dict[str, str]:
    return {_LIMITS[key][0]: str(_rate(key, options[key])) for key in _LIMITS if key in options}


def _rate(key: str, text: str) -> int:
    if key.endswith("iops") and not re.fullmatch(r"[1-9]\d{0,11}", text, re.ASCII):
        raise WherryError(Kind.INVALID, f'invalid {key}="{text[:80]}"', hint="operations a second: 500")
    return int(text) if key.endswith("iops") else size(text, key)
