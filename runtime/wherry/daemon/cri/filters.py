"""The filters of lists: what matches all of an id, a state, a pod and labels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.pods.values import Member, Pod

from . import api_pb2 as pb

__all__ = ["matches_container", "matches_pod"]

_STATES = {"created": pb.CONTAINER_CREATED, "running": pb.CONTAINER_RUNNING, "exited": pb.CONTAINER_EXITED}


def _labelled(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(key in labels and labels[key] == value for key, value in wanted.items())


def matches_pod(pod: Pod, wanted: Any) -> bool:
    """A PodSandboxFilter, or a PodSandboxStatsFilter, which knows no state. Ids match by their beginning."""
    if not pod.id.startswith(wanted.id) or not _labelled(pod.options.labels, wanted.label_selector):
        return False
    if not isinstance(wanted, pb.PodSandboxFilter) or not wanted.HasField("state"):
        return True
    return (wanted.state.state == pb.SANDBOX_READY) is pod.ready


def matches_container(member: Member, wanted: Any) -> bool:
    """A ContainerFilter, or a ContainerStatsFilter, which knows no state."""
    if not (member.id.startswith(wanted.id) and member.pod.startswith(wanted.pod_sandbox_id)):
        return False
    if not _labelled(member.options.labels, wanted.label_selector):
        return False
    if not isinstance(wanted, pb.ContainerFilter) or not wanted.HasField("state"):
        return True
    return _STATES.get(member.state, pb.CONTAINER_UNKNOWN) == wanted.state.state
