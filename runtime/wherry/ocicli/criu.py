"""`checkpoint` and `restore` through the program criu: what of a container is the outside's, and where it is tied to
again.

Decides which mounts, files and namespaces criu is to leave alone, and refuses beforehand what cannot work. Images are
processes with all their rights: who restores them trusts them as a bundle, so what they are tied to on the host comes
from the bundle's config, never from the images. Hooks do not run at a restore; the terminal of a container cannot be
handed over by criu's command line.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from wherry.container import criu
from wherry.container.state import Status
from wherry.errors import Kind, WherryError
from wherry.model import Json

from . import bundle, create, life
from .world import World, config_of

if TYPE_CHECKING:
    from wherry.container.state import ContainerDir, State
    from wherry.kernel.process import Process

    from .flags import Values

__all__ = ["do_checkpoint", "do_restore", "options"]

_KEY: Final = re.compile(r"pipe:\[\d{1,20}\]|file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]")
_MAX: Final = 1 << 16
#: flags of ours that are criu's too, with a value and without
_SAME: Final = (
    "tcp_established", "ext_unix_sk", "shell_job", "file_locks", "leave_running", "auto_dedup", "lazy_pages",
)  # fmt: skip
_VALUED: Final = ("status_fd", "lsm_profile", "lsm_mount_context")
_JOINED: Final = {"ipc": "ipc", "uts": "uts", "time": "time"}


# ---- checkpoint


def do_checkpoint(world: World, words: Sequence[str], values: Values) -> None:
    """Write images of a running container, then delete it; --leave-running and --pre-dump let it go on."""
    folder, state = world.load(words[0])
    with folder.lock():
        status = folder.status(state)
        if status not in (Status.RUNNING, Status.PAUSED) or state.init is None:
            raise WherryError(Kind.CONFLICT, f"cannot checkpoint container {folder.id}: it is {status.value}")
        config, shared = config_of(folder), list(options(values))
        program = criu.able("checkpoint", folder.id, config)
        place = _place(values)
        if not values["pre_dump"]:
            criu.write_descriptors(place.images, state.init)
        verb = "pre-dump" if values["pre_dump"] else "dump"
        argv = [program, verb, "--tree", str(state.init.pid), *shared,
                *_dump_options(config, state, place, values)]  # fmt: skip
        ready = [int(values["status_fd"])] if values["status_fd"].isdigit() else []
        criu.run(argv, place, f"{verb}.log", f"checkpoint container {folder.id}", ready)
        if not (values["leave_running"] or values["pre_dump"]):
            life.destroy(world, folder, force=True)


def _dump_options(config: Json, state: State, place: criu.Place, values: Values) -> Iterator[str]:
    assert state.init is not None
    yield from criu.dump_words(config, state.bundle, state.init, str(state.extra["rootfs"]), state.cgroup)
    if place.parent:
        yield from ("--track-mem", "--prev-images-dir", place.parent)
    elif values["pre_dump"]:
        yield "--track-mem"


# ---- restore


def do_restore(world: World, words: Sequence[str], values: Values) -> int:
    """The process's exit code; 0 with --detach."""
    if values["detach"]:
        _restore(world, words[0], values)
        return 0
    from . import foreground, run

    with ExitStack() as held:
        front = foreground.Foreground(held)
        folder, init = _restore(world, words[0], values)
        held.callback(run.end, world, folder, keep=False)
        return front.stay(init)


def _restore(world: World, cid: str, values: Values) -> tuple[ContainerDir, Process]:
    """Make the container of images; nothing is left of it if any step fails."""
    from wherry.kernel import process

    asked, shared = create.wish(world, values), list(options(values))
    config, text = bundle.read(asked.bundle, asked.config)
    root = bundle.rootfs(config, asked.bundle)
    program = criu.able("restore", cid, config)
    place = _place(values, made=False)
    folder = world.folder(cid)
    folder.make()
    with ExitStack() as undo:
        undo.callback(create.quietly, folder.remove)
        with ExitStack() as held, folder.lock():
            create.keep(folder, text)
            _make_mount_points(root, config)
            state = _prepared(world, folder, config, root, asked, undo, held)
            init = _revive(program, folder, config, state, place, shared)
            undo.callback(process.signal, init, 9)
            folder.save(state._replace(init=init, started=time.time()))
            if asked.pid_file:
                _write_pid(asked.pid_file, init.pid)
        undo.pop_all()
    return folder, init


def _prepared(  # noqa: PLR0917  # what is known at this moment
    world: World, folder: ContainerDir, config: Json, root: str, asked: create.Wish, undo: ExitStack, held: ExitStack
) -> State:
    """The state to be, and a cgroup with its limits and device rules: criu moves the processes there."""
    from wherry.container.lifecycle import remove_cgroup
    from wherry.container.state import State
    from wherry.kernel import cgroup, shim
    from wherry.kernel import facts as kernel
    from wherry.model import Place

    group, extra = create.cgroup_of(world, folder.id, config, kernel.measure(Place(state=world.state)), held)
    extra |= {"rootfs": root, "annotations": config.get("annotations") or {}, "owner": os.geteuid()}
    state = State(folder.id, asked.bundle, group.path, None, None, time.time(), 0.0, group.degraded, extra)
    folder.save(state)
    if group.path:
        os.makedirs(group.path, exist_ok=True)
        undo.callback(create.quietly, remove_cgroup, group.path)
        cgroup.update(group.path, list(group.writes))
        if group.device_bpf:
            fd = os.open(group.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            shim.attach_device_program(fd, group.device_bpf, replace=True)
    return state


def _make_mount_points(root: str, config: Json) -> None:
    """What create would make in a root that is another copy; criu mounts on what is there. Below another mount of the
    config it is that one's."""
    from wherry.kernel import files

    mounts = config.get("mounts") or []
    places = [posixpath.normpath(posixpath.join("/", mount["destination"])) for mount in mounts]
    with files.directory(root) as top:
        for mount, place in zip(mounts, places, strict=True):
            if any(place.startswith(f"{other}/") for other in places):
                continue
            try:
                _make_mount_point(top, place, file=os.path.isfile(mount.get("source") or ""))
            except OSError as error:
                text = f"cannot make the mount point {place} in {root}: {error.strerror}"
                raise WherryError(Kind.PRECONDITION, text) from error


def _make_mount_point(top: int, place: str, *, file: bool) -> None:
    """Each step is resolved within the root; a link that leads nowhere is an error."""
    from wherry.kernel import files

    *parents, last = place.strip("/").split("/")
    for index, name in enumerate([*parents, last]):
        with ExitStack() as held:
            above = files.open_in_root(top, "/".join(parents[:index]) or ".", os.O_PATH | os.O_DIRECTORY)
            held.callback(os.close, above)
            try:
                found = files.open_in_root(top, "/".join([*parents[:index], name]), os.O_PATH)
            except FileNotFoundError:
                if file and index == len(parents):
                    found = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=above)
                else:
                    os.mkdir(name, 0o755, dir_fd=above)
                    continue
            held.callback(os.close, found)


#: criu wants the root to be a mount. In a mount namespace of its own nothing is left of that, however it ends
_APART: Final = ("unshare", "--mount", "--propagation", "private", "--", "sh", "-c",
                 'mount --rbind "$1" "$2" && shift 2 && exec "$@"', "criu")  # fmt: skip


def _revive(  # noqa: PLR0917  # what is known at this moment
    program: str, folder: ContainerDir, config: Json, state: State, place: criu.Place, shared: Sequence[str]
) -> Process:
    from wherry.kernel import process

    root, pid_file = folder.file("root"), folder.file("criu.pid")
    os.mkdir(root, 0o700)
    with ExitStack() as held:
        inherited = [*_streams(place.images), *_namespaces(config, held)]
        argv = [*_APART, str(state.extra["rootfs"]), root, program, "restore", "--restore-detached",
                "--restore-sibling", "--pidfile", pid_file, "--root", root, *shared,
                *_restore_options(config, state, inherited)]  # fmt: skip
        fds = [fd for fd, _ in inherited if fd > 2]
        criu.run(argv, place, "restore.log", f"restore container {folder.id}", fds, quiet=False)
    os.rmdir(root)
    with open(pid_file, encoding="ascii") as file:
        pid = int(file.read(32))
    os.unlink(pid_file)
    init = process.identify(pid)
    if init is None:
        raise WherryError(Kind.PRECONDITION, f"container {folder.id} ended as soon as it was restored")
    return init


def _restore_options(config: Json, state: State, inherited: Sequence[tuple[int, str]]) -> Iterator[str]:
    # the newer engine (3.17) copies the propagation of a borrowed mount from its source, which must be a mount itself:
    # a file on a shared mount, as under systemd, is none
    yield "--mntns-compat-mode"
    for fd, key in inherited:
        yield from ("--inherit-fd", f"fd[{fd}]:{key}")
    for key, source in criu.externals(config, state.bundle):
        yield from ("--external", f"mnt[{key}]:{source}")
    if state.cgroup:
        yield from ("--cgroup-root", _below_mount(state.cgroup))
    for entry in config["linux"].get("namespaces") or []:
        if entry["type"] in _JOINED and entry.get("path"):
            yield from ("--join-ns", f"{_JOINED[entry['type']]}:{entry['path']}")
        elif entry["type"] == "network" and not entry.get("path"):
            yield from ("--empty-ns", "net")


def _below_mount(path: str) -> str:
    from wherry.kernel import facts

    return path.removeprefix(facts.measure().cgroup_mount.rstrip("/"))


def _streams(images: str) -> list[tuple[int, str]]:
    """Our standard streams in the place of those that the container had from outside."""
    from wherry.kernel import files

    path = os.path.join(images, criu.DESCRIPTORS)
    try:
        keys = json.loads(files.read_capped(path, _MAX))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise WherryError(Kind.INVALID, f"cannot read {path}: {why}", hint="--image-path names a checkpoint") from None
    if not isinstance(keys, list):
        raise WherryError(Kind.INVALID, f"{path}: must be a list")
    return [(number, key) for number, key in enumerate(keys[:3]) if isinstance(key, str) and _KEY.fullmatch(key)]


def _namespaces(config: Json, held: ExitStack) -> list[tuple[int, str]]:
    found = []
    for entry in config["linux"].get("namespaces") or []:
        if entry["type"] in criu.OUTSIDE and entry.get("path"):
            fd = os.open(entry["path"], os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            found.append((fd, criu.OUTSIDE[entry["type"]][1]))
    return found


def _write_pid(path: str, pid: int) -> None:
    from wherry.kernel import files

    files.atomic_write(path, str(pid).encode())


# ---- both


def options(values: Values) -> Iterator[str]:
    """The options that both directions share, in criu's words."""
    for key in _SAME:
        if values.get(key):
            yield f"--{key.replace('_', '-')}"
    for key in _VALUED:
        if values.get(key):
            yield from (f"--{key.replace('_', '-')}", values[key])
    mode = values["manage_cgroups_mode"] or "soft"
    if mode not in ("soft", "full", "strict", "ignore"):
        raise WherryError(Kind.INVALID, f'--manage-cgroups-mode "{mode}": not soft, full, strict or ignore')
    yield f"--manage-cgroups={mode}"
    if values.get("page_server"):
        address, _, port = values["page_server"].rpartition(":")
        if not address or not port.isdigit():
            raise WherryError(Kind.INVALID, f'--page-server "{values["page_server"]}": not ADDRESS:PORT')
        yield from ("--page-server", "--address", address.strip("[]"), "--port", port)


def _place(values: Values, *, made: bool = True) -> criu.Place:
    """Directories of images and log; those of a checkpoint are made, 0700: memory is in them."""
    images = os.path.abspath(values["image_path"] or "checkpoint")
    work = os.path.abspath(values["work_path"] or images)
    try:
        for path in (images, work) if made else (work,):
            os.makedirs(path, mode=0o700, exist_ok=True)
        if not os.path.isdir(images):
            raise NotADirectoryError(20, "no such directory")
    except OSError as error:
        raise WherryError(Kind.INVALID, f"--image-path {images}: {error.strerror}") from None
    parent = values.get("parent_path") or ""
    if parent and (os.path.isabs(parent) or not os.path.isdir(os.path.join(images, parent))):
        text = f"--parent-path {parent}: not a directory given from {images} on"
        raise WherryError(Kind.INVALID, text, hint="such as ../pre-dump")
    return criu.Place(images, work, parent)
