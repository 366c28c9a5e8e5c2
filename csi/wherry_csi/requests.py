"""What a request may say: pure checks of every field. Decides INVALID_ARGUMENT; knows no volumes, no pools, no kernel.

Messages of the spec go in, small values of ours come out; whatever is wrong is said in a sentence that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from csi_spec import csi_pb2

from .errors import CsiError

__all__ = [
    "LIMITS", "READERS", "SHARED_MODES", "Capability", "Range", "Wish", "capabilities", "capability", "entries",
    "identity", "limits", "name", "node", "offset", "only_known", "path", "size_range", "source", "wish",
]

#: mutable parameters (VolumeAttributesClass) and the word of io.max that each is
LIMITS = {"readBps": "rbps", "writeBps": "wbps", "readIops": "riops", "writeIops": "wiops"}
#: access modes that are published read-only, whatever else the request says
READERS = ("SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY")
#: access modes with several targets on one node (spec, NodePublishVolume, second table)
SHARED_MODES = (
    "SINGLE_NODE_MULTI_WRITER", "MULTI_NODE_READER_ONLY", "MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_MULTI_WRITER",
)

_ID = re.compile(r"[a-z0-9-]{1,64}")
#: spec, CreateVolumeRequest.name: control characters other than commonly used whitespace
_BANNED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NAME_MAX = 128  # bytes; spec, Size Limits
_PATH_MAX = 4096  # limits.h, with the NUL
_MAP_MAX = 4096  # bytes; spec, Size Limits
_FILE_SYSTEMS = ("", "ext4", "xfs")
_PARAMETERS = {"pool": None, "backend": ("auto", "directory", "image"), "provisioning": ("thin", "thick")}
_OF_THE_SIDECARS = "csi.storage.k8s.io/"  # names of claims and secrets, which the sidecars add
_NO_GROUP = 2**32 - 1  # (gid_t) -1: chown(2) leaves the group as it is


class Capability(NamedTuple):
    """One VolumeCapability."""

    access: str  # "mount" or "block"
    fs: str  # "" is for the driver to choose
    mode: str  # AccessMode.Mode by name
    flags: tuple[str, ...] = ()
    group: int | None = None  # volume_mount_group

    @property
    def reads(self) -> bool:
        """Whether the mode itself is read-only."""
        return self.mode in READERS


class Range(NamedTuple):
    """CapacityRange in bytes; 0 is open."""

    required: int = 0
    limit: int = 0

    def holds(self, size: int) -> bool:
        """Whether a volume of this size satisfies it."""
        return self.required <= size and (not self.limit or size <= self.limit)


class Wish(NamedTuple):
    """A StorageClass's parameters; "" is for the driver to choose."""

    pool: str = ""
    backend: str = ""
    provisioning: str = ""
    limits: Mapping[str, int] = {}


def _wrong(message: str) -> CsiError:
    return CsiError("INVALID_ARGUMENT", message)


def identity(value: str, field: str) -> str:
    """An id of ours: volume, snapshot or group."""
    if not value:
        raise _wrong(f"{field} is missing: name the one that is meant")
    if not _ID.fullmatch(value):
        raise _wrong(f"{field} {value[:80]!r} is no id of this driver: those are 1 to 64 of a-z, 0-9 and '-'")
    return value


def name(value: str, field: str = "name") -> str:
    """A name that the orchestrator gives: it makes the call idempotent."""
    if not value:
        raise _wrong(f"{field} is missing: it tells a repeated call from a new one")
    if (length := len(value.encode())) > _NAME_MAX:
        raise _wrong(f"{field} has {length} bytes; {_NAME_MAX} are allowed")
    if found := _BANNED.search(value):
        raise _wrong(f"{field} has the control character U+{ord(found[0]):04X}; only tab and line ends are allowed")
    return value


def node(value: str) -> str:
    """A node's id, at most 256 bytes."""
    if not value:
        raise _wrong("node_id is missing: give what NodeGetInfo answers")
    if len(value.encode()) > 256:
        raise _wrong("node_id has more than 256 bytes")
    return value


def path(value: str, field: str) -> str:
    """An absolute path without dots, in its shortest writing."""
    if not value:
        raise _wrong(f"{field} is missing: give an absolute path")
    if "\0" in value:
        raise _wrong(f"{field} has a NUL byte")
    if len(value.encode()) >= _PATH_MAX:
        raise _wrong(f"{field} has {len(value.encode())} bytes; the kernel takes {_PATH_MAX - 1}")
    parts = [part for part in value.split("/") if part]
    if not value.startswith("/") or not parts:
        raise _wrong(f"{field} {value[:200]!r} is not an absolute path below the root")
    if {".", ".."} & set(parts):
        raise _wrong(f"{field} {value[:200]!r} has the component '.' or '..': give it normalized")
    if any(len(part.encode()) > 255 for part in parts):
        raise _wrong(f"{field} has a component of more than 255 bytes")
    return "/" + "/".join(parts)


def capability(message: csi_pb2.VolumeCapability, present: bool = True, field: str = "volume_capability") -> Capability:
    """One capability: access type and mode are both required."""
    if not present:
        raise _wrong(f"{field} is missing: say how the volume is used (mount or block, and the access mode)")
    access = message.WhichOneof("access_type")
    if access is None:
        raise _wrong(f"{field} has no access type: mount or block")
    mode = _mode(message.access_mode.mode, field)
    if access == "block":
        return Capability("block", "", mode)
    mount = message.mount
    if mount.fs_type not in _FILE_SYSTEMS:
        raise _wrong(f"{field}: fs_type {mount.fs_type[:40]!r} is not supported: ext4, xfs, or none to have it chosen")
    return Capability("mount", mount.fs_type, mode, _flags(mount.mount_flags), _group(mount.volume_mount_group))


def _mode(number: int, field: str) -> str:
    known = csi_pb2.VolumeCapability.AccessMode.Mode
    if number == 0 or number not in known.values():
        raise _wrong(f"{field} has no access mode that is known (it says {number})")
    return str(known.Name(number))


def _flags(found: Iterable[str]) -> tuple[str, ...]:
    words = tuple(word for flag in found for word in flag.split(",") if word)
    if sum(len(word.encode()) + 1 for word in words) > _MAP_MAX:
        raise _wrong(f"mount_flags have more than {_MAP_MAX} bytes")
    if any(_BANNED.search(word) or not word.isprintable() for word in words):
        raise _wrong("mount_flags have a control character")
    return words


def _group(value: str) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) < _NO_GROUP):
        raise _wrong(f"volume_mount_group {value[:40]!r} is no group id: digits, less than {_NO_GROUP}")
    return int(value)


def capabilities(messages: Iterable[csi_pb2.VolumeCapability]) -> list[Capability]:
    """At least one, and all of one access type and file system: one volume cannot be two things."""
    found = [capability(message, True, "volume_capabilities") for message in messages]
    if not found:
        raise _wrong("volume_capabilities are missing: say how the volume is used")
    if len({one.access for one in found}) > 1:
        raise _wrong("volume_capabilities ask for mount and block of one volume: it is made as one of them")
    if len({one.fs for one in found if one.fs}) > 1:
        raise _wrong("volume_capabilities ask for two file systems in one volume")
    return found


def size_range(message: csi_pb2.CapacityRange, present: bool, required: bool = False) -> Range:
    """A capacity range; not given at all it is open, if it need not be given."""
    if not present:
        if required:
            raise _wrong("capacity_range is missing: say how large the volume is to be")
        return Range()
    found = Range(message.required_bytes, message.limit_bytes)
    if min(found) < 0:
        raise _wrong("capacity_range has a negative number of bytes")
    if found == (0, 0):
        raise _wrong("capacity_range is empty: required_bytes or limit_bytes is needed")
    if found.limit and found.required > found.limit:
        raise _wrong(f"capacity_range: required_bytes {found.required} is more than limit_bytes {found.limit}")
    return found


def only_known(given: Mapping[str, str], what: str) -> None:
    """Parameters of calls that take none but the sidecars' own."""
    _small(given, what)
    for key in given:
        if not key.startswith(_OF_THE_SIDECARS):
            raise _wrong(f"{what}: {key[:80]!r} is not known; there are none")


def wish(parameters: Mapping[str, str], mutable: Mapping[str, str]) -> Wish:
    """The parameters of a volume; mutable ones win over the others (spec, CreateVolume)."""
    _small(parameters, "parameters")
    found, bounds = {}, {}
    for key, value in parameters.items():
        if key in LIMITS:
            bounds[key] = value
        elif key in _PARAMETERS:
            found[key] = _choice(key, value, _PARAMETERS[key])
        elif not key.startswith(_OF_THE_SIDECARS):
            raise _wrong(f"parameters: {key[:80]!r} is not known; known are {', '.join([*_PARAMETERS, *LIMITS])}")
    return Wish(**found, limits=limits({**bounds, **mutable}))


def _choice(key: str, value: str, allowed: tuple[str, ...] | None) -> str:
    if allowed is not None and value not in allowed:
        raise _wrong(f"parameters: {key} {value[:80]!r} is not one of {', '.join(allowed)}")
    return "" if value == "auto" else value


def limits(mutable: Mapping[str, str], required: bool = False) -> dict[str, int]:
    """Mutable parameters: 0 stands for no limit."""
    _small(mutable, "mutable_parameters")
    if required and not mutable:
        raise _wrong("mutable_parameters are missing: say what is to change")
    return {key: _limit(key, value) for key, value in mutable.items()}


def _limit(key: str, value: str) -> int:
    if key not in LIMITS:
        raise _wrong(f"mutable_parameters: {key[:80]!r} is not known; known are {', '.join(LIMITS)}")
    if value == "max":
        return 0
    if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) < 2**63):
        raise _wrong(f"mutable_parameters: {key} {value[:40]!r} is no positive whole number (0 or max: no limit)")
    return int(value)


def _small(given: Mapping[str, str], what: str) -> None:
    if sum(len(key.encode()) + len(value.encode()) for key, value in given.items()) > _MAP_MAX:
        raise _wrong(f"{what} have more than {_MAP_MAX} bytes")


def source(message: csi_pb2.VolumeContentSource, present: bool) -> tuple[str, str] | None:
    """("snapshot" or "volume", id) of what a volume is filled from."""
    if not present:
        return None
    kind = message.WhichOneof("type")
    if kind is None:
        raise _wrong("volume_content_source names neither a snapshot nor a volume")
    if kind == "snapshot":
        return kind, identity(message.snapshot.snapshot_id, "volume_content_source.snapshot.snapshot_id")
    return kind, identity(message.volume.volume_id, "volume_content_source.volume.volume_id")


def entries(number: int) -> int:
    """max_entries; 0: all."""
    if number < 0:
        raise _wrong("max_entries is negative")
    return number


def offset(number: int, size: int) -> int:
    """starting_offset of a metadata stream in a volume of `size` bytes."""
    if not 0 <= number <= size:
        raise CsiError("OUT_OF_RANGE", f"starting_offset {number} is not within the volume's {size} bytes")
    return number
