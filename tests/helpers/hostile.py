"""Hostile images, a spy to run inside of them, and the same attack on the distribution's runc for comparison."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .bundles import make_root
from .images import TOP
from .tools import need

__all__ = ["control", "entry", "image", "spy"]

_TYPES = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "char": tarfile.CHRTYPE,
          "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "dir": tarfile.DIRTYPE}  # fmt: skip
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, kind: str, value: object = b"", mode: int = 0o755) -> Entry:
    """One member of a tar: `value` is a file's bytes, a link's target, or a device's numbers."""
    made = tarfile.TarInfo(name)
    made.type, made.mode = _TYPES[kind], mode
    data = value if isinstance(value, bytes) else b""
    if kind in ("link", "hard"):
        made.linkname = str(value)
    if kind in ("char", "block"):
        made.devmajor, made.devminor = value  # type: ignore[misc]
    made.size = len(data)
    return made, data


def tar(entries: Sequence[Entry]) -> bytes:
    """The archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for made, data in entries:
            archive.addfile(made, io.BytesIO(data))
    return out.getvalue()


def image(base: str, directory: Path, entries: Sequence[Entry] = (), **config: Any) -> str:
    """The base image (oci:DIR) with one more layer and other values in its config; named oci:DIR."""
    layout = directory / f"hostile-{len(list(directory.iterdir()))}"
    shutil.copytree(base.removeprefix("oci:"), layout)

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def get(descriptor: dict[str, Any]) -> Any:
        return json.loads((layout / "blobs/sha256" / descriptor["digest"][7:]).read_bytes())

    index = json.loads((layout / "index.json").read_text())
    manifest = get(index["manifests"][0])
    inner = get(manifest["config"])
    layer = tar(entries)
    manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", **put(layer)})
    inner["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layer).hexdigest())
    inner["config"].update(config)
    inner.pop("history", None)
    manifest["config"].update(put(json.dumps(inner).encode()))
    index["manifests"][0].update(put(json.dumps(manifest).encode()))
    (layout / "index.json").write_text(json.dumps(index))
    return f"oci:{layout}"


def spy(directory: Path) -> Path:
    """The static spy (tests/payload/spy.c) in a directory of its own, to be bound at /v."""
    need("gcc")
    directory.mkdir()
    program = directory / "spy"
    subprocess.run(["gcc", "-O1", "-static", "-o", program, TOP / "tests/payload/spy.c"], check=True)
    return directory


def control(directory: Path, args: Sequence[str], change: Callable[[Path, dict[str, Any]], None]) -> str:
    """What runc makes of the same: printed for `pytest -s`, asserted by nobody."""
    if not shutil.which("runc"):
        return "CONTROL: no runc"
    bundle = directory / "control"
    make_root(bundle / "rootfs")
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(terminal=False, args=list(args))
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    config["linux"].pop("resources", None)
    config["root"]["readonly"] = False
    change(bundle / "rootfs", config)
    (bundle / "config.json").write_text(json.dumps(config))
    name = f"control-{os.getpid()}-{directory.name}"
    command = ["runc", "--root", bundle / "state", "run", name]
    try:
        done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=20, check=False,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        found = f"CONTROL runc: exit {done.returncode} {done.stdout[-800:]}{done.stderr[-400:]}"
    except subprocess.TimeoutExpired:
        found = "CONTROL runc: hangs"
    finally:
        subprocess.run(["runc", "--root", bundle / "state", "delete", "-f", name], capture_output=True, check=False)
    print(found)
    return found
