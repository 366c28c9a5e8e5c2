#!/usr/bin/env python3
"""Write a real OCI image layout from this distribution's static busybox: oci-bundles/busybox, tag busybox:latest.

    make_image.py [DIRECTORY] [--busybox /bin/busybox] [--force]

Deterministic: the same busybox gives the same digests. Nothing is downloaded. Quick when it is already there. Standard
library only, so that it works before wherry is installed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

TAG = "busybox:latest"
EPOCH = "1970-01-01T00:00:00Z"
MACHINES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "i686": ("386", "")}
USERS = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"
NAMES = "hosts: files dns\n"  # a static glibc program without it asks the name servers only, never /etc/hosts
DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "lib": 0o755, "proc": 0o755, "root": 0o700, "sbin": 0o755,
    "sys": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/tmp": 0o1777,
    "var/www": 0o755,
}  # fmt: skip


def find_busybox(asked: str) -> Path:
    """The static busybox to use."""
    for place in (asked, shutil.which("busybox") or "", "/bin/busybox"):
        if place and os.access(place, os.X_OK):
            return Path(place)
    sys.exit("make_image: no busybox here; install it: apt-get install busybox-static")


def check_static(program: Path) -> bytes:
    """Its bytes; refused when it needs a dynamic loader, which the image would not have."""
    data = program.read_bytes()
    if data[:4] != b"\x7fELF" or b"/ld-linux" in data or b"/ld-musl" in data:
        sys.exit(f"make_image: {program} is not a static program; install it: apt-get install busybox-static")
    return data


def applets(program: Path) -> list[str]:
    """Paths of the applets, such as usr/bin/env."""
    result = subprocess.run([program, "--list-full"], capture_output=True, text=True, check=True, timeout=30)
    return sorted({line.strip().lstrip("/") for line in result.stdout.splitlines() if line.strip()} - {"bin/busybox"})


def add(archive: tarfile.TarFile, name: str, kind: bytes, mode: int, *, data: bytes = b"", link: str = "") -> None:
    """One entry owned by root, at time 0."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    archive.addfile(entry, io.BytesIO(data))


def layer(busybox: bytes, names: list[str]) -> bytes:
    """The tar of the root file system."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        made = dict(DIRECTORIES)
        made.update({parent: 0o755 for name in names for parent in parents(name) if parent not in made})
        for name, mode in sorted(made.items()):
            add(archive, name, tarfile.DIRTYPE, mode)
        add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, data=busybox)
        for name in names:
            add(archive, name, tarfile.SYMTYPE, 0o777, link="/bin/busybox")
        add(archive, "etc/passwd", tarfile.REGTYPE, 0o644, data=USERS.encode())
        add(archive, "etc/group", tarfile.REGTYPE, 0o644, data=GROUP.encode())
        add(archive, "etc/nsswitch.conf", tarfile.REGTYPE, 0o644, data=NAMES.encode())
    return out.getvalue()


def parents(name: str) -> list[str]:
    """a/b/c: a/b and a."""
    return [str(parent) for parent in Path(name).parents if str(parent) != "."]


def put(layout: Path, media_type: str, data: bytes) -> dict[str, object]:
    """Write a blob; its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def as_json(value: object) -> bytes:
    """The same bytes every time."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_layout(layout: Path, busybox: bytes, names: list[str]) -> None:
    """The whole layout, in a directory that exists and is empty."""
    (layout / "blobs/sha256").mkdir(parents=True)
    architecture, variant = MACHINES.get(os.uname().machine, (os.uname().machine, ""))
    platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
    tar = layer(busybox, names)
    packed = put(layout, "application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(tar, 6, mtime=0))
    config = {
        **platform, "created": EPOCH,
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
        "history": [{"created": EPOCH, "created_by": "busybox-static of the distribution"}],
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(layout, "application/vnd.oci.image.config.v1+json", as_json(config)), "layers": [packed],
    }  # fmt: skip
    entry = put(layout, "application/vnd.oci.image.manifest.v1+json", as_json(manifest))
    entry |= {"platform": platform, "annotations": {"org.opencontainers.image.ref.name": TAG}}
    (layout / "oci-layout").write_bytes(as_json({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_bytes(as_json({"schemaVersion": 2, "manifests": [entry]}))


def fresh(layout: Path, busybox: Path) -> bool:
    """Whether the layout is there and no older than the program."""
    index = layout / "index.json"
    return index.is_file() and index.stat().st_mtime >= max(busybox.stat().st_mtime, Path(__file__).stat().st_mtime)


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("directory", nargs="?", type=Path, default=here / "oci-bundles/busybox")
    parser.add_argument("--busybox", default="")
    parser.add_argument("--force", action="store_true", help="write it again")
    options = parser.parse_args(argv)
    busybox = find_busybox(options.busybox)
    if fresh(options.directory, busybox) and not options.force:
        return 0
    data = check_static(busybox)
    temporary = options.directory.with_name(f".{options.directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    write_layout(temporary, data, applets(busybox))
    shutil.rmtree(options.directory, ignore_errors=True)
    temporary.rename(options.directory)
    print(f"{options.directory}: {TAG}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
