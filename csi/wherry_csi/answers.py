"""Records as the spec's messages. Decides nothing."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from csi_spec import csi_pb2

from .errors import CsiError
from .pools import Pool
from .records import Group, Snapshot, Volume

__all__ = ["condition", "group", "page", "snapshot", "topology", "volume"]

R = TypeVar("R", Volume, Snapshot)


def topology(pool: Pool) -> csi_pb2.Topology:
    """Where what is in the pool is accessible from."""
    return csi_pb2.Topology(segments=pool.topology)


def volume(pool: Pool, record: Volume) -> csi_pb2.Volume:
    """A volume."""
    answer = csi_pb2.Volume(
        capacity_bytes=record.shape.size, volume_id=record.id, accessible_topology=[topology(pool)]
    )
    if record.source:
        kind, ident = record.source
        if kind == "snapshot":
            answer.content_source.snapshot.snapshot_id = ident
        else:
            answer.content_source.volume.volume_id = ident
    return answer


def snapshot(record: Snapshot) -> csi_pb2.Snapshot:
    """A snapshot; there are none that are not ready."""
    answer = csi_pb2.Snapshot(
        size_bytes=record.shape.size,
        snapshot_id=record.id,
        source_volume_id=record.volume,
        ready_to_use=True,
        group_snapshot_id=record.group,
    )
    answer.creation_time.FromNanoseconds(record.created)
    return answer


def group(record: Group, members: Iterable[Snapshot]) -> csi_pb2.VolumeGroupSnapshot:
    """A group snapshot with its snapshots."""
    answer = csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=record.id, snapshots=map(snapshot, members), ready_to_use=True
    )
    answer.creation_time.FromNanoseconds(record.created)
    return answer


def condition(trouble: str) -> csi_pb2.VolumeCondition:
    """A condition: a message is required of a good one too."""
    return csi_pb2.VolumeCondition(abnormal=bool(trouble), message=trouble or "the volume is in order")


def page(kept: Iterable[R], most: int, token: str) -> tuple[list[R], str]:
    """A page of records in the order of their making, and the token of the next ("": there is none).

    A token names the last record of its page, so it stays good when that or others are deleted meanwhile. One that is
    none of ours is ABORTED (spec, ListVolumes).
    """
    after = _read_token(token) if token else (-1, "")
    listed = sorted((record for record in kept if _key(record) > after), key=_key)
    if not most or len(listed) <= most:
        return listed, ""
    return listed[:most], _token(_key(listed[most - 1]))


def _key(record: Volume | Snapshot) -> tuple[int, str]:
    return record.created, record.id


def _token(key: tuple[int, str]) -> str:
    plain = f"{key[0]:x}.{key[1]}".encode()
    return base64.urlsafe_b64encode(plain + b"." + f"{zlib.crc32(plain):08x}".encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        found = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        plain, _, sum_ = found.rpartition(b".")
        if f"{zlib.crc32(plain):08x}".encode() != sum_:
            raise ValueError("its sum is wrong")
        created, _, ident = plain.decode().partition(".")
        return int(created, 16), ident
    except (ValueError, binascii.Error) as error:
        raise CsiError("ABORTED", f"starting_token {token[:80]!r} is none of this driver: begin without one") from error


def members(pool: Pool, record: Group) -> Sequence[Snapshot]:
    """The snapshots of a group."""
    return [pool.snapshots[ident] for ident in record.snapshots if ident in pool.snapshots]
