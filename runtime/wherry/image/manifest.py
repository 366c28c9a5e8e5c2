"""Manifests, indexes and configs as values: what the OCI and docker formats mean, checked before it is believed.

Decides which media types exist, which platform an index yields, and that header, body and descriptor agree
(CVE-2021-41190). Does no I/O.
"""

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.reference import DIGEST
from wherry.model import Descriptor, ImageConfig, Json, Platform

__all__ = [
    "CONFIG_MAX",
    "DOCKER_CONFIG",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "LAYER_TYPES",
    "MANIFEST_MAX",
    "MANIFEST_TYPES",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "OCI_TAR",
    "OCI_TAR_GZIP",
    "OCI_TAR_ZSTD",
    "Manifest",
    "choose",
    "created_time",
    "descriptor_from",
    "descriptor_json",
    "docker_layer_type",
    "host_platform",
    "oci_layer_type",
    "parse_config",
    "parse_document",
    "parse_index",
    "parse_manifest",
    "parse_platform",
    "platform_text",
]

MANIFEST_MAX = 4 << 20  # distribution-spec: a registry must take 4 MiB; nothing larger is read
CONFIG_MAX = 8 << 20
LAYERS_MAX = 500  # OVL_MAX_STACK
DEPTH_MAX = 4  # an index may list indexes

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_TAR_GZIP = OCI_TAR + "+gzip"
OCI_TAR_ZSTD = OCI_TAR + "+zstd"
_FOREIGN = ("application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign.")
_DOCKER = "application/vnd.docker."
DOCKER_CONFIG = _DOCKER + "container.image.v1+json"
DOCKER_MANIFEST = _DOCKER + "distribution.manifest.v2+json"
DOCKER_INDEX = _DOCKER + "distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = (_DOCKER + "distribution.manifest.v1+json", _DOCKER + "distribution.manifest.v1+prettyjws")

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
LAYER_TYPES = frozenset({
    OCI_TAR, OCI_TAR_GZIP, OCI_TAR_ZSTD,
    _DOCKER + "image.rootfs.diff.tar", _DOCKER + "image.rootfs.diff.tar.gzip", _DOCKER + "image.rootfs.diff.tar.zstd",
})  # fmt: skip
# An image has one of the first two; the others are what old registries made of them (distribution issue 1621).
_CONFIG_TYPES = frozenset({
    OCI_CONFIG, _DOCKER + "container.image.v1+json", "application/octet-stream", "application/json", "text/html", "",
})  # fmt: skip

_OCI_LAYER = {
    _DOCKER + "image.rootfs.diff.tar": OCI_TAR, _DOCKER + "image.rootfs.diff.tar.gzip": OCI_TAR_GZIP,
    _DOCKER + "image.rootfs.diff.tar.zstd": OCI_TAR_ZSTD,
}  # fmt: skip

_MACHINES = {
    "x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "i386": ("386", ""), "i686": ("386", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""), "loongarch64": ("loong64", ""), "mips64": ("mips64le", ""),
}  # fmt: skip
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm", "armel": "arm"}
_PLATFORM_PART = r"[A-Za-z0-9_.-]{1,64}"


class Manifest(NamedTuple):
    """One image for one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


def _bad(what: str, why: str) -> WherryError:
    return WherryError(Kind.INVALID, f"{what}: {why}")


def parse_document(data: bytes, limit: int, what: str) -> Json:
    """JSON of an object, no larger than `limit`."""
    if len(data) > limit:
        raise _bad(what, f"larger than {limit} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad(what, f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _bad(what, "not a JSON object")
    return value


def _strings(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _bad(what, "expected an object of strings")
    return dict(value)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):  # docker's old images: Entrypoint may be one string
        return (value,)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise _bad(what, "expected a list of strings")
    return tuple(value)


def descriptor_from(value: Any, what: str) -> Descriptor:
    """A descriptor with a digest that we can verify and a size that is a number."""
    if not isinstance(value, dict):
        raise _bad(what, "a descriptor is not an object")
    digest, size, media_type = value.get("digest"), value.get("size"), value.get("mediaType", "")
    if not isinstance(digest, str) or not re.fullmatch(DIGEST, digest):
        raise _bad(what, f"invalid digest {str(digest)[:140]!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 50:
        raise _bad(what, f"invalid size of {digest}")
    if not isinstance(media_type, str):
        raise _bad(what, f"invalid media type of {digest}")
    annotations = _strings(value.get("annotations"), f"{what}: annotations of {digest}")
    return Descriptor(media_type, digest, size, annotations, _platform_from(value.get("platform")))


def _platform_from(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    return Platform(str(value.get("os", "")), str(value.get("architecture", "")), str(value.get("variant", "")))


def descriptor_json(descriptor: Descriptor) -> Json:
    """The JSON form of a descriptor."""
    value: Json = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        platform = descriptor.platform
        value["platform"] = {"os": platform.os, "architecture": platform.architecture}
        if platform.variant:
            value["platform"]["variant"] = platform.variant
    return value


def agreed_type(document: Json, declared: Sequence[str], what: str) -> str:
    """The one media type that the declared ones (header, descriptor) and the body's field and shape agree on."""
    if document.get("schemaVersion") == 1:
        raise WherryError(
            Kind.UNSUPPORTED, f"{what}: an image in docker's schema 1", hint="push it again with a newer tool"
        )
    own = document.get("mediaType") or ""
    if not isinstance(own, str):
        raise _bad(what, "mediaType is not a string")
    named = {name.partition(";")[0].strip().lower() for name in (*declared, own) if name}
    known = named & {*MANIFEST_TYPES, *INDEX_TYPES}
    # Some servers send JSON's own type for everything; that says nothing and contradicts nothing.
    foreign = named - known - {"application/json", "text/plain", "application/octet-stream"}
    if foreign or len(known) > 1:
        raise _bad(what, f"media types disagree or are unknown: {', '.join(sorted(named))}")
    if document.get("schemaVersion") != 2:
        raise _bad(what, "schemaVersion is not 2")
    return _by_shape(document, known.pop() if known else "", what)


def _by_shape(document: Json, named: str, what: str) -> str:
    index, manifest = "manifests" in document, "layers" in document or "config" in document
    if index == manifest:
        raise _bad(
            what, "is neither a manifest nor an index" if not index else "claims to be both a manifest and an index"
        )
    named = named or (OCI_INDEX if index else OCI_MANIFEST)
    if (named in INDEX_TYPES) != index:
        raise _bad(what, f"is called {named} but has the shape of {'an index' if index else 'a manifest'}")
    return named


def parse_manifest(document: Json, media_type: str, what: str) -> Manifest:
    """A manifest whose config and layers are all of kinds that we can use."""
    config = descriptor_from(document.get("config"), f"{what}: config")
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > LAYERS_MAX:
        raise _bad(what, f"layers is not a list of at most {LAYERS_MAX}")
    parsed = tuple(descriptor_from(layer, f"{what}: layer {n}") for n, layer in enumerate(layers))
    if config.media_type not in _CONFIG_TYPES:
        raise _artifact(document, config, what)
    for layer in parsed:
        _check_layer(layer, what)
    return Manifest(media_type, config, parsed, _strings(document.get("annotations"), f"{what}: annotations"))


def _artifact(document: Json, config: Descriptor, what: str) -> WherryError:
    """image-spec 1.1, guidelines for artifact usage: the type is artifactType, or the config's media type."""
    kind = document.get("artifactType")
    kind = kind if isinstance(kind, str) and kind else config.media_type
    return WherryError(
        Kind.UNSUPPORTED,
        f"{what} is an artifact ({kind[:100]!a}), not a container image: there is nothing to run in it",
        hint="fetch it by a tool for artifacts (oras pull, skopeo copy)",
    )


def _check_layer(layer: Descriptor, what: str) -> None:
    if layer.media_type.startswith(_FOREIGN):
        raise WherryError(
            Kind.UNSUPPORTED,
            f"{what}: layer {layer.digest} is foreign ({layer.media_type}): its licence keeps it out of registries",
            hint="such layers are of Windows images; use an image whose layers may be distributed",
        )
    if layer.media_type not in LAYER_TYPES:
        raise WherryError(
            Kind.UNSUPPORTED,
            f"{what}: {layer.media_type[:100] or 'an untyped blob'!a} is not a layer",
            hint="this is not a container image (an artifact, or encrypted layers)",
        )


def oci_layer_type(media_type: str) -> str:
    """OCI's name of a layer's media type."""
    return _OCI_LAYER.get(media_type, media_type)


def docker_layer_type(media_type: str) -> str:
    """docker's name of a layer's media type."""
    return next((docker for docker, oci in _OCI_LAYER.items() if oci == media_type), media_type)


def parse_index(document: Json, what: str) -> tuple[Descriptor, ...]:
    """The descriptors of an index."""
    manifests = document.get("manifests")
    if not isinstance(manifests, list):
        raise _bad(what, "manifests is not a list")
    return tuple(descriptor_from(item, f"{what}: manifest {n}") for n, item in enumerate(manifests))


def host_platform() -> Platform:
    """The platform of this machine."""
    architecture, variant = _MACHINES.get(os.uname().machine, (os.uname().machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """docker's --platform: os/arch[/variant], or an architecture alone; "" is this machine."""
    if not text:
        return host_platform()
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", parts[0]] if parts[0] != "linux" else ["linux", host_platform().architecture]
    if len(parts) > 3 or not all(re.fullmatch(_PLATFORM_PART, part) for part in parts):
        raise WherryError(
            Kind.INVALID, f"invalid platform {text[:80]!r}", hint="expected os/arch[/variant], such as linux/arm64/v8"
        )
    return _normal(Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else ""))


def _normal(platform: Platform) -> Platform:
    architecture = _ALIASES.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if architecture == "arm64" and variant in ("", "8"):
        variant = "v8"
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(platform.os, architecture, variant)


def _variants(wanted: Platform) -> list[str]:
    """The variants that a machine of this variant can run, best first (containerd platforms, compare.go)."""
    match = re.fullmatch(r"v(\d+)(?:\.(\d+))?", wanted.variant)
    if not match:
        return [wanted.variant] if not wanted.variant else [wanted.variant, ""]
    major = int(match[1])
    lowest = {"arm": 5, "arm64": 8, "amd64": 1}.get(wanted.architecture, major)
    exact = [wanted.variant] if match[2] else []
    return [*exact, *(f"v{n}" for n in range(major, lowest - 1, -1)), ""]


def choose(candidates: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """The entry of an index that suits a platform best. One without a platform counts only when it is alone."""
    wanted = _normal(wanted)
    usable = [d for d in candidates if d.platform is None or d.platform.architecture != "unknown"]
    order = _variants(wanted)
    scored = []
    for descriptor in usable:
        if descriptor.platform is None:
            continue
        platform = _normal(descriptor.platform)
        if (platform.os, platform.architecture) == (wanted.os, wanted.architecture) and platform.variant in order:
            scored.append((order.index(platform.variant), descriptor))
    if scored:
        return min(scored, key=lambda pair: pair[0])[1]
    if len(usable) == 1 and usable[0].platform is None:
        return usable[0]
    raise WherryError(
        Kind.NOT_FOUND,
        f"{what} has no image for {platform_text(wanted)}",
        hint=f"it has: {_offers(usable)}; choose with --platform",
    )


def _offers(candidates: Sequence[Descriptor]) -> str:
    return ", ".join(sorted({platform_text(d.platform) for d in candidates if d.platform})[:20]) or "nothing"


def platform_text(platform: Platform) -> str:
    """os/arch[/variant]."""
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)


def matches(config: Platform, wanted: Platform) -> bool:
    """Whether an image of this config's platform runs on a machine of the wanted one."""
    config, wanted = _normal(config), _normal(wanted)
    same = (config.os, config.architecture) == (wanted.os, wanted.architecture)
    return same and config.variant in _variants(wanted)


def parse_config(document: Json, what: str) -> ImageConfig:
    """The typed part of an image's config."""
    inner = document.get("config") or {}
    rootfs = document.get("rootfs") or {}
    if not isinstance(inner, dict) or not isinstance(rootfs, dict):
        raise _bad(what, "config or rootfs is not an object")
    diff_ids = _texts(rootfs.get("diff_ids"), f"{what}: rootfs.diff_ids")
    for diff_id in diff_ids:
        if not re.fullmatch(DIGEST, diff_id):
            raise _bad(what, f"invalid diff id {diff_id[:140]!r}")
    return ImageConfig(
        entrypoint=_texts(inner.get("Entrypoint"), f"{what}: Entrypoint"),
        cmd=_texts(inner.get("Cmd"), f"{what}: Cmd"),
        env=_texts(inner.get("Env"), f"{what}: Env"),
        user=_text_of(inner, "User", what),
        workdir=_text_of(inner, "WorkingDir", what),
        volumes=_keys(inner, "Volumes", what),
        exposed=_keys(inner, "ExposedPorts", what),
        labels=_strings(inner.get("Labels"), f"{what}: Labels"),
        stop_signal=_text_of(inner, "StopSignal", what),
        healthcheck=inner.get("Healthcheck") if isinstance(inner.get("Healthcheck"), dict) else None,
        shell=_texts(inner.get("Shell"), f"{what}: Shell"),
        platform=_platform_from(document) or Platform(),
        created=_text_of(document, "created", what),
        diff_ids=diff_ids,
        history=_history(document),
    )


def _history(document: Json) -> tuple[Json, ...]:
    """Only told, never acted on: what is no list of objects is left out."""
    found = document.get("history")
    return tuple(item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()


def _text_of(document: Json, key: str, what: str) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(what, f"{key} is not a string")
    return value


def _keys(document: Json, key: str, what: str) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _bad(what, f"{key} is not an object")
    return tuple(value)


def created_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time; 0 where it is absent or no time."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text)
    if not match:
        return 0.0
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        whole = datetime.datetime.fromisoformat(match[1].replace(" ", "T").upper() + zone).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return whole + float(match[2] or 0)
