"""Calls about the runtime itself: its version, how it is, what it is told."""

from __future__ import annotations

import ipaddress
import json
import logging
from typing import TYPE_CHECKING

import wherry
from wherry.engine.pods.features import Features
from wherry.errors import Kind, WherryError

from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["About"]

_log = logging.getLogger("wherryd.cri")
_DRIVERS = {"systemd": pb.SYSTEMD, "cgroupfs": pb.CGROUPFS}


class About:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._engine, self._work = parts, parts.engine, parts.work

    async def Version(self, _request: pb.VersionRequest) -> pb.VersionResponse:
        """Who we are. `version` is the kubelet's API version, 0.1.0 since ever."""
        return pb.VersionResponse(
            version="0.1.0", runtime_name="wherry", runtime_version=wherry.__version__, runtime_api_version="v1"
        )

    async def Status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        """Whether pods can be run, and what pods can be."""
        features = await self._work.look(self._engine.pod_features)
        made = pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=[_condition("RuntimeReady", ""), _network(features)]),
            runtime_handlers=[_handler(name, features) for name in ("", *features.handlers)],
            features=pb.RuntimeFeatures(
                supplemental_groups_policy=True, user_namespaces_host_network=features.userns_host_network,
                mount_options=True,
            ),
        )
        if request.verbose:
            made.info["config"] = json.dumps(await self._work.look(self._told, features))
        return made

    def _told(self, features: Features) -> dict[str, object]:
        info = self._engine.info()
        return {"place": self._engine.place._asdict(), "features": features._asdict(), "info": info}

    async def RuntimeConfig(self, _request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """Which cgroup driver the kubelet has to follow."""
        features = await self._work.look(self._engine.pod_features)
        driver = _DRIVERS[features.cgroup_driver]
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(self, request: pb.UpdateRuntimeConfigRequest) -> pb.UpdateRuntimeConfigResponse:
        """The node's pod CIDR. Pods get addresses by the CNI lists of the node, whose author knows it: it is checked,
        told, and changes nothing, as with every runtime that is given its lists."""
        cidr = request.runtime_config.network_config.pod_cidr
        for part in filter(None, cidr.split(",")):
            try:
                ipaddress.ip_network(part.strip(), strict=False)
            except ValueError as error:
                raise WherryError(Kind.INVALID, f"pod_cidr is no network: {part[:80]!r}") from error
        if cidr:
            _log.info("the pods of this node are to be in %s", cidr)
        return pb.UpdateRuntimeConfigResponse()


def _condition(kind: str, trouble: str, reason: str = "") -> pb.RuntimeCondition:
    return pb.RuntimeCondition(type=kind, status=not trouble, reason=reason if trouble else "", message=trouble)


def _network(features: Features) -> pb.RuntimeCondition:
    return _condition("NetworkReady", features.network, "NetworkPluginNotReady")


def _handler(name: str, features: Features) -> pb.RuntimeHandler:
    own = name in ("", "wherry")
    able = pb.RuntimeHandlerFeatures(
        recursive_read_only_mounts=features.recursive_readonly and own, user_namespaces=features.userns and own
    )
    return pb.RuntimeHandler(name=name, features=able)
