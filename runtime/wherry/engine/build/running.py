"""RUN: a step's command in a container of its own, over the layers so far; what it wrote becomes the layer.

Decides what the command sees: docker's environment, its --mounts, its network. The container is made and started as
any other (seccomp, capabilities, sealed helper); its row says which build it belongs to, so that a sweep finds it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.dockerfile import Instruction, refuse
from wherry.image.instructions import Run, RunMount, Step, run_mount
from wherry.model import (
    ATTACH_EXIT,
    ATTACH_STDERR,
    ATTACH_STDOUT,
    Attachment,
    ImageRecord,
    LogConfig,
    MountRequest,
    RunOptions,
)

from .copying import Item, Order, Writer, gather
from .copying import facts as order_facts
from .drafts import PROXIES, Draft, Words, argv, joined
from .stages import expanded
from .values import BuildOptions, CommandFailed, Secret
from .work import Work, record

if TYPE_CHECKING:
    from wherry.image.author import NewLayer

    from .trees import Tree

__all__ = ["Sources", "Task", "execute", "task"]

_HOSTNAME = "buildkitsandbox"
_SECRET_MAX = 500 << 10  # BuildKit's


class Task(NamedTuple):
    """One RUN, ready to be done. `facts` is what its result depends on."""

    at: Instruction
    words: tuple[str, ...]
    env: tuple[str, ...]
    mounts: tuple[RunMount, ...]
    network: str
    script: str  # a here-document that is a program of its own
    facts: list[object]


class Sources(NamedTuple):
    """Where mounts come from. `tree` opens a stage, an image or (by "") the context; `known` names what is in it."""

    tree: Callable[[str], contextlib.AbstractContextManager[Tree]]
    known: Callable[[str], list[object]]
    secrets: Mapping[str, Secret]


def task(draft: Draft, step: Step, words: Words, network: str, sources: Sources) -> Task:
    """What is to be run."""
    says = step.says
    assert isinstance(says, Run)
    mounts = tuple(run_mount(step.at, expanded(step.at, text, draft.values, words.escape)) for text in says.mounts)
    line, script = _line(draft, says)
    args = {name: value for name, value in draft.args.items() if name not in draft.env}
    proxies = {name: value for name, value in words.given.items() if name in PROXIES and name not in draft.values}
    facts: list[object] = [
        line, script, sorted(draft.env.items()), sorted(args.items()), draft.text("User"), draft.workdir, network,
        [_mount_facts(draft, step.at, mount, sources) for mount in mounts],
    ]  # fmt: skip
    env = tuple(f"{name}={value}" for name, value in {**proxies, **args}.items())
    return Task(step.at, tuple(line), env, mounts, says.network or network, script, facts)


def _line(draft: Draft, says: Run) -> tuple[list[str], str]:
    """The words of the command. One here-document alone is the script; in a longer line the shell reads it."""
    if not says.heredocs:
        return argv(draft, says.command), ""
    line = says.command.words[0]
    if len(line.split()) > 1 or len(says.heredocs) > 1:
        whole = line + "".join(f"\n{one.text}{one.name}" for one in says.heredocs)
        return argv(draft, says.command._replace(words=(whole,))), ""
    text = says.heredocs[0].text
    if text.startswith("#!"):
        return [f"/dev/pipes/{says.heredocs[0].name}"], text
    return argv(draft, says.command._replace(words=(text,))), ""


def _mount_facts(draft: Draft, at: Instruction, mount: RunMount, sources: Sources) -> list[object]:
    """Contents count where they are read only; what is in a cache, a secret and a tmpfs is no input of the step.

    To know what is in another stage is to wait for it: here, and not when a turn to run is held already.
    """
    facts: list[object] = [mount.type, joined(draft.workdir, mount.target), mount.id, sorted(mount.options.items())]
    if mount.origin:
        return [*facts, mount.source, sources.known(mount.origin)]
    if mount.type != "bind":
        return facts
    with sources.tree("") as tree:
        return [*facts, order_facts(_order(at, tree, mount))]


def _order(at: Instruction, tree: Tree, mount: RunMount) -> Order:
    items = gather(tree, mount.source or "/")
    if len(items) != 1:
        refuse(at, f"failed to find {mount.source!r} in {tree.what}", "the source of a mount is one path that is there")
    return Order(tuple(items), "/", False, None, None)


# ---- doing it


def execute(  # noqa: PLR0917 - what a step is done with
    work: Work, draft: Draft, what: Task, sources: Sources, output: Callable[[bytes], None], asked: BuildOptions
) -> NewLayer | None:
    """Run it to its end; the layer that it made."""
    work.unpacked(draft)
    with contextlib.ExitStack() as held:
        mounts = tuple(_mounts(work, draft, what, sources, held))
        with work.view(draft) as root:
            missing = [path for mount in mounts for path in _missing(root, mount.target)]
        options = RunOptions(
            image="build", command=what.words, entrypoint=(), env=what.env, workdir=draft.workdir, hostname=_HOSTNAME,
            network=(Attachment(what.network),) if what.network in ("none", "host") else (), mounts=mounts,
            add_host=asked.add_host, shm_size=asked.shm_size, ulimits=asked.ulimits, log=LogConfig("none"),
            no_healthcheck=True, pull="never",
        )  # fmt: skip
        with _container(work, options, record(draft)) as cid:
            _carried_out(work, cid, what, output)
            _tidy(work.house.snapshots.upper(cid), missing)
            return work.layer(cid)


@contextlib.contextmanager
def _container(work: Work, options: RunOptions, image: ImageRecord) -> Iterator[str]:
    """A container that is there as long as the block, and nobody's but this build's."""
    from wherry.engine import create, remove

    made = create.draft(work.house, options, None, record=image)
    made.config["build"] = work.id
    row = create.commit(work.house, made)
    work.live.add(row.id)
    try:
        yield row.id
    finally:
        work.live.discard(row.id)
        remove.remove(work.house, row.id, force=True, volumes=True)


def _carried_out(work: Work, cid: str, what: Task, output: Callable[[bytes], None]) -> None:
    from wherry.engine import start

    work.check()
    shown = " ".join(what.words)
    try:
        running = start.start(work.house, cid, attach=True, interactive=False)
        while (frame := running.read()) is not None and frame[0] != ATTACH_EXIT:
            if frame[0] in (ATTACH_STDOUT, ATTACH_STDERR):
                output(frame[1])
        status = running.wait()
    except WherryError as error:
        work.check()
        raise WherryError(
            error.kind, f'process "{shown}" could not be run: {error.message}', hint=error.hint
        ) from error
    work.check()
    if status.code:
        why = " (out of memory)" if status.oom else ""
        raise CommandFailed(shown, status.code, why)


# ---- mounts


def _mounts(
    work: Work, draft: Draft, what: Task, sources: Sources, held: contextlib.ExitStack
) -> Iterator[MountRequest]:
    for mount in what.mounts:
        target = joined(draft.workdir, mount.target) if mount.target else f"/run/secrets/{mount.id}"
        found = _MAKERS[mount.type](work, what, mount, sources, held)
        if found is not None:
            yield found._replace(target=target)
    if what.script:
        path = f"{work.scratch()}/script"
        with open(path, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o755)
            file.write(what.script)
        yield MountRequest("bind", what.words[0], path, ("ro",))


_Maker = Callable[[Work, Task, RunMount, Sources, contextlib.ExitStack], "MountRequest | None"]


def _bind(work: Work, what: Task, mount: RunMount, sources: Sources, _held: contextlib.ExitStack) -> MountRequest:
    """A copy: what the step may write to it is nobody's, and nothing that the ignore file hides is there."""
    with sources.tree(mount.origin) as tree:
        path = _copied(work.scratch(), _order(what.at, tree, mount).items[0])
    writable = mount.options.get("rw", "false") == "true" or mount.options.get("ro") == "false"
    return MountRequest("bind", "", path, ("rw",) if writable else ("ro",))


def _copied(place: str, item: Item) -> str:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if item.is_directory:
            Writer(fd).directory("/all", item, into=False)
            return f"{place}/all"
        Writer(fd).file("/one", item)
        return f"{place}/one"
    finally:
        os.close(fd)


def _cache(work: Work, what: Task, mount: RunMount, sources: Sources, held: contextlib.ExitStack) -> MountRequest:
    sharing = mount.options.get("sharing", "shared")
    if sharing not in ("shared", "private", "locked"):
        refuse(what.at, f"unsupported sharing value {sharing!r}", "shared, private or locked")
    owner, mode = _owner(what.at, mount), _mode(what.at, mount, 0o755)

    def fill(path: str) -> None:
        if mount.origin:
            with sources.tree(mount.origin) as tree:
                _fill(path, _order(what.at, tree, mount).items[0])
        os.chown(path, *owner)
        os.chmod(path, mode)

    name = "\0".join((mount.id or posixpath.normpath(mount.target), mount.origin, mount.source))
    path = held.enter_context(work.cache.mount(name, sharing, fill))
    return MountRequest("bind", "", path, ("ro",) if mount.options.get("ro") == "true" else ("rw",))


def _fill(path: str, item: Item) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        Writer(fd).directory("/", item, into=True)
    finally:
        os.close(fd)


def _tmpfs(_work: Work, _what: Task, mount: RunMount, _sources: Sources, _held: contextlib.ExitStack) -> MountRequest:
    size = mount.options.get("size")
    return MountRequest("tmpfs", "", "", ("mode=1777", "exec", *((f"size={size}",) if size else ())))


def _secret(
    work: Work, what: Task, mount: RunMount, sources: Sources, _held: contextlib.ExitStack
) -> MountRequest | None:
    name = mount.id or posixpath.basename(mount.target)
    if name not in sources.secrets:
        if mount.options.get("required", "false") == "true":
            refuse(what.at, f"secret {name}: not found", f"give it: --secret id={name},src=FILE")
        return None
    path = work.secret(_value(sources.secrets[name]), _owner(what.at, mount), _mode(what.at, mount, 0o400))
    return MountRequest("bind", "", path, ("ro",))


_MAKERS: dict[str, _Maker] = {"bind": _bind, "cache": _cache, "tmpfs": _tmpfs, "secret": _secret}


def _value(secret: Secret) -> bytes:
    from wherry.kernel import files

    if secret.value is not None:
        return secret.value
    try:
        return files.read_capped(secret.path, _SECRET_MAX)
    except OSError as error:
        raise WherryError(
            Kind.INVALID, f"cannot read secret {secret.id} from {secret.path}: {error.strerror}"
        ) from error


def _owner(at: Instruction, mount: RunMount) -> tuple[int, int]:
    found = [mount.options.get(key, "0") for key in ("uid", "gid")]
    if not all(text.isascii() and text.isdigit() and int(text) < 1 << 31 for text in found):
        refuse(at, f"invalid uid or gid of a mount: {', '.join(found)}", "a number")
    return int(found[0]), int(found[1])


def _mode(at: Instruction, mount: RunMount, default: int) -> int:
    text = mount.options.get("mode", "")
    try:
        mode = int(text, 8) if text else default
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        refuse(at, f"invalid mode of a mount: {text}", "octal, such as 0755")
    return mode


# ---- the places that mounts were made on


def _missing(root: int, target: str) -> list[str]:
    """What a mount's target lacks: the start makes it, and it is not the step's work. Links resolved, deepest last."""
    from wherry.kernel import files

    here, rest = "/", target.strip("/").split("/")
    while rest:
        try:
            fd = files.open_in_root(root, posixpath.join(here, rest[0]), os.O_PATH)
        except OSError:
            break
        try:
            here = "/" + os.readlink(f"/proc/self/fd/{fd}").lstrip("/")
        finally:
            os.close(fd)
        rest.pop(0)
    return [posixpath.join(here, *rest[: n + 1]) for n in range(len(rest))]


def _tidy(upper: str, paths: Sequence[str]) -> None:
    """Take empty mount points away again, but never what the step itself has put there."""
    from wherry.kernel import files

    with files.directory(upper) as root:
        for path in sorted(set(paths), key=lambda path: -path.count("/")):
            above, name = posixpath.split(path.lstrip("/"))
            with contextlib.suppress(OSError):
                parent = files.open_beneath(root, above or ".", os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _take_away(parent, name)
                finally:
                    os.close(parent)


def _take_away(parent: int, name: str) -> None:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        os.rmdir(name, dir_fd=parent)
    elif stat.S_ISREG(found.st_mode) and not found.st_size:
        os.unlink(name, dir_fd=parent)
