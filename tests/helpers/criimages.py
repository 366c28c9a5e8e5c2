"""The images that critest and the Kubernetes tests ask for by literal name, made of what is installed here and pushed
to a loopback registry; nothing is downloaded.

A runtime finds them when its own configuration of mirrors sends the registries in REGISTRIES there (`hosts`).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from .gotools import plain_busybox
from .images import TOP
from .tools import need, run

__all__ = ["BUSYBOX", "NGINX", "NGINX_NEXT", "PAUSE", "REGISTRIES", "hosts", "publish"]

REGISTRIES = ("gcr.io", "registry.k8s.io", "k8s.gcr.io")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_E2E, _CRI = "e2e-test-images", "k8s-staging-cri-tools"
#: for runtimes whose sandboxes hold an image; another than pause:3.9, which critest pulls and removes
PAUSE = "registry.k8s.io/sandbox:latest"
BUSYBOX = f"registry.k8s.io/{_E2E}/busybox:1.29-2"
NGINX, NGINX_NEXT = f"registry.k8s.io/{_E2E}/nginx:1.14-2", f"registry.k8s.io/{_E2E}/nginx:1.15-4"

_USERS = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
default-user:x:1000:1000::/:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUPS = "root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\ndefined:x:50000:default-user\n"
#: busybox-static has none
_PGREP = """#!/bin/sh
found=1
for comm in /proc/[0-9]*/comm; do
    pid=${comm#/proc/} pid=${pid%/comm}
    [ "$pid" != $$ ] && read -r name 2>/dev/null <"$comm" || continue
    case $name in *"$1"*) echo "$pid"; found=0 ;; esac
done
exit $found
"""
_TYPES = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
}


class _Layer(NamedTuple):
    packed: bytes
    plain_digest: str


def hosts(directory: Path, registry: str) -> Path:
    """A hosts.d (containerd's layout) in which REGISTRIES have this registry (host:port) in their place."""
    for name in REGISTRIES:
        (directory / name).mkdir(parents=True, exist_ok=True)
        text = f'server = "http://{registry}"\n[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n'
        (directory / name / "hosts.toml").write_text(text)
    return directory


def publish(registry: str, scratch: Path) -> None:
    """Make and push them all."""
    base = _base()
    for names, config, more in _table(_programs(scratch)):
        layers = [base, *([_layer(more)] if more else [])]
        for name in names.split():
            _push(registry, name, layers, {"Cmd": ["sh"], "Env": [_PATH], "Labels": {"of": names}, **config})


def _table(programs: dict[str, bytes]) -> list[tuple[str, dict[str, Any], list[tuple[str, int, bytes]]]]:
    """Names of one image (so of one digest), what its config adds, the files of its second layer."""

    def web(title: str, port: int, text: str, program: str) -> tuple[dict[str, Any], list[tuple[str, int, bytes]]]:
        pid = f"/var/run/{program}.pid"
        command = [f"/usr/sbin/{program}", title, str(port), text, pid]
        return {"Entrypoint": command, "Cmd": None, "StopSignal": "SIGQUIT"}, [
            (f"usr/sbin/{program}", 0o755, programs["web"])
        ]

    master = "nginx: master process nginx -g daemon off;"
    return [
        (f"{_E2E}/busybox:1.29-2", {}, []),
        (f"{_E2E}/nginx:1.14-2", *web(master, 80, "nginx 1.14", "nginx")),
        (f"{_E2E}/nginx:1.15-4", *web(master, 80, "nginx 1.15", "nginx")),
        (f"{_E2E}/httpd:2.4.39-4", *web("httpd", 80, "httpd", "httpd")),
        (f"{_CRI}/hostnet-nginx-amd64:latest", *web(master, 12003, "nginx on the host", "nginx")),
        (f"{_E2E}/nonewprivs:1.3", {"Cmd": ["/nnp"]}, [("nnp", 0o4755, programs["nnp"])]),
        (f"{_CRI}/test-image-latest:latest", {}, []),
        (f"{_CRI}/test-image-tag:test", {}, []),
        (f"{_CRI}/test-image-tag:all", {}, []),
        *((f"{_CRI}/test-image-{number}:latest", {}, []) for number in (1, 2, 3)),
        (" ".join(f"{_CRI}/test-image-tags:{number}" for number in (1, 2, 3)), {}, []),
        (f"{_CRI}/test-image-user-uid:latest", {"User": "1002"}, []),
        (f"{_CRI}/test-image-user-username:latest", {"User": "www-data"}, []),
        (f"{_CRI}/test-image-user-uid-group:latest", {"User": "1003:users"}, []),
        (f"{_CRI}/test-image-user-username-group:latest", {"User": "www-data:100"}, []),
        (f"{_CRI}/test-image-predefined-group:latest", {"User": "1000"}, []),
        # no `sleep`: a case looks whether there is one in a pod
        *((name, {"Cmd": ["tail", "-f", "/dev/null"]}, []) for name in ("pause:3.9", "sandbox:latest")),
    ]


def _programs(scratch: Path) -> dict[str, bytes]:
    need("gcc")
    made = {}
    for name in ("web", "nnp"):
        run("gcc", "-O1", "-static", "-o", scratch / name, TOP / f"tests/payload/{name}.c")
        made[name] = (scratch / name).read_bytes()
    return made


@functools.cache
def _base() -> _Layer:
    """busybox with hard-linked applets, as the original has them, and a shell that starts programs by their path:
    busybox-static's runs its own applets in their place, in which no test of what a process is can see them."""
    need("busybox", "ipcs")
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    listed = subprocess.run(["busybox", "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    applets = sorted({name.lstrip("/") for name in listed} - {"bin/busybox", "bin/sh"})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode in (("tmp", 0o1777), ("var/run", 0o755), ("etc", 0o755), ("root", 0o700), ("proc", 0o755),
                           ("sys", 0o755), ("dev", 0o755), ("mnt", 0o755), ("var/www", 0o755)):  # fmt: skip
            _add(archive, name, tarfile.DIRTYPE, mode)
        _add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, busybox)
        for name in applets:
            _add(archive, name, tarfile.LNKTYPE, 0o755, link="bin/busybox")
        found = {**_dynamic(plain_busybox(), "bin/sh"), **_dynamic(Path(shutil.which("ipcs") or ""), "usr/bin/ipcs")}
        for name, data in found.items():
            _add(archive, name, tarfile.REGTYPE, 0o755, data)
        _add(archive, "usr/bin/pgrep", tarfile.REGTYPE, 0o755, _PGREP.encode())
        for name, text in (("passwd", _USERS), ("group", _GROUPS), ("nsswitch.conf", "hosts: files dns\n")):
            _add(archive, f"etc/{name}", tarfile.REGTYPE, 0o644, text.encode())
    return _packed(out.getvalue())


def _dynamic(program: Path, name: str) -> dict[str, bytes]:
    """A program under this name, and the libraries that it needs."""
    libraries = [word for word in run("ldd", program).stdout.split() if word.startswith("/")]
    return {name: program.read_bytes(), **{word.lstrip("/"): Path(word).read_bytes() for word in libraries}}


def _layer(files: list[tuple[str, int, bytes]]) -> _Layer:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode, data in files:
            _add(archive, name, tarfile.REGTYPE, mode, data)
    return _packed(out.getvalue())


def _packed(tar: bytes) -> _Layer:
    return _Layer(gzip.compress(tar, 1, mtime=0), _digest(tar))


def _add(archive: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", *, link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    archive.addfile(entry, io.BytesIO(data))


def _push(registry: str, name: str, layers: list[_Layer], config: dict[str, Any]) -> None:
    """One image under one name, by the distribution-spec's monolithic uploads."""
    repository, _, tag = name.partition(":")
    rootfs = {"type": "layers", "diff_ids": [layer.plain_digest for layer in layers]}
    settings = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
    place = f"http://{registry}/v2/{repository}"
    manifest = {
        "schemaVersion": 2, "mediaType": _TYPES["manifest"],
        "config": _blob(place, "config", json.dumps(settings).encode()),
        "layers": [_blob(place, "layer", layer.packed) for layer in layers],
    }  # fmt: skip
    _ask("PUT", f"{place}/manifests/{tag}", json.dumps(manifest).encode(), _TYPES["manifest"])


def _blob(place: str, kind: str, data: bytes) -> dict[str, Any]:
    digest = _digest(data)
    to = urllib.parse.urljoin(place, _ask("POST", f"{place}/blobs/uploads/", b""))
    _ask("PUT", f"{to}{'&' if '?' in to else '?'}digest={digest}", data)
    return {"mediaType": _TYPES[kind], "digest": digest, "size": len(data)}


def _ask(method: str, url: str, data: bytes, kind: str = "application/octet-stream") -> str:
    """One request that must succeed; where it leads."""
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return str(reply.headers.get("Location", ""))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
