"""The usual commands, once, before anybody waits for one: what Python makes at a first use (compiled patterns, modules
that load late, what the interpreter notes of hot code) is there in every fork from then on.

Decides what is rehearsed: whatever leaves no trace outside a directory of its own, which goes again. No container is
started; an attachment is made in network namespaces that nobody else sees. Refuses to fail: a warm process without a
rehearsal is slower, not wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

__all__ = ["rehearse"]

_TIMES: Final = 2
_LINES: Final = (
    "run --rm -d --name x -p 8080:80 -v /a:/b:ro -e A=b --network x image true", "exec -e A=b x true", "stop -t 3 x",
    "rm -f x", "logs --tail 3 x", "kill x", "start x", "wait x", "pull x",
)  # fmt: skip


def rehearse(directory: str) -> list[str]:
    """Walk the paths below `directory`/rehearsal; what did not go as it should, for a test to read."""
    from wherry.kernel import files

    failed: list[str] = []
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    scratch = f"/proc/self/fd/{fd}/rehearsal"  # who takes the state away meanwhile must not find it made anew
    try:
        _tried(files.remove_tree, scratch, failed)  # of one that was killed
        _tried(_directory, scratch, failed)
        for work in (_image, *(_commands, _bundle, _plugin, _attachment) * _TIMES):
            _tried(work, scratch, failed)
    finally:
        with suppress(OSError):
            files.remove_tree(scratch)
        os.close(fd)
    return failed


def _directory(scratch: str) -> None:
    os.mkdir(scratch, 0o700)


def _tried(work: Callable[[str], object], scratch: str, failed: list[str]) -> None:
    try:
        work(scratch)
    except Exception as error:
        failed.append(f"{work.__name__}: {type(error).__name__}: {error}")


def _wherry(scratch: str, *words: str) -> str:
    """What it prints."""
    from wherry.cli.app import App, Stdio
    from wherry.cli.main import guarded

    said, errors = io.StringIO(), io.StringIO()
    places = ("--root", f"{scratch}/root", "--state", f"{scratch}/state", "--config", f"{scratch}/none")
    app = App({}, Stdio(io.StringIO(), said, errors), "/")
    code = guarded(app, ["--debug", *places, *words])
    app.engine.close()  # its descriptors would be every fork's
    if code:
        raise RuntimeError(f"wherry {' '.join(words)}: exit {code}: {errors.getvalue()}")
    return said.getvalue().strip()


def _image(scratch: str) -> None:
    """An image without layers, in our store."""
    platform = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, ""), "os": "linux"}
    os.makedirs(f"{scratch}/image/blobs/sha256")
    kind = "application/vnd.oci.image"
    config = {**platform, "config": {"Cmd": ["true"]}, "rootfs": {"type": "layers", "diff_ids": []}}
    manifest = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "layers": [],
                "config": _blob(scratch, f"{kind}.config.v1+json", config)}  # fmt: skip
    entry = {**_blob(scratch, f"{kind}.manifest.v1+json", manifest), "platform": platform}
    _write(f"{scratch}/image/oci-layout", {"imageLayoutVersion": "1.0.0"})
    _write(f"{scratch}/image/index.json", {"schemaVersion": 2, "manifests": [entry]})
    _wherry(scratch, "pull", "-q", f"oci:{scratch}/image")


def _blob(scratch: str, kind: str, value: Any) -> dict[str, Any]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    _write(f"{scratch}/image/blobs/sha256/{digest}", value)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _write(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value))


def _commands(scratch: str) -> None:
    from wherry.cli import quick

    for line in _LINES:
        quick.read(line.split())
    image = _wherry(scratch, "images", "-q")
    _wherry(scratch, "run", "--explain", "--network", "none", image, "true")
    cid = _wherry(scratch, "create", "--network", "none", image, "true")
    _wherry(scratch, "ps", "-a")
    _wherry(scratch, "inspect", cid)
    _wherry(scratch, "rm", "-f", cid)
    _wherry(scratch, "version")


def _bundle(scratch: str) -> None:
    """What `wherry-oci` does before its helper starts."""
    from wherry.container import wire
    from wherry.kernel import facts
    from wherry.model import Place
    from wherry.oci import compile as planner
    from wherry.oci.how import LaunchHow
    from wherry.ocicli import bundle
    from wherry.ocicli.main import main as oci

    with suppress(FileNotFoundError):
        os.unlink(f"{scratch}/config.json")
    for words in (("spec", "--bundle", scratch), ("list",), ("state", "nobody")):
        oci(["--root", f"{scratch}/oci", *words], {})
    config, _ = bundle.read(scratch, "")
    host = facts.measure(Place(state=f"{scratch}/state"))
    wire.encode(planner.compile_create(config, scratch, host, LaunchHow(id="x", rootfs=())))


def _plugin(scratch: str) -> None:
    del scratch
    from wherry.net import launchers

    plugin = launchers.called("wherry-cni/bridge")
    if plugin is not None:
        plugin(["bridge"], {"CNI_COMMAND": "VERSION"}, io.BytesIO(), io.BytesIO())


if __name__ == "__main__":
    for line in rehearse(sys.argv[1]):
        sys.stderr.write(f"{line}\n")


def _attachment(scratch: str) -> None:
    """What a run on a bridge asks of our plugins, with a published port, and its end."""
    from wherry.net import netns

    with suppress(PermissionError):  # another user's warm process: its containers have no bridge either
        netns.apart(lambda: _joined(scratch))
    for thread in threading.enumerate():  # what an end is not waited for is at work still: forks want us alone
        if thread is not threading.current_thread():
            thread.join()


def _joined(scratch: str) -> None:
    from wherry.model import Attachment, Place, PortMapping
    from wherry.net import netns
    from wherry.net.networks import Networks

    networks = Networks(Place(f"{scratch}/root", f"{scratch}/state", "", f"{scratch}/none", ()))
    cid, ports = "0" * 64, (PortMapping(80, 8080),)
    inside = netns.apart(lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    try:
        networks.attach(cid, f"/proc/self/fd/{inside}", Attachment("bridge"), ports)
        networks.detach(cid, f"/proc/self/fd/{inside}", "bridge", ports)
    finally:
        os.close(inside)
