"""`inspect`: docker's container object, put together from the row, the files and one look. Decides shapes only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wherry.errors import Kind, WherryError
from wherry.model import Json, RunOptions

from . import codec, health, images, limits, rootfs, security
from .house import House
from .status import Seen, look

if TYPE_CHECKING:
    from .db import Container

__all__ = ["bundle_config", "config_of", "inspect", "network_mode", "networks", "port_map", "ports", "sizes"]

_NEVER = "0001-01-01T00:00:00Z"


def when(moment: float) -> str:
    """RFC 3339 in UTC; docker's year one for never."""
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z") if moment else _NEVER


def inspect(house: House, ref: str, type: str, *, size: bool) -> Json:
    """The verb."""
    kinds: dict[str, Callable[[], Json]] = {
        "container": lambda: container(house, house.db.find(ref), size=size),
        "image": lambda: images.inspect(house, ref),
        "volume": lambda: _volume(house, ref),
        "network": lambda: _network(house, ref),
    }
    if type and type not in kinds:
        raise WherryError(Kind.INVALID, f'"{type}" is not a type to inspect', hint=f"one of {', '.join(kinds)}")
    for get in [kinds[type]] if type else list(kinds.values()):
        try:
            return get()
        except WherryError as error:
            if type or error.kind not in (Kind.NOT_FOUND, Kind.INVALID):
                raise
    raise WherryError(Kind.NOT_FOUND, f"no such object: {ref}")


def bundle_config(house: House, ref: str) -> Json:
    """What the launcher was given."""
    try:
        with open(f"{house.container_dir(house.db.find(ref).id)}/config.json", encoding="utf-8") as file:
            found: Json = json.load(file)
    except FileNotFoundError:
        return {}
    return found


def _volume(house: House, ref: str) -> Json:
    from . import volumes

    return volumes.inspect(house, ref)


def _network(house: House, ref: str) -> Json:
    from . import networks as verbs

    return verbs.inspect(house, ref)


# ---- network ----


def network_mode(row: Container) -> str:
    """HostConfig.NetworkMode."""
    given = row.config["options"].get("network") or [{"network": "bridge"}]
    return str(given[0]["network"])


def _facts(seen: Seen) -> list[Json]:
    extra = seen.state.extra if seen.state and seen.running else {}
    found: list[Json] = (extra.get("net") or {}).get("networks") or []
    return found


def networks(row: Container, seen: Seen) -> Json:
    """NetworkSettings.Networks."""
    have = {fact["network"]: fact for fact in _facts(seen)}
    asked = row.config["options"].get("network") or []
    names = [item["network"] for item in asked if not item["network"].startswith("container:")]
    return {name: _endpoint(have.get(name), item) for name, item in zip(names, asked, strict=False)}


def _endpoint(fact: Json | None, asked: Json) -> Json:
    pairs = [pair for interface in (fact or {}).get("interfaces", ()) for pair in interface["addresses"]]
    v4, v6 = _split(pairs, ":", False), _split(pairs, ":", True)
    mac = next((i["mac"] for i in (fact or {}).get("interfaces", ()) if i["mac"]), "")
    return {
        "IPAMConfig": _asked_addresses(asked) or None,
        "Links": None,
        "Aliases": list(asked.get("aliases") or ()) or None,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": v4[2],
        "IPAddress": v4[0],
        "IPPrefixLen": v4[1],
        "IPv6Gateway": v6[2],
        "GlobalIPv6Address": v6[0],
        "GlobalIPv6PrefixLen": v6[1],
        "MacAddress": mac,
        "DriverOpts": dict(asked.get("options") or {}) or None,
        "GwPriority": asked.get("priority", 0),
    }


def _asked_addresses(asked: Json) -> Json:
    given = [asked[key] for key in ("ip", "ip6") if asked.get(key)]
    return {"IPv6Address" if ":" in text else "IPv4Address": text for text in given}


def _split(pairs: list[list[str]], mark: str, wanted: bool) -> tuple[str, int, str]:
    for address, gateway in pairs:
        if (mark in address) is wanted:
            host, _, length = address.partition("/")
            return host, int(length or 0), gateway
    return "", 0, ""


def port_map(seen: Seen) -> dict[str, list[dict[str, str]]]:
    """What is published now. A port of every address is one of 0.0.0.0 and one of ::, as far as the container has such
    addresses: there is nothing between the families that would translate."""
    found: dict[str, list[dict[str, str]]] = {}
    for fact in _facts(seen):
        every = [pair[0] for interface in fact["interfaces"] for pair in interface["addresses"]]
        wild = [text for text, mark in (("0.0.0.0", "."), ("::", ":")) if any(mark in a for a in every)]  # noqa: S104
        for port in fact["ports"]:
            key = f"{port['container_port']}/{port.get('protocol', 'tcp')}"
            for address in [port["host_ip"]] if port.get("host_ip") else wild:
                found.setdefault(key, []).append({"HostIp": address, "HostPort": str(port.get("host_port", 0))})
    return found


def ports(house: House, ref: str) -> dict[str, list[dict[str, str]]]:
    """`port`."""
    return port_map(look(house, house.db.find(ref).id))


def _identified(house: House, row: Container, seen: Seen) -> Json:
    """NetworkSettings.Networks with the ids; apart, since `ps` has no use for them."""
    every = networks(row, seen)
    for name, endpoint in every.items():
        try:
            network = house.networks.inspect(name)
        except WherryError:
            continue  # a CNI list of the host that was taken away
        endpoint["NetworkID"] = network["Id"]
        endpoint["EndpointID"] = network["Containers"].get(row.id, {}).get("EndpointID", "")
    return every


def _network_settings(house: House, row: Container, seen: Seen) -> Json:
    every = _identified(house, row, seen)
    first: Json = next(iter(every.values()), {})
    published: dict[str, Any] = dict.fromkeys(row.config["exposed"]) if seen.running else {}
    keys = ("Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen",
            "MacAddress", "EndpointID")  # fmt: skip
    return {
        "Bridge": "",
        "SandboxID": row.id if seen.running else "",
        "SandboxKey": f"/proc/{seen.pid}/ns/net" if seen.pid else "",
        "Ports": {**published, **port_map(seen)},
        **{key: first.get(key, "") for key in keys},
        "Networks": every,
    }


# ---- the object ----


def sizes(house: House, row: Container) -> tuple[int, int]:
    """Bytes written, and bytes of the image below."""
    try:
        upper = house.snapshots.written(row.id)
    except WherryError:
        upper = 0
    try:
        return upper, house.images.get(row.image).size
    except WherryError:
        return upper, 0


def _state(seen: Seen) -> Json:
    life = seen.life
    state: Json = {
        "Status": seen.status,
        "Running": seen.running,
        "Paused": seen.status == "paused",
        "Restarting": seen.status == "restarting",
        "OOMKilled": life.oom and not seen.running,
        "Dead": False,
        "Pid": seen.pid,
        "ExitCode": 0 if seen.running else life.code,
        "Error": "" if seen.running else life.error,
        "StartedAt": when(life.started),
        "FinishedAt": when(life.finished),
    }
    if seen.health:
        state["Health"] = {key: seen.health[key] for key in ("Status", "FailingStreak", "Log")}
    return state


def config_of(row: Container, options: RunOptions) -> Json:
    """docker's Config of a container."""
    image = codec.decode_image(row.config["image_config"])
    entry = list(options.entrypoint) if options.entrypoint is not None else list(image.entrypoint)
    return {
        "Hostname": row.config["hostname"],
        "Domainname": options.domainname,
        "User": options.user or image.user,
        "AttachStdin": options.interactive and not options.detach,
        "AttachStdout": not options.detach,
        "AttachStderr": not options.detach,
        "ExposedPorts": {port: {} for port in row.config["exposed"]},
        "Tty": options.tty,
        "OpenStdin": options.interactive,
        "StdinOnce": options.interactive and not options.detach,
        "Env": _env(row, options),
        "Cmd": list(options.command) or (None if options.entrypoint is not None else list(image.cmd)),
        "Healthcheck": health.shape(options, image),
        "Image": row.config["image_name"],
        "Volumes": {path: {} for path in image.volumes} or None,
        "WorkingDir": options.workdir or image.workdir,
        "Entrypoint": [part for part in entry if part] or None,
        "Labels": row.config["labels"],
        "StopSignal": _signal(row.config["stop_signal"]),
        "StopTimeout": options.stop_timeout,
    }


def _signal(number: int) -> str:
    import signal

    if signal.SIGRTMIN < number < signal.SIGRTMAX:  # the enum names the two ends only
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name


def _env(row: Container, options: RunOptions) -> list[str]:
    from .specgen import PATH

    image = codec.decode_image(row.config["image_config"])
    merged = {item.partition("=")[0]: item for item in (PATH, *image.env, *options.env)}
    return list(merged.values())


def _host_config(row: Container, options: RunOptions) -> Json:
    found = limits.shape(options.limits)
    chosen = security.parse(options)
    log = options.log
    return {
        "Binds": [_bind(mount) for mount in row.config["mounts"] if mount["Type"] == "bind"],
        "ContainerIDFile": options.cidfile,
        "LogConfig": {"Type": row.config["log"]["driver"], "Config": dict(log.options)},
        "NetworkMode": network_mode(row),
        "PortBindings": _bindings(row),
        "RestartPolicy": {"Name": options.restart.name, "MaximumRetryCount": options.restart.max_retries},
        "AutoRemove": options.remove,
        "VolumeDriver": "",
        "VolumesFrom": list(options.volumes_from) or None,
        "CapAdd": list(options.cap_add) or None,
        "CapDrop": list(options.cap_drop) or None,
        "CgroupnsMode": options.cgroupns or "private",
        "Dns": list(options.dns),
        "DnsOptions": list(options.dns_option),
        "DnsSearch": list(options.dns_search),
        "ExtraHosts": list(options.add_host) or None,
        "GroupAdd": list(options.group_add) or None,
        "IpcMode": options.ipc or "private",
        "Cgroup": "",
        "CgroupParent": options.cgroup_parent,
        "OomScoreAdj": options.oom_score_adj or 0,
        "PidMode": options.pid,
        "Privileged": options.privileged,
        "PublishAllPorts": options.publish_all,
        "ReadonlyRootfs": options.read_only,
        "SecurityOpt": list(options.security_opt) or None,
        "Tmpfs": {m["Destination"]: ",".join(m["Options"]) for m in row.config["mounts"] if m["Type"] == "tmpfs"},
        "UTSMode": options.uts,
        "UsernsMode": options.userns,
        "ShmSize": options.shm_size if options.shm_size is not None else 64 << 20,
        "Sysctls": dict(options.sysctls),
        "Runtime": "wherry",
        "Init": options.init,
        "Devices": [_device(text) for text in options.devices],
        "Ulimits": [_ulimit(text) for text in options.ulimits],
        "Annotations": dict(options.annotations) or None,
        "Profile": chosen.profile,
        **found,
    }


def _bind(mount: Json) -> str:
    options = ",".join(mount["Options"])
    return f"{mount['Source']}:{mount['Destination']}" + (f":{options}" if options else "")


def _bindings(row: Container) -> Json:
    found: dict[str, list[Json]] = {}
    for port in row.config["ports"]:
        key = f"{port['container_port']}/{port.get('protocol', 'tcp')}"
        host = str(port["host_port"]) if port.get("host_port") else ""
        found.setdefault(key, []).append({"HostIp": port.get("host_ip", ""), "HostPort": host})
    return found


def _device(text: str) -> Json:
    source, _, rest = text.partition(":")
    target, _, access = rest.partition(":")
    return {"PathOnHost": source, "PathInContainer": target or source, "CgroupPermissions": access or "rwm"}


def _ulimit(text: str) -> Json:
    name, _, value = text.partition("=")
    soft, _, hard = value.partition(":")
    numbers = [int(part) if part.lstrip("-").isdigit() else -1 for part in (soft, hard or soft)]
    return {"Name": name, "Soft": numbers[0], "Hard": numbers[1]}


def _paths(house: House, row: Container) -> Json:
    folder, log = house.container_dir(row.id), row.config["log"]["file"]
    names = {"ResolvConfPath": "resolv.conf", "HostnamePath": "hostname", "HostsPath": "hosts"}
    found = {key: f"{folder}/{name}" if os.path.exists(f"{folder}/{name}") else "" for key, name in names.items()}
    return {**found, "LogPath": os.path.join(folder, log) if log else ""}


def _driver(house: House, row: Container) -> Json:
    try:
        mount = rootfs.mounts(house, row.id)[0]
    except WherryError:
        return {"Name": "overlay", "Data": {}}
    values = dict(option.partition("=")[::2] for option in mount.options if "=" in option)
    names = {"LowerDir": "lowerdir", "UpperDir": "upperdir", "WorkDir": "workdir"}
    return {"Name": "overlay", "Data": {key: values.get(name, "") for key, name in names.items()}}


def container(house: House, row: Container, *, size: bool) -> Json:
    """docker's container object."""
    seen = look(house, row.id)
    options = codec.decode_options(row.config["options"])
    made: Json = {
        "Id": row.id,
        "Created": when(row.created),
        "Path": row.config["argv"][0],
        "Args": row.config["argv"][1:],
        "State": _state(seen),
        "Image": row.image,
        **_paths(house, row),
        "Name": f"/{row.name}",
        "RestartCount": seen.life.restarts,
        "Driver": "overlay",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": _host_config(row, options),
        "GraphDriver": _driver(house, row),
        "Mounts": row.config["mounts"],
        "Config": config_of(row, options),
        "NetworkSettings": _network_settings(house, row, seen),
        "Degraded": list(seen.state.degraded) if seen.state else [],
    }
    if size:
        upper, lower = sizes(house, row)
        made |= {"SizeRw": upper, "SizeRootFs": upper + lower}
    return made
