"""What is written down of pods: the row's options, and pod.json, which says what a ready pod holds.

Decides where a pod's files lie (docs/state.md) and that pod.json counts for the boot that wrote it. Refuses to know how
anything in it came to be.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wherry.engine import codec
from wherry.engine.house import House
from wherry.errors import Kind, WherryError
from wherry.kernel import files, process
from wherry.kernel.process import Process
from wherry.model import Json, PortMapping

from .values import Held, IdMap, PodOptions

__all__ = ["decode", "directory", "encode", "forget", "load", "load_many", "lock", "run_directory", "store"]

_MAX = 1 << 20  # bytes of one pod.json
_USUAL = 4 << 10  # bytes of one, on an average, when many are read at once
_MAPS = {"uids": codec.many(IdMap), "gids": codec.many(IdMap)}
_OPTIONS: dict[str, Callable[[Any], Any]] = {**_MAPS, "ports": codec.many(PortMapping)}
_HELD: dict[str, Callable[[Any], Any]] = {**_MAPS, "pause": codec.of(Process)}


def directory(house: House, pod: str) -> str:
    """ROOT/pods/<id>: the files that its containers share, and its lock."""
    return f"{house.place.root}/pods/{pod}"


def run_directory(house: House, pod: str) -> str:
    """STATE/pods/<id>: pod.json, pinned namespaces, /dev/shm."""
    return f"{house.place.state}/pods/{pod}"


def encode(options: PodOptions) -> Json:
    """As a row keeps them."""
    made: Json = codec.encode(options)
    return made


def decode(data: Json) -> PodOptions:
    """What `encode` made."""
    return codec.plain(PodOptions, data, _OPTIONS)


@contextlib.contextmanager
def lock(house: House, pod: str, timeout: float = 120, *, shared: bool = False, create: bool = False) -> Iterator[None]:
    """One verb at a time on a pod; `shared` by those that only need it to stay as it is. NOT_FOUND if it has gone while
    we waited, CONFLICT after `timeout` seconds. Only who makes the pod may `create` the lock."""
    with contextlib.ExitStack() as held:
        try:
            path = f"{directory(house, pod)}/lock"
            fd = held.enter_context(files.flock(path, timeout, shared=shared, create=create))
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError
        except (FileNotFoundError, NotADirectoryError) as error:
            raise WherryError(Kind.NOT_FOUND, f"no such pod: {pod[:12]}") from error
        yield


# ---- pod.json ----


def store(house: House, held: Held) -> None:
    """Write it: from now on the pod is ready."""
    data = json.dumps({**codec.encode(held), "boot": _boot()}).encode()
    files.atomic_write(f"{run_directory(house, held.id)}/pod.json", data, 0o600)


def forget(house: House, pod: str) -> bool:
    """Remove it: from now on the pod is not ready. False if it was not there."""
    try:
        os.unlink(f"{run_directory(house, pod)}/pod.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def load(house: House, pod: str) -> Held | None:
    """What a pod holds; None unless it is ready."""
    try:
        text = files.read_small(f"{run_directory(house, pod)}/pod.json", _MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    held = _read(text, _boot())
    return held if held is not None and (held.pause is None or process.alive(held.pause)) else None


def load_many(house: House, pods: Sequence[str]) -> dict[str, Held]:
    """`load` of those that are ready, at the cost of a few."""
    from wherry.kernel import shim

    top = f"{house.place.state}/pods"
    if not pods or not os.path.isdir(top):
        return {}
    texts = shim.read_many(top, [f"{pod}/pod.json" for pod in pods], _USUAL * (len(pods) + 8))
    boot = _boot()
    found = [held for text in texts if text and (held := _read(text, boot)) is not None]
    pauses = [held.pause for held in found if held.pause is not None]
    dead = {pause for pause, alive in zip(pauses, process.alive_many(pauses), strict=True) if not alive}
    return {held.id: held for held in found if held.pause is None or held.pause not in dead}


def _read(text: bytes, boot: str) -> Held | None:
    """None for one of another boot: what it names is gone, where STATE outlived it."""
    data = json.loads(text)
    return codec.plain(Held, data, _HELD) if data.get("boot") == boot else None


def _boot() -> str:
    return files.read_small("/proc/sys/kernel/random/boot_id", 256).decode().strip()
