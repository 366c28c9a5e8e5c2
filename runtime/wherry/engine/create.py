"""`create`: from what was asked to a container that could start: first files, then the row.

Decides in which order things come to be, and how each is taken back. `draft` has no effect on the host but for a pull;
`commit` makes what the draft says.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, ImageConfig, ImageRecord, Json, LogConfig, PortMapping, ProgressEvent, RunOptions

from . import (
    codec,
    confine,
    devices,
    events,
    health,
    images,
    limits,
    mounts,
    names,
    restart,
    rootfs,
    security,
    specgen,
)
from .db import Container
from .house import House
from .undo import Undo, making

__all__ = ["Draft", "commit", "create", "draft"]

Progress = Callable[[ProgressEvent], None]
_MODES = ("none", "host")
_LOG_OPTIONS = {"max-size", "max-file", "compress", "mode", "labels", "env", "tag", "labels-regex", "env-regex"}
_LOG_DRIVERS = {"local": "cri", "json-file": "json", "journald": "journald", "none": "none"}
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Draft(NamedTuple):
    """A container that does not exist yet."""

    id: str
    name: str
    options: RunOptions
    record: ImageRecord
    mounts: tuple[mounts.Resolved, ...]
    networks: tuple[Attachment, ...]
    config: Json


def create(house: House, options: RunOptions, progress: Progress | None) -> str:
    """The verb. Returns the id. A driver's volume is filled at the first start, which mounts it."""
    from . import gc

    gc.sweep(house, thorough=False)
    return commit(house, draft(house, options, progress)).id


def draft(
    house: House,
    options: RunOptions,
    progress: Progress | None,
    *,
    dry: bool = False,
    record: ImageRecord | None = None,
) -> Draft:
    """Check everything that can be checked, and decide everything that is not the host's to decide. `record`: the
    image, where it is none that has a name yet (a step of a build)."""
    restart.check(options.restart, options.remove)
    name = _free_name(house, options)
    security.parse(options)
    _check_userns(house, options)
    _check_cidfile(options)
    limits.check(options.limits, house.facts)
    record = record or _image(house, options, progress, dry=dry)
    networks = _networks(house, options, dry=dry)
    inherited = _inherited(house, options)
    wanted = tuple(mounts.collect(options, record.config.volumes, inherited))
    _check_sources(wanted)
    cid = names.mint()
    config = _config(house, cid, options, record, networks)
    made = Draft(cid, name, options, record, wanted, networks, config)
    _rehearse(house, made)
    return made


def _rehearse(house: House, made: Draft) -> None:
    """What the spec generator refuses, it refuses now and not at the first start."""
    options = made.options
    host = {kind for kind in ("ipc", "pid", "uts") if getattr(options, kind) == "host"}
    host |= {"network"} if made.networks[0].network == "host" else set()
    specgen.check(options, made.record.config, frozenset({"network", "ipc", "pid", "uts"} - host))
    caps = security.capabilities(options, house.facts.cap_bounding)
    if options.devices:
        devices.resolve(options.devices)
    chosen = security.parse(options)
    if chosen.seccomp:
        confine.seccomp(chosen, caps, house.facts)
    confine.selinux(chosen, made.id, house.facts)


def _image(house: House, options: RunOptions, progress: Progress | None, *, dry: bool) -> ImageRecord:
    if dry:
        return house.images.get(options.image)
    return images.find(house, options.image, options.pull, options.platform, progress)


def _free_name(house: House, options: RunOptions) -> str:
    if options.name:
        name = names.check(options.name)
        holder = house.db.named(name)
        if holder:
            hint = "remove or rename that container, or choose another name"
            message = f'the container name "/{name}" is already in use by container {holder}'
            raise WherryError(Kind.EXISTS, message, hint=hint)
        return name
    return ""


def _check_userns(house: House, options: RunOptions) -> None:
    first, _, size = options.userns.partition(":")
    named = first.isdigit() and size.isdigit() and int(size) > 0 and int(first) > 0
    if not named and options.userns not in ("", "host", "private", "auto"):
        raise WherryError(Kind.INVALID, f'invalid --userns "{options.userns}"', hint="host, auto or FIRST:SIZE")
    wanted = named or options.userns == "auto" or (options.profile == "strict" and not options.userns)
    if wanted and options.privileged:
        raise WherryError(Kind.INVALID, "privileged mode is incompatible with user namespaces", hint="--userns host")
    if wanted and not house.facts.user_namespaces:
        raise WherryError(Kind.UNSUPPORTED, "this kernel has no user namespaces", hint="--userns host")


def _check_cidfile(options: RunOptions) -> None:
    if options.cidfile and os.path.lexists(options.cidfile):
        hint = "make sure the other container is not running, or delete the file"
        raise WherryError(Kind.EXISTS, f"container id file {options.cidfile} exists", hint=hint)


def _networks(house: House, options: RunOptions, *, dry: bool) -> tuple[Attachment, ...]:
    asked = options.network or (Attachment(house.settings.default_network),)
    exclusive = [a for a in asked if a.network in _MODES or a.network.startswith("container:")]
    if exclusive and len(asked) > 1:
        raise WherryError(Kind.INVALID, f"network {exclusive[0].network} cannot be combined with other networks")
    if exclusive:
        return (_mode(house, options, exclusive[0]),)
    from .connect import named

    found: list[Attachment] = []
    for attachment in asked:
        known = dry and attachment.network == "bridge"  # to ask for it would make it
        facts = {"name": "bridge"} if known else house.networks.settings(attachment.network)
        wish = attachment._replace(network=facts["name"])
        found.append(named(facts, wish, [have.interface for have in found]))
    names = [wish.network for wish in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise WherryError(Kind.INVALID, f"network {twice} is given twice", hint="give each network once")
    _check_publishing(house, options, found[0], dry=dry)
    return tuple(found)


def _check_publishing(house: House, options: RunOptions, first: Attachment, *, dry: bool) -> None:
    if not dry and (options.ports or options.publish_all) and not house.networks.settings(first.network)["publishes"]:
        house.warn(f"Published ports are discarded: network {first.network} has no plugin for them")


def _mode(house: House, options: RunOptions, attachment: Attachment) -> Attachment:
    mode, _, ref = attachment.network.partition(":")
    if mode == "host" and (options.ports or options.publish_all):
        house.warn("Published ports are discarded when using host network mode")
    if mode == "container":
        for given, what in ((options.ports or options.publish_all, "port publishing"), (options.hostname, "hostname"),
                            (options.dns, "dns"), (options.add_host, "custom host-to-IP mapping")):  # fmt: skip
            if given:
                raise WherryError(Kind.INVALID, f"conflicting options: {what} and the container type network mode")
        return attachment._replace(network=f"container:{house.db.find(ref).id}")
    return attachment


def _inherited(house: House, options: RunOptions) -> list[mounts.Resolved]:
    found: list[mounts.Resolved] = []
    for text in options.volumes_from:
        ref, _, mode = text.partition(":")
        found += mounts.inherit(house.db.find(ref).config["mounts"], mode)
    return found


def _check_sources(wanted: Sequence[mounts.Resolved]) -> None:
    for mount in wanted:
        if mount.kind == "bind" and not mount.create_source and not os.path.lexists(mount.source):
            hint = "make it first, or use -v, which makes a missing directory"
            message = f"invalid mount config for type bind: bind source path does not exist: {mount.source}"
            raise WherryError(Kind.INVALID, message, hint=hint)


# ---- what the row keeps ----


def _bytes(text: str, option: str) -> int:
    number = text.strip().lower().rstrip("ib") if text.strip().lower() not in ("b", "") else ""
    digits, unit = (number[:-1], number[-1]) if number and number[-1] in "kmg" else (number, "")
    if not digits.isdigit():
        raise WherryError(Kind.INVALID, f'invalid --log-opt {option}="{text}"', hint="a number with k, m or g")
    return int(digits) * _UNITS[unit]


def log_config(house: House, cid: str, log: LogConfig) -> Json:
    """What the monitor is told to do with the output."""
    driver = log.driver or house.settings.log_driver
    if driver not in _LOG_DRIVERS:
        hint = f"one of {', '.join(_LOG_DRIVERS)}"
        raise WherryError(Kind.INVALID, f'log driver "{driver}" is not there', hint=hint)
    unknown = sorted(set(log.options) - _LOG_OPTIONS)
    if unknown:
        hint = f"known: {', '.join(sorted(_LOG_OPTIONS))}"
        raise WherryError(Kind.INVALID, f'unknown log opt "{unknown[0]}" for {driver} log driver', hint=hint)
    bounded = driver == "local"  # json-file is unbounded unless asked, as docker's
    size = _bytes(log.options["max-size"], "max-size") if "max-size" in log.options else (10 << 20) * bounded
    files = log.options.get("max-file", "3" if bounded else "1")
    if not files.isdigit() or int(files) < 1:
        raise WherryError(Kind.INVALID, f'invalid --log-opt max-file="{files}"', hint="a number from 1")
    name = {"local": "ctr.log", "json-file": f"{cid}-json.log"}.get(driver, "")
    return {"driver": driver, "monitor": _LOG_DRIVERS[driver], "file": name, "bytes": size, "files": int(files)}


def _stop_signal(options: RunOptions, image: ImageConfig) -> int:
    from wherry.kernel import process

    return process.signal_number(options.stop_signal or image.stop_signal or "TERM")


def exposed(options: RunOptions, image: ImageConfig) -> list[str]:
    """Every exposed port as "80/tcp"; ranges are spread."""
    found: dict[str, None] = {}
    for text in (*image.exposed, *options.expose):
        ports, _, protocol = text.partition("/")
        first, _, last = ports.partition("-")
        if not (first.isdigit() and (last or first).isdigit()) or int(last or first) > 65535:
            raise WherryError(Kind.INVALID, f'invalid port "{text}"', hint="80, 80/udp or 8000-8010")
        for port in range(int(first), int(last or first) + 1):
            found[f"{port}/{protocol or 'tcp'}"] = None
    for mapping in options.ports:
        found[f"{mapping.container_port}/{mapping.protocol}"] = None
    return list(found)


def ports(
    house: House, options: RunOptions, image: ImageConfig, networks: Sequence[Attachment] = ()
) -> list[PortMapping]:
    """What is published: -p, and with -P every exposed port that -p leaves; where no address is said, on that of the
    network's host_binding_ipv4, else on the setting's."""
    given = list(options.ports)
    have = {(p.container_port, p.protocol) for p in given}
    if options.publish_all:
        for text in exposed(options, image):
            port, _, protocol = text.partition("/")
            if (int(port), protocol) not in have:
                given.append(PortMapping(int(port), 0, protocol))
    if not given:
        return []
    usual = _host_ip(house, networks) or house.settings.publish_default
    return [p if p.host_ip else p._replace(host_ip=usual) for p in given]


def _host_ip(house: House, networks: Sequence[Attachment]) -> str:
    first = networks[0].network if networks else ""
    modes = (*_MODES, "", "bridge")
    return "" if first in modes or ":" in first else str(house.networks.settings(first).get("host_ip", ""))


def _hostname(house: House, cid: str, options: RunOptions, networks: Sequence[Attachment]) -> str:
    """The name of the container whose UTS namespace, or else network, is joined: docker's rule."""
    for text in (options.uts, networks[0].network):
        kind, _, ref = text.partition(":")
        if kind == "container":
            return str(house.db.find(ref).config["hostname"])
    return specgen.hostname(options, cid, os.uname().nodename)


def _config(
    house: House, cid: str, options: RunOptions, record: ImageRecord, networks: Sequence[Attachment]
) -> Json:
    image = record.config._replace(history=())
    return {
        "options": codec.encode(options._replace(network=tuple(networks))),
        "image_config": codec.encode(image),
        "image_name": options.image,
        "layers": list(image.diff_ids),
        "labels": {**image.labels, **options.labels},
        "argv": list(specgen.argv(options, image)),
        "hostname": _hostname(house, cid, options, networks),
        "stop_signal": _stop_signal(options, image),
        "health": health.settings(options, image),
        "log": log_config(house, cid, options.log),
        "ports": [codec.encode(p) for p in ports(house, options, image, networks)],
        "exposed": exposed(options, image),
    }


# ---- making it ----


def commit(house: House, made: Draft) -> Container:
    """Directories, snapshot, volumes, then the row. All or nothing."""
    with making(house), Undo() as undo:
        folder = house.container_dir(made.id)
        os.mkdir(folder, 0o700)
        undo.add(_remove_folder, house, made.id)
        rootfs.settle(house, made.record.config.diff_ids)
        house.snapshots.make(made.id, made.record.config.diff_ids)
        undo.add(house.snapshots.remove, made.id)
        resolved = _volumes(house, made, undo)
        made.config["mounts"] = [mounts.inspect_row(mount) for mount in resolved]
        row = _insert(house, made, resolved)
        undo.add(house.db.remove_container, made.id)
        _write_cidfile(made)
    events.container(house, row, "create")
    return row


def _remove_folder(house: House, cid: str) -> None:
    from wherry.kernel import files

    files.remove_tree(house.container_dir(cid))


def _insert(house: House, made: Draft, resolved: Sequence[mounts.Resolved]) -> Container:
    volumes = sorted({mount.name for mount in resolved if mount.kind == "volume"})
    networks = [a.network for a in made.networks]
    size, base = _id_range(house, made.options)
    for attempt in range(16):
        row = Container(made.id, made.name or names.automatic(), time.time(), made.record.id, made.config)
        try:
            house.db.add_container(row, volumes, networks, size, base)
            return row
        except WherryError as error:
            if made.name or error.kind is not Kind.EXISTS or attempt == 15:
                raise
    raise AssertionError


def _id_range(house: House, options: RunOptions) -> tuple[int, int]:
    """Size and lowest start of the host ids that the database gives out; (0, 0): none."""
    if options.userns == "auto" or (options.profile == "strict" and not options.userns):
        return house.settings.userns_size, house.settings.userns_base
    return 0, 0


def _write_cidfile(made: Draft) -> None:
    path = made.options.cidfile
    if not path:
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise WherryError(Kind.EXISTS, f"container id file {path} exists") from None
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot write the container id file {path}: {error.strerror}") from error
    with open(fd, "w", encoding="ascii") as file:
        file.write(made.id)


def _volumes(house: House, made: Draft, undo: Undo) -> list[mounts.Resolved]:
    from . import filling

    found, fresh = [], []
    for mount in made.mounts:
        if mount.kind == "volume":
            mount, new = _volume(house, made.id, mount, undo)  # noqa: PLW2901  # the same mount, now with its place
            fresh += [mount] if new and mount.fills else []
        elif mount.kind == "bind":
            _bind_source(mount, undo)
        found.append(mount)
    if fresh:
        filling.copy_up(house, made.id, fresh)
    return found


def _volume(house: House, cid: str, mount: mounts.Resolved, undo: Undo) -> tuple[mounts.Resolved, bool]:
    from . import volumes

    wanted, how = dict(mount.driver_options), mount.driver
    row, new = volumes.claim(house, mount.name, {}, wanted, anonymous=not mount.name, driver=how)
    if new:
        undo.add(volumes.discard, house, row)
    options = volumes.options(row, mount)
    where = volumes.source(house, row, cid)
    made = mount._replace(name=row.name, source=where, options=options, driver=row.driver)
    return made, new or volumes.empty(house, row)


def _bind_source(mount: mounts.Resolved, undo: Undo) -> None:
    if os.path.lexists(mount.source):
        return
    if not mount.create_source:
        raise WherryError(Kind.INVALID, f"bind source path does not exist: {mount.source}")
    try:
        os.makedirs(mount.source, 0o755)
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot make bind source {mount.source}: {error.strerror}") from error
    undo.add(os.rmdir, mount.source)
