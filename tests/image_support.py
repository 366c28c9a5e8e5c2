"""What the image tests share: the helper, a real registry, hostile tars, layouts made on the spot."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NATIVE = Path(__file__).resolve().parent.parent / "runtime/native"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def need(*programs: str) -> None:
    """Skip, and say which program is missing."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def helper_factory(scratch: Path) -> Callable[[], int]:
    """The installed helper, or one built from the same sources with only the role `unpack`."""
    try:
        from wherry.kernel.shim import helper_memfd

        os.close(helper_memfd())
        return helper_memfd
    except (ImportError, OSError):
        program = _build(scratch)
        return lambda: os.open(program, os.O_RDONLY | os.O_CLOEXEC)


_UNPACK = ("unpack.c", "tar.c", "unpack_dir.c", "unpack_erofs.c", "tree.c", "tree_attr.c", "libc.c", "text.c")


def _build(scratch: Path) -> Path:
    need("gcc")
    main = scratch / "main.c"
    main.write_text(
        "int wh_role_unpack(int, char **);\nint main(int c, char **v) { return wh_role_unpack(c - 1, v + 1); }\n"
    )
    flags = "-Os -w -std=gnu11 -ffreestanding -fno-stack-protector -U_FORTIFY_SOURCE -fno-pie -no-pie -static -nostdlib"
    sources = [str(NATIVE / name) for name in _UNPACK]
    command = ["gcc", *flags.split(), f"-I{NATIVE}", "-o", str(scratch / "helper"), str(main), *sources, "-lgcc"]
    subprocess.run(command, check=True, timeout=120)
    return scratch / "helper"


FORMATS = ("directory", "erofs")


def need_format(name: str, scratch: Path, helper: Callable[[], int]) -> None:
    """Skip where layers cannot have this format, and say why."""
    from wherry.errors import Kind, WherryError
    from wherry.image.unpack import Unpacker

    try:
        _ = Unpacker(str(scratch / "probe"), helper=helper, snapshot_format=name).format
    except WherryError as error:
        if error.kind is not Kind.PRECONDITION:
            raise
        pytest.skip(error.message)


# ---- tars

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644,
          pax: dict[str, str] | None = None, **fields: Any) -> Entry:  # fmt: skip
    """One entry of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
    info.pax_headers = pax or {}
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def tar(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these entries, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


# ---- images

TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
TAR_PLAIN = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Image:
    """An image as blobs in memory."""

    def __init__(self, *layers: bytes, media_type: str = TAR_GZIP, architecture: str = "amd64", variant: str = "",
                 config: dict[str, Any] | None = None) -> None:  # fmt: skip
        self.blobs: dict[str, bytes] = {}
        self.platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
        packed = [self.put(pack(layer, media_type)) | {"mediaType": media_type} for layer in layers]
        body = {
            **self.platform, "config": {"Cmd": ["true"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in layers]},
        }  # fmt: skip
        self.config = self.put(json.dumps(body).encode()) | {"mediaType": "application/vnd.oci.image.config.v1+json"}
        self.layers = packed
        self.manifest_json = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config, "layers": packed}
        self.seal()

    def seal(self) -> None:
        """Take changes of manifest_json in."""
        self.manifest = json.dumps(self.manifest_json).encode()
        self.descriptor = self.put(self.manifest) | {"mediaType": MANIFEST}

    def put(self, data: bytes) -> dict[str, Any]:
        self.blobs[sha(data)] = data
        return {"digest": sha(data), "size": len(data)}

    def layout(self, place: Path, tag: str = "latest") -> Path:
        """As an OCI image layout."""
        return write_layout(place, [(self, tag)])


def pack(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("+gzip") or media_type.endswith(".gzip"):
        return gzip.compress(data, 6, mtime=0)
    if media_type.endswith("+zstd"):
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


def write_layout(place: Path, images: list[tuple[Image, str]]) -> Path:
    """Several images in one layout."""
    (place / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    manifests = []
    for image, tag in images:
        for digest, data in image.blobs.items():
            (place / "blobs/sha256" / digest[7:]).write_bytes(data)
        note = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        manifests.append({**image.descriptor, "platform": image.platform, **note})
    (place / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return place


# ---- a real registry


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Certificates:
    """An authority of the test's own, and what it signed. `bundle` holds the authority."""

    server: tuple[Path, Path]

    def __init__(self, place: Path) -> None:
        need("openssl")
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.bundle = place / "ca.crt"
        subject = ("-subj", "/CN=authority of a test", "-days", "2")
        self._openssl("req", "-x509", *self._key("ca"), *subject, "-out", "ca.crt")

    def sign(self, name: str, subject_names: str = "") -> tuple[Path, Path]:
        """Certificate and key; `subject_names` such as "IP:127.0.0.1,DNS:registry.test"."""
        (self.place / f"{name}.ext").write_text(f"subjectAltName={subject_names}\n" if subject_names else "")
        self._openssl("req", "-new", *self._key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *by, "-extfile", f"{name}.ext", "-out", f"{name}.crt")
        return self.place / f"{name}.crt", self.place / f"{name}.key"

    @staticmethod
    def _key(name: str) -> tuple[str, ...]:
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.place, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def real_registry(
    scratch: Path,
    user: str = "",
    secret: str = "",
    *,
    tls: tuple[Path, Path] | None = None,
    client_ca: Path | None = None,
    more: dict[str, Any] | None = None,
) -> Iterator[str]:
    """The distribution's registry on loopback; host:port. With a user: basic authentication.

    `tls`: its certificate and key; `client_ca`: only clients with a certificate of this authority; `more`: settings.
    """
    need("docker-registry")
    scratch.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(scratch / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"}, **(more or {}),
    }  # fmt: skip
    if tls:
        config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        config["http"]["tls"] |= {"clientcas": [str(client_ca)]} if client_ca else {}
    if user:
        crypt = pytest.importorskip("crypt", reason="Python's crypt, gone in 3.13, makes the password file")
        hashed = crypt.crypt(secret, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))
        (scratch / "htpasswd").write_text(f"{user}:{hashed}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(scratch / "htpasswd")}}
    (scratch / "config.json").write_text(json.dumps(config))  # JSON is YAML
    with open(scratch / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(scratch / "config.json")], stdout=log, stderr=log)
    try:
        _await(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 2).close()
            return
        except OSError:
            assert process.poll() is None, "the registry ended"
            time.sleep(0.05)
    raise AssertionError("the registry does not answer")


def skopeo_push(layout: Path, tag: str, target: str, *options: str) -> None:
    need("skopeo")
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *options]
    subprocess.run([*command, f"oci:{layout}:{tag}", f"docker://{target}"], check=True, timeout=120)


# ---- trees


def _attribute(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:  # capabilities that are none
        return os.strerror(error.errno or 0).encode()


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """What a directory holds, with everything that an image says of it."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content: Any = ""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = {name: _attribute(path, name) for name in os.listxattr(path, follow_symlinks=False)}
        found[str(path.relative_to(root))] = (
            oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev, content, attributes,
            status.st_nlink if kind != stat.S_IFDIR else 0,
        )  # fmt: skip
    return found
