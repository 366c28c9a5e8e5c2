"""`_ping`, version, info, df, auth: what is asked of the whole. And what docker has beside, which is not here.

Decides docker's shape of info; every field says what is true of this host and of wherry.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

from aiohttp import web

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .call import Call, Route
from .fields import Fields
from .gate import NEWEST, OLDEST, answer, failed

__all__ = ["ROUTES"]

_HUB = "https://index.docker.io/v1/"
_DF = {"image": "Images", "container": "Containers", "volume": "Volumes", "build-cache": "BuildCache"}


async def ping(call: Call) -> web.StreamResponse:
    """Whether it answers; the headers tell the versions, and that a build is the classic one."""
    headers = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache", "Builder-Version": "1",
               "Swarm": "inactive"}  # fmt: skip
    return web.Response(text="" if call.request.method == "HEAD" else "OK", headers=headers)


async def version(call: Call) -> web.StreamResponse:
    """What serves, and which API."""
    found: Json = await call.parts.look(call.engine.version)
    whole = {**found, "ApiVersion": str(NEWEST), "MinAPIVersion": str(OLDEST)}
    kept = ("ApiVersion", "MinAPIVersion", "Arch", "KernelVersion", "Os")
    details = {**{key: str(whole[key]) for key in kept}, "Experimental": "false"}
    engine = {"Name": "Engine", "Version": found["Version"], "Details": details}
    return answer({**whole, "Components": [engine], "Experimental": False})


async def info(call: Call) -> web.StreamResponse:
    """docker's info, whole: clients read some fields without looking whether they are there."""
    found: Json = await call.parts.look(call.engine.info)
    driver = call.parts.known.docker_log_driver
    return answer({**_info(found), **found, "Plugins": _plugins(found), "LoggingDriver": driver})


def _plugins(found: Json) -> Json:
    return {"Volume": [], "Network": [], "Authorization": None, "Log": [], **found["Plugins"]}


def _info(found: Json) -> Json:
    has = set(found["CgroupControllers"])
    limits = {"MemoryLimit": "memory", "SwapLimit": "memory", "CpuCfsPeriod": "cpu", "CpuCfsQuota": "cpu",
              "CPUShares": "cpu", "CPUSet": "cpuset", "PidsLimit": "pids"}  # fmt: skip
    return {
        **{key: controller in has for key, controller in limits.items()},
        "OomKillDisable": False, "KernelMemoryTCP": False, "Debug": False, "ExperimentalBuild": False,
        "DriverStatus": [], "SystemStatus": None, "Runtimes": {"wherry": {"path": "wherry"}}, "InitBinary": "wherry",
        "IPv4Forwarding": _forwards(), "BridgeNfIptables": False, "BridgeNfIp6tables": False,
        "LiveRestoreEnabled": True,
        "NFd": len(os.listdir("/proc/self/fd")), "NGoroutines": len(asyncio.all_tasks()), "NEventsListener": 0,
        "SystemTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"), "Isolation": "", "Labels": [],
        "IndexServerAddress": _HUB, "HttpProxy": "", "HttpsProxy": "", "NoProxy": "", "OSVersion": "",
        "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8"], "IndexConfigs": {}, "Mirrors": []},
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False, "Error": "",
                  "RemoteManagers": None},
        "ContainerdCommit": {"ID": ""}, "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""}, "ProductLicense": "",
        "DefaultAddressPools": [], "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"], "GenericResources": None,
    }  # fmt: skip


def _forwards() -> bool:
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        return file.read().strip() == "1"


async def usage(call: Call) -> web.StreamResponse:
    """What takes room; `type`: only these kinds."""
    for kind in (kinds := call.texts("type")):
        if kind not in _DF:
            raise WherryError(Kind.INVALID, f"unknown object type: {kind[:80]}", hint=f"one of {', '.join(_DF)}")
    found: Json = await call.parts.wait(call.engine.system_df)
    keys = {_DF[kind] for kind in kinds} or set(_DF.values())
    return answer({key: value for key, value in found.items() if key in keys or key == "LayersSize"})


async def auth(call: Call) -> web.StreamResponse:
    """Whether a registry takes these credentials. The client keeps them, we do not."""
    given = Fields(await call.json())
    user, secret = given.text("username"), given.text("password") or given.text("identitytoken")
    if not secret:
        raise WherryError(Kind.INVALID, "no credentials are given: username and password are wanted")
    try:
        await call.parts.fetch(call.engine.login_try, given.text("serveraddress") or _HUB, user, secret)
    except WherryError as error:
        if error.kind is not Kind.DENIED:
            raise
        return answer({"message": f"unauthorized: {error.message}"}, 401)
    return answer({"Status": "Login Succeeded", "IdentityToken": ""})


# ---- what is not here ----


async def plugins(call: Call) -> web.StreamResponse:
    """docker's plugins: there are none."""
    del call
    return answer([])


async def swarm(call: Call) -> web.StreamResponse:
    """docker's words where there is no swarm."""
    del call
    return answer({"message": "This node is not a swarm manager. wherry has no swarm."}, 503)


async def absent(call: Call) -> web.StreamResponse:
    """What wherry does not have."""
    message = f"{call.request.path[:200]} is not supported by wherry"
    return failed(WherryError(Kind.UNSUPPORTED, message))


_SWARM = tuple(
    Route(method, path, swarm)
    for method in ("GET", "POST")
    for path in ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")
)
ROUTES = (
    Route("GET", "/_ping", ping), Route("HEAD", "/_ping", ping), Route("GET", "/version", version),
    Route("GET", "/info", info), Route("GET", "/system/df", usage), Route("POST", "/auth", auth),
    Route("GET", "/plugins", plugins), Route("POST", "/plugins/pull", absent), Route("POST", "/session", absent),
    Route("POST", "/swarm/init", absent), Route("POST", "/swarm/join", absent), *_SWARM,
)  # fmt: skip
