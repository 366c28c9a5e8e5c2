"""The program criu: what of a container is the outside's to it, whether it can work, and carrying it out.

Decides which mounts, files and namespaces a dump is to leave alone, and refuses beforehand what cannot work. Knows
nothing of where images are kept and of whoever wants them.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json

if TYPE_CHECKING:
    from wherry.kernel.process import Process

__all__ = ["DESCRIPTORS", "OUTSIDE", "Place", "able", "descriptors", "dump_words", "externals", "run",
           "write_descriptors"]  # fmt: skip

DESCRIPTORS: Final = "descriptors.json"  # runc's and crun's name for it
_TIMEOUT: Final = 3600  # seconds: a large memory on a slow disk
#: linux.namespaces with a path: the name that ties one from outside to its place, as crun's images have it
OUTSIDE: Final = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}


class Place(NamedTuple):
    """Where images and criu's log lie."""

    images: str
    work: str
    parent: str = ""


def dump_words(config: Json, bundle: str, init: Process, rootfs: str, cgroup: str) -> Iterator[str]:
    """What a dump of this container takes, whoever asks for it."""
    yield from ("--root", rootfs)
    if cgroup:
        yield from ("--freeze-cgroup", cgroup)
    for key, _ in externals(config, bundle):
        yield from ("--external", f"mnt[{key}]:{key}")
    for key in descriptors(init):
        if key.startswith("file["):
            yield from ("--external", key)
    for entry in config["linux"].get("namespaces") or []:
        if entry["type"] in OUTSIDE and entry.get("path"):
            name, key = OUTSIDE[entry["type"]]
            yield from ("--external", f"{name}[{os.stat(entry['path']).st_ino}]:{key}")
        elif entry["type"] == "network":
            yield from ("--empty-ns", "net")  # its devices are the caller's


def externals(config: Json, where: str) -> list[tuple[str, str]]:
    """(mount point, source on the host) of what the container only borrows: bind mounts, and the null device over
    masked files. One that is not mounted is no error to criu."""
    from wherry.oci import options as words

    found = []
    for index, mount in enumerate(config.get("mounts") or []):
        parsed = words.parse(mount.get("options") or [], f"mounts[{index}]")
        if parsed.bind or mount.get("type") in ("bind", "rbind"):
            found.append((posixpath.normpath(mount["destination"]), os.path.join(where, mount["source"])))
    masked = config["linux"].get("maskedPaths") or []
    return found + [(posixpath.normpath(path), "/dev/null") for path in masked if not os.path.isdir(path)]


def descriptors(init: Process) -> list[str]:
    """What the standard streams are, as criu names it where it comes from outside: pipe:[...], file[mount:inode] for
    one on a mount that the container does not have; "" for what criu finds inside."""
    from wherry.kernel.facts import read

    base = f"/proc/{init.pid}"
    inside = {line.split()[0] for line in read(f"{base}/mountinfo").splitlines()}
    return [_descriptor(base, number, inside) for number in range(3)]


def _descriptor(base: str, number: int, inside: set[str]) -> str:
    from wherry.kernel.facts import read

    try:
        target, found = os.readlink(f"{base}/fd/{number}"), os.stat(f"{base}/fd/{number}")
    except OSError:
        return ""
    if target.startswith("pipe:"):
        return target
    mount = next((line.split()[1] for line in read(f"{base}/fdinfo/{number}").splitlines() if line[:6] == "mnt_id"), "")
    if not mount or mount in inside or stat.S_ISSOCK(found.st_mode):
        return ""
    return f"file[{int(mount):x}:{found.st_ino:x}]"


def write_descriptors(images: str, init: Process) -> None:
    """Say beside the images what the standard streams were."""
    from wherry.kernel import files

    files.atomic_write(os.path.join(images, DESCRIPTORS), json.dumps(descriptors(init)).encode(), 0o600)


def able(verb: str, cid: str, config: Json) -> str:
    """The path of criu, once nothing is known that must fail."""
    if os.geteuid():
        raise WherryError(Kind.DENIED, f"cannot {verb} container {cid}: criu needs root")
    if config["process"].get("terminal"):
        text = f"cannot {verb} container {cid}: process.terminal: criu's command line cannot hand a terminal over"
        raise WherryError(Kind.UNSUPPORTED, text)
    if any(entry["type"] == "user" for entry in config["linux"].get("namespaces") or []):
        text = f"cannot {verb} container {cid}: linux.namespaces: one with a user namespace is not supported"
        raise WherryError(Kind.UNSUPPORTED, text)
    program = shutil.which("criu")
    if program is None:
        raise WherryError(Kind.UNSUPPORTED, f"cannot {verb} container {cid}: the program criu is not installed",
                          hint="apt-get install criu")
    done = subprocess.run([program, "check"], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        why = _first_error(done.stdout + done.stderr)
        text = f"cannot {verb} container {cid}: criu check says that it does not work on this kernel: {why}"
        raise WherryError(Kind.UNSUPPORTED, text, hint="a newer criu may know this kernel; criu check --all tells more")
    return program


def _first_error(text: str) -> str:
    """criu's errors without their places in its source; the first is the cause."""
    found = re.findall(r"Error \([^)]*\): (.*)", text)
    return found[0].strip() if found else "it gives no reason"


def run(
    argv: Sequence[str], place: Place, log: str, what: str, fds: Sequence[int], *, quiet: bool = True,
    seconds: float = _TIMEOUT,
) -> None:
    """Carry criu out. `quiet`: our standard streams are not its own."""
    from wherry.kernel.facts import read

    files = ["--images-dir", place.images, "--work-dir", place.work, "--log-file", log, "-v4"]
    stream = subprocess.DEVNULL if quiet else None
    done = subprocess.run([*argv, *files], stdin=stream, stdout=stream, stderr=stream, check=False,
                          pass_fds=fds, timeout=seconds)  # fmt: skip
    if done.returncode:
        path = os.path.join(place.work, log)
        why = _first_error(read(path))
        raise WherryError(Kind.PRECONDITION, f"cannot {what}: criu: {why}", hint=f"its log is {path}")
