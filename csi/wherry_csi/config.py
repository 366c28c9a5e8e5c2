"""How the driver is told what to do: flags over csi.toml over the environment. Decides what a configuration may say;
looks at no directory: whether a pool can be had is the pool's to say."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["DEFAULT_CONFIG", "DEFAULT_ENDPOINT", "SPECS", "Config", "ConfigError", "PoolConfig", "make", "size"]

DEFAULT_CONFIG = "/etc/wherry/csi.toml"
DEFAULT_ENDPOINT = "unix:///run/wherry/csi.sock"
#: versions of the spec whose capabilities can be declared: an orchestrator of 1.11 need not know those of 1.12
SPECS = ("1.11", "1.12")

#: a topology value and the name part of a topology key (spec, Topology)
_SEGMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SOCKET_MAX = 107  # sun_path of unix(7), with the NUL
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d{1,15})\s*([kmgt]?)(?:i?b)?")
_TOP = {
    "endpoint": str, "node_id": str, "idle": (int, float), "controller_publish": bool, "max_volumes": int, "spec": str,
    "expand_on_node": bool,
    "pool": list,
}
_POOL = {"name": str, "path": str, "mount": bool, "backend": str, "reserve": (int, str), "overprovision": (int, float)}


class ConfigError(Exception):
    """The configuration is wrong; the message says where, why and what to write."""


class PoolConfig(NamedTuple):
    """One pool."""

    name: str
    path: str
    mount: bool = False  # it must be a mount point: an empty directory below an unmounted disk is no pool
    backend: str = "auto"
    reserve: int = 0  # bytes of its file system that are left alone
    overprovision: float = 1.0


class Config(NamedTuple):
    """All that the driver is told."""

    endpoint: str
    node_id: str
    pools: tuple[PoolConfig, ...]
    idle: float = 0.0  # seconds without a call after which it leaves; 0: it stays
    controller_publish: bool = False
    max_volumes: int = 0  # ControllerPublish refuses more on this node; 0: no limit
    spec: str = SPECS[-1]
    expand_on_node: bool = False  # the controller of another node cannot: NodeExpandVolume grows what is not grown yet

    @property
    def socket(self) -> str:
        """The path of the socket."""
        return self.endpoint.removeprefix("unix:").removeprefix("//")


def make(
    flags: Mapping[str, Any], file: str | None, env: Mapping[str, str], node: str, pools: Sequence[str] = ()
) -> Config:
    """The configuration of these flags (None: not given), this csi.toml and environment; `node` is the host's name.

    Pools on the command line take the place of the file's; then the default file is not read at all.
    """
    found = _file(file, bool(pools))
    listed = tuple(_flag(text) for text in pools) or tuple(_table(n, part) for n, part in enumerate(found["pool"]))
    chosen = {key: value for key, value in flags.items() if value is not None}
    base = {"endpoint": env.get("CSI_ENDPOINT") or DEFAULT_ENDPOINT, "node_id": node}
    plain = {key: value for key, value in found.items() if key != "pool"}
    return _checked(Config(**{**base, **plain, **chosen}, pools=listed))


def _file(path: str | None, unneeded: bool) -> dict[str, Any]:
    name = path or DEFAULT_CONFIG
    try:
        if path is None and (unneeded or not os.path.exists(name)):
            return {"pool": []}
        with open(name, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error
    _types(name, found, _TOP)
    for number, part in enumerate(found.setdefault("pool", [])):
        _types(f"{name}: pool {number + 1}", part, _POOL)
    return found


def _types(where: str, found: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise ConfigError(f"{where} is not a table: write [[pool]]")
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{where}: {key!r} is not known{hint}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            raise ConfigError(f"{where}: {key} is {value!r}, which is of the wrong type")


def _flag(text: str) -> PoolConfig:
    """[NAME=]DIR of --pool."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = os.path.basename(os.path.normpath(text)), text
    return _pool(PoolConfig(name, path))


def _table(number: int, part: Mapping[str, Any]) -> PoolConfig:
    if "path" not in part:
        raise ConfigError(f"pool {number + 1} has no path: write path = \"/srv/volumes\"")
    name = part.get("name", os.path.basename(os.path.normpath(part["path"])))
    numbers = {"reserve": size(part.get("reserve", 0)), "overprovision": float(part.get("overprovision", 1))}
    return _pool(PoolConfig(**{**part, "name": name, **numbers}))


def size(text: int | str) -> int:
    """Bytes of 1048576, "512M" or "10GiB" (units of 1024)."""
    if isinstance(text, int):
        text = str(text)
    match = _SIZE.fullmatch(text.strip().lower())
    if not match:
        raise ConfigError(f"{text!r} is no size: write a number of bytes, or 512M, 10G, 1T")
    return int(match[1]) * _UNITS[match[2]]


def _pool(pool: PoolConfig) -> PoolConfig:
    if not _SEGMENT.fullmatch(pool.name):
        raise ConfigError(
            f"pool name {pool.name!r} cannot be a topology key: 1 to 63 letters, digits, '-', '_' and '.', "
            "a letter or digit at both ends; name it with --pool NAME=DIR"
        )
    if not pool.path.startswith("/"):
        raise ConfigError(f"pool {pool.name}: path {pool.path!r} is not absolute")
    if pool.backend not in ("auto", "directory", "image"):
        raise ConfigError(f"pool {pool.name}: backend {pool.backend!r} is not one of auto, directory, image")
    if pool.overprovision < 1:
        raise ConfigError(f"pool {pool.name}: overprovision {pool.overprovision} is less than 1; use reserve for that")
    return pool._replace(path=os.path.normpath(pool.path))


def _checked(config: Config) -> Config:
    if not config.pools:
        raise ConfigError(f"no pool is named: give --pool [NAME=]DIR, or a [[pool]] in {DEFAULT_CONFIG}")
    for what in ("name", "path"):
        values = [str(getattr(pool, what)).lower() for pool in config.pools]  # keys are compared without case (spec)
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise ConfigError(f"two pools have the {what} {twice!r}")
    _check_endpoint(config)
    if not _SEGMENT.fullmatch(config.node_id):
        raise ConfigError(f"node id {config.node_id!r} is no topology value: 1 to 63 letters, digits, '-', '_' and '.'")
    if config.spec not in SPECS:
        raise ConfigError(f"spec {config.spec!r} is not one of {', '.join(SPECS)}")
    if config.idle < 0 or config.max_volumes < 0:
        raise ConfigError("idle and max_volumes are not negative")
    return config


def _check_endpoint(config: Config) -> None:
    if "://" in config.endpoint and not config.endpoint.startswith("unix:///"):
        raise ConfigError(f"endpoint {config.endpoint!r} is no unix socket: write unix:///run/wherry/csi.sock")
    if not config.socket.startswith("/"):
        raise ConfigError(f"endpoint {config.endpoint!r} is not absolute: write unix:///run/wherry/csi.sock")
    if len(config.socket.encode()) > _SOCKET_MAX:
        raise ConfigError(f"endpoint {config.endpoint!r} is longer than a socket's path can be ({_SOCKET_MAX} bytes)")
