"""Builds beside buildah's: the same Dockerfile and context give the same config and the same root file system."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.images import TOP
from helpers.wherry import Wherry
from image_support import need, needs_root, tree

pytestmark = [needs_root, pytest.mark.seconds(300)]

CONFIG = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User",
          "Volumes", "WorkingDir")  # fmt: skip
#: what buildah's RUN makes to mount on, and leaves
STUBS = ("dev/", "etc/hosts", "etc/resolv.conf", "etc/hostname", "run", "proc", "sys")

# Where docker and buildah differ we are with docker: EXPOSE of a range is spread, SHELL goes for CMD too.
FILES = {
    "run": """
FROM localhost/base
RUN echo hi > /x && mkdir -m 700 /d && ln -s x /l
RUN ["/bin/sh", "-c", "id > /id"]
""",
    "config": """
FROM localhost/base
ENV A=1 B="two words" C=it\\ escapes
ENV D $B and more
LABEL one=1 "two words"="a $A" three='$A'
EXPOSE 80 53/udp
VOLUME /data /more
VOLUME ["/json data"]
USER www-data:33
WORKDIR /srv
WORKDIR app
STOPSIGNAL SIGUSR1
CMD echo $A
SHELL ["/bin/ash", "-e", "-c"]
ENTRYPOINT ["/bin/echo", "x"]
HEALTHCHECK --interval=5s --timeout=2s --start-period=1m --retries=4 CMD true && true
ONBUILD RUN echo child
ONBUILD COPY . /ctx
MAINTAINER somebody
""",
    "health none": "FROM localhost/base\nHEALTHCHECK NONE\nENTRYPOINT exec top\n",
    "args": """
ARG BASE=localhost/base TAG
FROM ${BASE}
ARG TAG
ARG V=1
ARG W=${V}2
ARG GIVEN=no
ENV X=${V:-a}-${W:+set}-${NONE:-none}-${GIVEN}-${TAG:-untagged}
RUN echo "$V $W $GIVEN" > /args
ENV V=env
RUN echo "$V" > /after
""",
    "copy": """
FROM localhost/base
COPY a.txt /one
COPY a.txt b.txt /many/
COPY *.txt /globbed/
COPY dir /tree
COPY dir/ /tree2/
COPY . /all
COPY --chown=33:7 dir /owned
COPY --chown=www-data b.txt /named
COPY ["with space.txt", "/spaced/"]
WORKDIR /w/x
COPY a.txt .
COPY a.txt rel/ative
COPY link /through
COPY d?r/sub /sub/
""",
    "add": """
FROM localhost/base
ADD a.txt /a
ADD arch.tar /unpacked/
ADD arch.tar.gz /gz
ADD arch.tar.xz /xz/
ADD dir /d
""",
    "stages": """
FROM localhost/base AS one
RUN mkdir /out && echo built > /out/f && chown 33:33 /out/f && chmod 750 /out/f && ln /out/f /out/hard
FROM scratch AS two
COPY --from=one /out /o
FROM localhost/base AS unneeded
RUN false
FROM one
COPY --from=0 /out/f /again
COPY --from=two /o /o2
COPY --from=localhost/base / /whole/
RUN test -e /out/f && echo yes > /yes
""",
    "scratch": 'FROM scratch\nCOPY a.txt /\nENV A=b\nCMD ["/a"]\n',
    "continued": """
# a comment
FROM localhost/base
RUN echo one \\
    # inside
    && echo two > \\

    /two
""",
    "replaced": """
FROM localhost/base
COPY dir /t
COPY dir2 /t
COPY a.txt /t/f
RUN rm -r /t/sub && echo new > /t/new && rm /bin/cat
""",
    "onbuild child": "FROM localhost/base AS b\nONBUILD ENV FROM_PARENT=1\nFROM localhost/base\nRUN true\n",
    "cmd reset": 'FROM localhost/base\nENTRYPOINT ["a"]\n',
    "cmd kept": 'FROM localhost/base\nCMD ["b"]\nENTRYPOINT ["a"]\n',
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a bit of everything."""
    place = tmp_path_factory.mktemp("context")
    for name, text in (("a.txt", "a"), ("b.txt", "bb"), ("with space.txt", "s"), ("skip.md", "no"), ("keep.md", "yes"),
                       ("dir/f", "f"), ("dir/sub/g", "g"), ("dir/skip.md", "kept: another directory"),
                       ("dir2/f", "other f"), ("deep/er/x.log", "no"), ("deep/er/y", "yes")):  # fmt: skip
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    (place / "dir/f").chmod(0o755)
    (place / "dir/sub").chmod(0o750)
    (place / "link").symlink_to("a.txt")
    (place / "dir/away").symlink_to("/etc/passwd")
    (place / "dir/dangling").symlink_to("nothing")
    (place / ".dockerignore").write_text("*.md\n!keep.md\n**/*.log\n# comment\n")
    for option, name in (("", "arch.tar"), ("z", "arch.tar.gz"), ("J", "arch.tar.xz")):
        command = [
            "tar",
            f"c{option}f",
            place / name,
            "--owner=33",
            "--group=7",
            "-C",
            place / "dir",
            *sorted(os.listdir(place / "dir")),
        ]
        subprocess.run(command, check=True)
    return place


class Buildah:
    """A store of buildah's own."""

    def __init__(self, place: Path) -> None:
        self.words = ["buildah", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs"]

    def __call__(self, *words: object) -> str:
        done = subprocess.run([*self.words, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    need("buildah", "umoci")
    made = Buildah(tmp_path_factory.mktemp("buildah"))
    found = made("pull", "-q", f"oci:{TOP}/oci-bundles/busybox:busybox:latest").split()[-1]
    made("tag", found, "localhost/base")
    yield made
    made("rmi", "-a", "-f")


def unpacked(layout: Path, tag: str, to: Path) -> dict[str, Any]:
    """What a third party unpacks, without times."""
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", str(to)], check=True, capture_output=True)
    found = tree(to / "rootfs")
    return {name: facts[:3] + facts[4:] for name, facts in found.items()}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Config members that say something; lists whose order means nothing sorted."""
    found = {key: config[key] for key in CONFIG if config.get(key)}
    found["Labels"] = {key: value for key, value in found.get("Labels", {}).items() if key != "io.buildah.version"}
    if "/" in found.get("WorkingDir", "/") and found.get("WorkingDir", "/") == "/":
        found.pop("WorkingDir", None)
    return found | {"Env": sorted(found.get("Env", ()))}


@pytest.mark.parametrize("name", FILES)
def test_same_as_buildah(  # noqa: PLR0917 - fixtures
    name: str, wherry: Wherry, busybox: str, buildah: Buildah, context: Path, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(FILES[name])
    args = ["--build-arg", "GIVEN=yes"]
    buildah(
        "bud", "--isolation", "chroot", "--format", "docker", *args, "-q", "-f", file, "-t", "localhost/out", context
    )
    theirs = json.loads(buildah("inspect", "--type", "image", "localhost/out"))["Docker"]["config"]
    buildah("push", "-q", "localhost/out", f"oci:{tmp_path}/theirs:out")
    wherry("pull", "-q", busybox)
    wherry("tag", "busybox", "localhost/base")
    wherry("build", *args, "-f", file, "-t", "localhost/out", context)
    wherry("save", "--format", "oci-dir", "-o", tmp_path / "ours", "localhost/out")
    layout = json.loads((tmp_path / "ours/index.json").read_text())
    tag = layout["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
    assert plain(config_of(tmp_path / "ours")) == plain(theirs)
    ours_tree, theirs_tree = (
        unpacked(tmp_path / "ours", tag, tmp_path / "a"),
        unpacked(tmp_path / "theirs", "out", tmp_path / "b"),
    )
    different = {
        path: (ours_tree.get(path), theirs_tree.get(path))
        for path in sorted({*ours_tree, *theirs_tree})
        if ours_tree.get(path) != theirs_tree.get(path) and not path.startswith(STUBS)
    }
    assert not different


def config_of(layout: Path) -> dict[str, Any]:
    """The config of a layout's only image, as it lies there."""

    def blob(digest: str) -> dict[str, Any]:
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())  # type: ignore[no-any-return]

    index = json.loads((layout / "index.json").read_text())
    return blob(blob(index["manifests"][0]["digest"])["config"]["digest"])["config"]  # type: ignore[no-any-return]
