"""RunOptions and ImageConfig to JSON and back, for the database's rows. Decides nothing; unknown fields are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from wherry.model import (
    Attachment,
    HealthCheck,
    ImageConfig,
    Json,
    Limits,
    LogConfig,
    MountRequest,
    PortMapping,
    RestartPolicy,
    RunOptions,
)

__all__ = ["decode_image", "decode_options", "encode", "many", "of", "plain"]

_T = TypeVar("_T")


def encode(value: Any) -> Any:
    """Return plain JSON values; members equal to their defaults are left out, so that a row stays short."""
    if hasattr(value, "_asdict"):
        unset = value._field_defaults
        return {k: encode(v) for k, v in value._asdict().items() if k not in unset or v != unset[k]}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return dict(value) if hasattr(value, "keys") else value


def plain(kind: type[_T], data: Json, inner: dict[str, Callable[[Any], Any]] | None = None) -> _T:
    """A NamedTuple from what `encode` made of it; `inner`: how to read its members that are NamedTuples too."""
    members: Json = {}
    for name in kind._fields:  # type: ignore[attr-defined]
        if name in data:
            convert = (inner or {}).get(name)
            members[name] = convert(data[name]) if convert else _frozen(data[name])
    return kind(**members)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def of(kind: type[Any]) -> Callable[[Json], Any]:
    """Reads one of a kind, for `plain`."""
    return lambda data: plain(kind, data)


def many(kind: type[Any]) -> Callable[[list[Json]], tuple[Any, ...]]:
    """Reads a list of a kind, for `plain`."""
    return lambda items: tuple(plain(kind, item) for item in items)


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "network": many(Attachment),
    "ports": many(PortMapping),
    "mounts": many(MountRequest),
    "limits": of(Limits),
    "restart": of(RestartPolicy),
    "log": of(LogConfig),
    "health": of(HealthCheck),
}


def decode_options(data: Json) -> RunOptions:
    """Read what `encode` made of RunOptions."""
    return plain(RunOptions, data, _OPTIONS)


def decode_image(data: Json) -> ImageConfig:
    """Read what `encode` made of an ImageConfig; platform and history stay behind."""
    kept = {key: value for key, value in data.items() if key not in ("platform", "history")}
    return plain(ImageConfig, kept, {"healthcheck": lambda value: value})
