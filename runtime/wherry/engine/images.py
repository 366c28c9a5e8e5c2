"""Images as the verbs see them: found or pulled, listed, tagged, removed while nobody uses them.

Decides what "in use" means and docker's shapes. Knows nothing of registries and layers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ImageConfig, ImageRecord, Json, Place, Platform, ProgressEvent

from . import cleanup, events, filters
from .house import House

if TYPE_CHECKING:
    from wherry.image.auth import Credentials
    from wherry.image.inflate import Readable

    from .db import Container
    from .values import RegistryLogin

__all__ = [
    "credentials_of", "find", "has_name", "inspect", "listing", "load", "platform", "prune", "pull", "pull_as",
    "remove", "save", "sweep", "tag", "tags", "untag",
]  # fmt: skip

Progress = Callable[[ProgressEvent], None]
Filters = Mapping[str, Sequence[str]]
_FILTERS = ("reference", "dangling", "label", "before", "since", "until")


def platform(text: str) -> Platform | None:
    """Parse os[/arch[/variant]]; "" is the host's."""
    if not text:
        return None
    parts = text.lower().split("/")
    if len(parts) > 3 or not all(parts):
        raise WherryError(Kind.INVALID, f'invalid platform "{text}"', hint="linux/amd64, linux/arm64/v8 ...")
    if len(parts) == 1:
        parts = [parts[0], ""] if parts[0] == "linux" else ["linux", parts[0]]
    return Platform(parts[0], parts[1] or Platform().architecture, parts[2] if len(parts) > 2 else "")


def _silent(_event: ProgressEvent) -> None:
    return None


def find(house: House, name: str, policy: str, wanted: str, progress: Progress | None) -> ImageRecord:
    """The image to start from, by --pull's policy; its layers are unpacked when this returns."""
    if policy not in ("always", "missing", "never"):
        raise WherryError(Kind.INVALID, f'invalid pull policy "{policy}"', hint="always, missing or never")
    from wherry.image.reference import is_source

    if policy != "always" and not is_source(name):
        try:
            record = house.images.get(name)
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND or policy == "never":
                raise
        else:
            if _fits(record, platform(wanted)):
                house.images.ensure_unpacked(record, progress or _silent)
                return record
            if policy == "never":
                from wherry.image.manifest import platform_text

                have = f"here it is for {platform_text(record.config.platform)}"
                raise WherryError(Kind.NOT_FOUND, f"no such image: {name} for {wanted}", hint=have)
    return pull(house, name, wanted, progress)


def _fits(record: ImageRecord, wanted: Platform | None) -> bool:
    have = record.config.platform
    return wanted is None or (have.os, have.architecture) == (wanted.os, wanted.architecture)


def pull(house: House, name: str, wanted: str, progress: Progress | None) -> ImageRecord:
    """Fetch from the registry, or from the source that the name says."""
    from wherry.image.reference import is_source

    house.prepare()
    if is_source(name):
        record = house.images.load(name, progress or _silent, platform(wanted))
        events.emit(house, "image", "load", record.id, {"name": name})
        return record
    record = house.images.pull(name, platform(wanted), progress or _silent)
    events.emit(house, "image", "pull", name, {"name": name})
    return record


def credentials_of(name: str, login: RegistryLogin | None) -> Callable[[str], Credentials | None]:
    """What the registry of a name may be told: this login where it is meant for it, else nothing. Those that this user
    has stored are not a client's."""
    from wherry.image import auth
    from wherry.image.reference import Reference

    registry = Reference.parse(name).registry
    meant = login is not None and (not login.server or auth.is_of(login.server, auth.keys_of(registry)))
    known = None
    if login is not None and meant:
        known = auth.Credentials(
            login.user, login.secret, identity=login.kind == "identity", bearer=login.kind == "bearer"
        )
    return lambda asked: known if asked == registry else None


def pull_as(
    house: House, name: str, login: RegistryLogin | None, wanted: str = "", progress: Progress | None = None
) -> ImageRecord:
    """Fetch from the registry with these credentials, or with none."""
    from wherry.image.reference import is_source

    if is_source(name):
        raise WherryError(Kind.INVALID, f"{name[:200]} is not in a registry", hint="wherry load, or wherry pull")
    house.prepare()
    record = house.images.pull(
        name, platform(wanted), progress or _silent, credentials=credentials_of(name, login)
    )
    events.emit(house, "image", "pull", name, {"name": name})
    return record


def load(
    house: House, source: str, progress: Progress | None, stream: Readable | None = None
) -> list[ImageRecord]:
    """Take every image of a source, of the directory or archive at a path, or of what a stream called so gives."""
    from wherry.image.reference import is_source

    house.prepare()
    if stream is None and is_source(source):
        records = house.images.load_all(source, progress or _silent)
    else:
        records = house.images.load_found(source, stream, progress or _silent)
    for record in records:
        events.emit(house, "image", "load", record.id, {"name": (record.names or (record.id,))[0]})
    return records


def has_name(place: Place, name: str) -> bool:
    """Whether the store knows an image by this very name, current or not; asks nobody and makes nothing."""
    from wherry.image.blobs import REF_NAME, Blobs
    from wherry.image.reference import Reference, is_source

    try:
        wanted = str(Reference.parse(name).stored())
        return not is_source(name) and any(e.annotations.get(REF_NAME) == wanted for e in Blobs(place.root).entries())
    except (WherryError, OSError):
        return False


def save(house: House, refs: Sequence[str], target: str | int, form: str) -> None:
    """Write images to a file, a directory or a descriptor; each once, under the names that were asked for."""
    wanted: dict[str, tuple[ImageRecord, list[str]]] = {}
    for ref in refs:
        for record, names in _meant(house, ref):
            known = wanted.setdefault(record.manifest, (record, []))[1]
            known += [name for name in names if name not in known]
    house.images.save(list(wanted.values()), target, form)
    for record, _ in wanted.values():
        events.emit(house, "image", "save", record.id, {"name": (record.names or (record.id,))[0]})


def _meant(house: House, ref: str) -> list[tuple[ImageRecord, list[str]]]:
    """docker's rule: every tag of a name that has none, the image of a name, or by its id one without names."""
    from wherry.image.reference import Reference

    if "@" not in ref and ":" not in ref.rpartition("/")[2]:
        with contextlib.suppress(WherryError):  # digits of an id are no name
            name = Reference.parse(ref).name
            every = [(record, _of_repository(record, name)) for record in house.images.list()]
            tagged = [(record, names) for record, names in every if names]
            if tagged:
                return tagged
    record = house.images.get(ref)
    with contextlib.suppress(WherryError):
        return [(record, [name for name in record.names if name == Reference.parse(ref).stored()])]
    return [(record, [])]


def _of_repository(record: ImageRecord, name: str) -> list[str]:
    from wherry.image.reference import Reference

    return [full for full in record.names if Reference.parse(full).name == name]


def untag(house: House, ref: str, names: Sequence[str]) -> None:
    """Take names away and keep the image, nameless after the last one (podman's verb)."""
    record = house.images.get(ref)
    house.images.untag(record, names)
    events.emit(house, "image", "untag", record.id, {"name": ref})


def _familiar(name: str) -> str:
    from wherry.image.reference import Reference

    return Reference.parse(name).familiar()


def tags(record: ImageRecord) -> list[str]:
    """The names of an image as docker shows them."""
    return [_familiar(name) for name in record.names if "@" not in name]


def _names(record: ImageRecord) -> tuple[list[str], list[str]]:
    named = tags(record)
    repositories = dict.fromkeys(tag.rpartition(":")[0] for tag in named)
    digests = [f"{repository}@{record.target or record.manifest}" for repository in repositories]
    return named, digests + [_familiar(name) for name in record.names if "@" in name]


def _row(record: ImageRecord, users: Mapping[str, int], patterns: Sequence[str]) -> Json:
    named, digests = _names(record)
    if patterns:  # docker shows the names that were asked for, not all that such an image has
        named = [name for name in named if _liked(name, patterns)]
    return {
        "Id": record.id,
        "ParentId": "",
        "RepoTags": named,
        "RepoDigests": digests,
        "Created": int(record.created),
        "Size": record.size,
        "VirtualSize": record.size,
        "SharedSize": -1,
        "Labels": dict(record.config.labels),
        "Containers": users.get(record.id, 0),
    }


def _users(house: House) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in house.db.containers():
        counts[row.image] = counts.get(row.image, 0) + 1
    return counts


def listing(house: House, *, all: bool, filters: Filters) -> list[Json]:
    """The rows of `images`. `all` changes nothing: there are no intermediate images."""
    del all
    users = _users(house)
    patterns = filters.get("reference", ())
    rows = [_row(record, users, patterns) for record in house.images.list() if _matches(house, record, filters)]
    return sorted(rows, key=lambda row: -int(row["Created"]))


def _matches(house: House, record: ImageRecord, wanted: Filters) -> bool:
    filters.check(wanted, _FILTERS)
    checks = {
        "dangling": lambda v: (v[0].lower() in ("true", "1")) == (not record.names),
        "label": lambda v: filters.labels(v, record.config.labels),
        "reference": lambda v: any(_liked(name, v) for name in record.names),
        "before": lambda v: record.created < house.images.get(v[0]).created,
        "since": lambda v: record.created > house.images.get(v[0]).created,
        "until": lambda v: record.created < moment(v[0]),
    }
    return all(checks[name](values) for name, values in wanted.items())


def _liked(name: str, patterns: Sequence[str]) -> bool:
    return any(_like(name, pattern) for pattern in patterns)


def _like(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    familiar = _familiar(name)
    repository = familiar.partition("@")[0]
    bare = repository.rpartition(":")[0] or repository
    return any(fnmatchcase(text, pattern) for text in (familiar, bare, name))


def moment(text: str) -> float:
    """A filter's time: unix seconds, a duration before now ("1h30m"), or RFC 3339."""
    import re
    from datetime import datetime

    try:
        return float(text)
    except ValueError:
        pass
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", text):
        parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text)
        return time.time() - sum(float(number) * units[unit] for number, unit in parts)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise WherryError(Kind.INVALID, f'invalid time "{text}"', hint="RFC 3339, unix seconds, or 1h30m") from None


def config_json(config: ImageConfig) -> Json:
    """docker's Config of an image."""
    made: Json = {
        "Env": list(config.env),
        "Cmd": list(config.cmd) or None,
        "Entrypoint": list(config.entrypoint) or None,
        "WorkingDir": config.workdir,
        "User": config.user,
        "Labels": dict(config.labels) or None,
        "ExposedPorts": {port: {} for port in config.exposed} or None,
        "Volumes": {path: {} for path in config.volumes} or None,
        "StopSignal": config.stop_signal or None,
        "Healthcheck": config.healthcheck,
        "Shell": list(config.shell) or None,
    }
    return {key: value for key, value in made.items() if value is not None}


def inspect(house: House, ref: str) -> Json:
    """docker's image object."""
    record = house.images.get(ref)
    named, digests = _names(record)
    config, document = record.config, house.images.config_json(record)
    return {
        "Id": record.id,
        "RepoTags": named,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": _comment(document, config),
        "Created": config.created,
        "DockerVersion": "",
        "Author": str(document.get("author") or ""),
        "Config": config_json(config),
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Os": config.platform.os,
        "Size": record.size,
        "VirtualSize": record.size,
        "GraphDriver": {"Name": "overlay", "Data": {}},
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    }


def _comment(document: Json, config: ImageConfig) -> str:
    """Of the image itself, else of the last thing that was done to it."""
    last: Json = config.history[-1] if config.history else {}
    return str(document.get("comment") or last.get("comment") or "")


def tag(house: House, source: str, target: str) -> None:
    """One more name."""
    name = house.images.tag(source, target)
    events.emit(house, "image", "tag", house.images.get(source).id, {"name": name})


def _refuse_used(house: House, users: list[Container], image: str, force: bool) -> None:
    from .status import look

    for row in users:
        running = look(house, row.id).running
        if running or not force:
            state = "running" if running else "stopped"
            hint = "stop and remove the container first" if running else "remove the container, or use force"
            message = f"conflict: image {image[7:19]} is being used by {state} container {row.id[:12]}"
            raise WherryError(Kind.CONFLICT, message, hint=hint)


def remove(house: House, ref: str, *, force: bool) -> list[Json]:
    """Untag; delete with the last name, unless a container uses it."""
    cleanup.await_rest(house)
    rest: list[Callable[[], object]] = []  # files go before the answer, for who removes wants room, but under no lock
    with house.db.write():  # no container can be made from it meanwhile
        record = house.images.get(ref)
        last = len(record.names) <= 1 or _by_id(record, ref)
        users = house.db.image_users(record.id)
        if last and users:
            _refuse_used(house, users, record.id, force)
        keep = [diff_id for row in users for diff_id in row.config.get("layers", ())]
        done = house.images.remove(ref, force=force, keep=keep, later=rest.append)
    for step in rest:
        step()
    words: list[Json] = [dict([line.split(": ", 1)]) for line in done]
    for word in words:
        for key, value in word.items():
            action = "untag" if key == "Untagged" else "delete"
            events.emit(house, "image", action, record.id, {"name": value})
    return words


def _by_id(record: ImageRecord, ref: str) -> bool:
    return record.id.removeprefix("sha256:").startswith(ref.removeprefix("sha256:"))


def prune(house: House, *, all: bool, filters: Filters) -> Json:
    """Remove what has no name (or what no container uses), then sweep the layers."""
    used = set(_users(house))
    deleted: list[Json] = []
    wanted = {name: values for name, values in filters.items() if name in ("label", "until")}
    for record in house.images.list():
        if record.id not in used and (all or not record.names) and _matches(house, record, wanted):
            deleted += remove(house, record.id, force=True)
    return {"ImagesDeleted": deleted, "SpaceReclaimed": sweep(house)}


def sweep(house: House) -> int:
    """Remove blobs and layers that nothing uses; the bytes freed."""
    return house.images.gc([d for row in house.db.containers() for d in row.config.get("layers", ())])
