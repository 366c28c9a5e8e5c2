"""Where a new volume goes and what it becomes; whether what is there is what is asked for.

Decides pool, backend, shape and size of a request, and what is compatible with what: in sentences, and without a step
that changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .backend import Shape
from .backend.all import BACKENDS
from .capacity import available
from .errors import CsiError
from .pools import Pool, Record, matches
from .records import Volume
from .requests import Capability, Range, Wish

__all__ = [
    "Draft", "Topology", "accessible", "backend_in", "candidates", "exclusive", "fs_of", "incompatible", "shape_in",
    "size_in", "unfit", "unlike",
]

_DEFAULT_SIZE = 1 << 30  # bytes, of a volume whose size nobody asks for
_SIZE_MAX = 2**63 - 1  # int64 of the spec

Topology = Mapping[str, str]


class Draft(NamedTuple):
    """A volume as CreateVolume asks for it."""

    name: str
    range: Range
    capabilities: Sequence[Capability]
    wish: Wish
    source: tuple[str, str] | None = None
    requisite: Sequence[Topology] = ()
    preferred: Sequence[Topology] = ()

    @property
    def access(self) -> str:
        """Mount or block."""
        return self.capabilities[0].access

    @property
    def fs(self) -> str:
        """The file system that is asked for, or ""."""
        return next((one.fs for one in self.capabilities if one.fs), "")

    @property
    def modes(self) -> tuple[str, ...]:
        """Access modes, each once."""
        return tuple(sorted({one.mode for one in self.capabilities}))

    @property
    def limits(self) -> dict[str, int]:
        """Limits that limit."""
        return {key: value for key, value in self.wish.limits.items() if value}


def candidates(pools: Sequence[Pool], draft: Draft) -> list[Pool]:
    """The pools that such a volume may lie in, best first: as preferred, then by what is left."""
    named = [pool for pool in pools if draft.wish.pool in ("", pool.name)]
    if not named:
        names = ", ".join(pool.name for pool in pools)
        raise CsiError("INVALID_ARGUMENT", f"parameters: there is no pool {draft.wish.pool!r}; there are: {names}")
    near = [pool for pool in named if accessible(pool, draft)]
    if not near:
        raise CsiError("RESOURCE_EXHAUSTED", "no pool of this node is within the topology that is required")
    if down := [pool.trouble for pool in near if not pool.up]:
        # a volume of this name may be in there: a second one must not be made
        raise CsiError("UNAVAILABLE", f"{down[0]}; or name another pool in the parameters")
    able = [pool for pool in near if backend_in(pool, draft)[0]]
    if not able:
        raise CsiError("INVALID_ARGUMENT", f"pool {near[0].name}: {backend_in(near[0], draft)[1]}")
    return able if len(able) == 1 else sorted(able, key=lambda pool: (_rank(pool, draft), -available(pool)))


def backend_in(pool: Pool, draft: Draft) -> tuple[str, str]:
    """(backend, "") or ("", why there is none) for an empty volume in this pool."""
    only_images = draft.access == "block" or draft.fs or draft.limits or draft.wish.provisioning == "thick"
    auto = ["image"] if only_images else ["directory", "image"]
    fixed = draft.wish.backend or (pool.config.backend if pool.config.backend != "auto" else "")
    why = ""
    for name in [fixed] if fixed else [name for name in auto if name in BACKENDS]:
        why = _mismatch(name, draft, pool) or BACKENDS[name].problem(pool.facts, draft.access, fs_of(name, draft))
        if not why:
            return name, ""
    return "", why


def shape_in(pool: Pool, draft: Draft, source: Record | None) -> tuple[str, Shape]:
    """The backend and the shape of a new volume in this pool."""
    backend = source.backend if source else backend_in(pool, draft)[0]
    thick = (draft.wish.provisioning == "thick") if draft.wish.provisioning or not source else source.shape.thick
    fs = source.shape.fs if source else fs_of(backend, draft)
    least = source.shape.size if source else 0
    size = size_in(draft.range, lambda size: BACKENDS[backend].fit(size, draft.access, fs), least)
    project = pool.project() if backend == "directory" else 0
    return backend, Shape(size, draft.access, fs, thick, project)


def unfit(pool: Pool, volume: Volume, capability: Capability) -> str:
    """Why a volume cannot be used in this way; "" if it can."""
    if capability.access != volume.shape.access:
        return f"it is a {volume.shape.access} volume, not a {capability.access} volume"
    if capability.fs and capability.fs != (there := volume.shape.fs or pool.facts.fs):
        return f"its file system is {there}, not {capability.fs}"
    return ""


def fs_of(backend: str, draft: Draft) -> str:
    """The file system of a new volume: images have ext4 if nobody asks for another, directories what the pool has."""
    return (draft.fs or "ext4") if backend == "image" and draft.access == "mount" else ""


def _mismatch(name: str, draft: Draft, pool: Pool) -> str:
    """Why a backend cannot be what the parameters ask for."""
    if pool.config.backend not in ("auto", name):
        return f"it keeps {pool.config.backend} volumes only, not {name}"
    if name != "directory":
        return ""
    if draft.fs and draft.fs != pool.facts.fs:
        return f"a directory has the pool's file system {pool.facts.fs}, not {draft.fs}"
    if draft.limits:
        return "a directory has no device whose io could be limited"
    return "a directory cannot be thick" if draft.wish.provisioning == "thick" else ""


def size_in(wanted: Range, fit: Callable[[int], int], least: int) -> int:
    """The bytes of a volume in this range; at least those of its source."""
    if (wanted.required and wanted.required < least) or (wanted.limit and wanted.limit < least):
        raise CsiError("OUT_OF_RANGE", f"the source has {least} bytes; a volume with its content cannot be smaller")
    ask = wanted.required or least or min(_DEFAULT_SIZE, wanted.limit or _DEFAULT_SIZE)
    size = fit(ask)
    if wanted.limit and size > wanted.limit and not wanted.required:
        size = fit(max(2 * wanted.limit - size, 0))  # the limit is no multiple: one step less
    if wanted.limit and size > wanted.limit:
        raise CsiError("OUT_OF_RANGE", f"the least size for {ask} bytes is {size}, more than the limit {wanted.limit}")
    if size > _SIZE_MAX:
        raise CsiError("OUT_OF_RANGE", f"{ask} bytes are more than any volume can have")
    return size


def accessible(pool: Pool, draft: Draft) -> bool:
    wanted = draft.requisite or draft.preferred
    return not wanted or any(matches(pool, one) for one in wanted)


def _rank(pool: Pool, draft: Draft) -> int:
    return next((n for n, one in enumerate(draft.preferred) if matches(pool, one)), len(draft.preferred))


def unlike(pool: Pool, record: Record, draft: Draft) -> str:
    """Why a source cannot become such a volume."""
    if draft.access != record.shape.access:
        return f"it is a {record.shape.access} volume, not a {draft.access} volume"
    if draft.fs and draft.fs != (there := record.shape.fs or pool.facts.fs):
        return f"its file system is {there}, not {draft.fs}"
    if draft.wish.pool not in ("", pool.name):
        return f"it is in pool {pool.name}, not in {draft.wish.pool}"
    if draft.wish.backend not in ("", record.backend):
        return f"its backend is {record.backend}, not {draft.wish.backend}"
    return _mismatch(record.backend, draft, pool) if record.backend == "directory" else ""


def incompatible(pool: Pool, volume: Volume, draft: Draft) -> str:
    """Why an existing volume is not what is asked for under its name."""
    thick = draft.wish.provisioning == "thick"
    reasons = (
        (not draft.range.holds(volume.shape.size), f"it has {volume.shape.size} bytes"),
        (volume.source != draft.source, "its content comes from elsewhere"),
        (draft.wish.provisioning and thick != volume.shape.thick, "its provisioning is the other one"),
        (draft.wish.limits and draft.limits != volume.limits, "its io limits are others"),
        (exclusive(volume) != exclusive(volume._replace(modes=draft.modes)), "it is for other access modes"),
        (not accessible(pool, draft), "it is not within the topology that is required"),
    )
    return unlike(pool, volume, draft) or next((why for wrong, why in reasons if wrong), "")


def exclusive(volume: Volume) -> bool:
    """Whether it was made for one single workload (ReadWriteOncePod): it is published once, whatever a call says."""
    return volume.modes == ("SINGLE_NODE_SINGLE_WRITER",)
