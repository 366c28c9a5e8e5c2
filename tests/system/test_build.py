"""`wherry build`, for real: every kind of step, the cache, secrets, hostile contexts and images, ends of all sorts."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.wherry import Wherry, until

pytestmark = pytest.mark.seconds(120)
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """An empty context."""
    place = tmp_path / "context"
    place.mkdir()
    return place


@pytest.fixture
def build(wherry: Wherry, busybox: str, context: Path) -> Build:
    """Build a Dockerfile's text as "app", without a network."""
    wherry("pull", "-q", busybox)

    def run(text: str, *words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        (context / "Dockerfile").write_text(text)
        given = ["--progress", "plain", "--network", "none", "-t", "app", *words, context]
        return wherry("build", *given, check=check, **options)

    return run


def sh(wherry: Wherry, script: str, *words: object) -> str:
    """What a script in the image "app" prints."""
    return wherry.out("run", "--rm", "--network", "none", "--entrypoint", "", *words, "app", "/bin/sh", "-c", script)


def steps(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The last word of each step by its title: CACHED, DONE, ERROR."""
    titles, ends = {}, {}
    for line in done.stderr.splitlines():
        number, _, text = line.partition(" ")
        if number.startswith("#"):
            titles.setdefault(number, text)
            if text.split(" ")[0] in ("CACHED", "DONE", "ERROR:", "CANCELED"):
                ends[number] = text.split(" ")[0].rstrip(":")
    return {titles[number].partition("] ")[2] or titles[number]: end for number, end in ends.items()}


def config(wherry: Wherry, name: str = "app") -> dict[str, Any]:
    return json.loads(wherry("image", "inspect", name).stdout)[0]["Config"]  # type: ignore[no-any-return]


# ---- steps


def test_steps_of_all_kinds(wherry: Wherry, build: Build, context: Path) -> None:
    (context / "a").write_text("a\n")
    done = build(
        "FROM busybox AS first\n"
        "ARG WHO=world\n"
        "RUN echo hello $WHO > /greeting && echo seen\n"
        'RUN ["/bin/sh", "-c", "echo exec > /exec"]\n'
        "FROM first\n"
        "WORKDIR /made/here\n"
        "COPY a b/\n"
        "COPY --from=first --chown=www-data --chmod=640 /greeting .\n"
        "COPY <<EOF <<'RAW' /docs/\nhello $WHO\nEOF\nhello $WHO\nRAW\n"
        "RUN <<EOF\nset -e\npwd > /pwd\nEOF\n"
        "RUN <<EOF\n#!/usr/bin/awk -f\nBEGIN { print \"awk\" > \"/awk\" }\nEOF\n"
        "RUN cat <<ONE > /one && cat <<-TWO > /two\n1\nONE\n\t2\n\tTWO\n"
        "USER www-data\nRUN id -u > /tmp/id\n",
        "--build-arg", "WHO=you",
    )  # fmt: skip
    assert "#3 [first 2/3] RUN echo hello $WHO > /greeting && echo seen\n" in done.stderr
    assert " seen\n" in done.stderr
    found = sh(wherry, "cd /; cat greeting exec made/here/b/a docs/EOF docs/RAW pwd awk one two tmp/id")
    assert found.split("\n") == [
        "hello you",
        "exec",
        "a",
        "hello you",
        "hello $WHO",
        "/made/here",
        "awk",
        "1",
        "2",
        "33",
    ]
    assert sh(wherry, "stat -c '%a %U %G' /made/here/greeting; ls /dev/pipes 2>&1 || true").startswith(
        "640 www-data www-data"
    )
    assert set(steps(done).values()) == {"DONE", "CACHED"}


def test_arguments_are_no_environment_of_the_image(wherry: Wherry, build: Build) -> None:
    build("FROM busybox\nARG A=1\nENV B=$A\nRUN env > /env\n")
    assert "A=1" in sh(wherry, "cat /env").split()
    assert [item.partition("=")[0] for item in config(wherry)["Env"]] == ["PATH", "B"]


def test_names_labels_and_files(wherry: Wherry, build: Build, tmp_path: Path) -> None:
    done = build("FROM busybox\nLABEL a=1\n", "-q", "-t", "second:2", "--label", "b=2", "--iidfile", tmp_path / "id")
    assert done.stdout.strip() == (tmp_path / "id").read_text() == wherry.inspect("second:2")["Id"]
    assert done.stderr == ""
    assert config(wherry)["Labels"] == {"a": "1", "b": "2"}


def test_onbuild_is_the_child_s(wherry: Wherry, build: Build, context: Path) -> None:
    (context / "f").write_text("child")
    build("FROM busybox\nONBUILD COPY f /f\nONBUILD RUN echo ran > /ran\n")
    wherry("tag", "app", "parent")
    assert config(wherry, "parent").get("OnBuild") or True
    build("FROM parent\nRUN cat /f /ran > /both\n")
    assert sh(wherry, "cat /both") == "childran"


def test_a_directory_instead_of_an_image(wherry: Wherry, build: Build, tmp_path: Path) -> None:
    build("FROM busybox AS b\nRUN mkdir /o && echo x > /o/f && chmod 700 /o && ln -s /etc/passwd /o/l\n"
          "FROM scratch\nCOPY --from=b /o /\n", "-o", tmp_path / "out")  # fmt: skip
    assert (tmp_path / "out/f").read_text() == "x\n"
    assert os.readlink(tmp_path / "out/l") == "/etc/passwd"
    assert "app" not in wherry.out("images")
    with open(tmp_path / "out.tar", "wb") as file:
        assert (
            wherry.popen("build", "-o", "-", tmp_path / "context", stdout=file, stderr=subprocess.DEVNULL).wait(60) == 0
        )
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert {info.name: info.mode for info in archive} == {"f": 0o644, "l": 0o777}


def test_what_copy_keeps(wherry: Wherry, build: Build, context: Path) -> None:
    """From another stage: owners, rights, devices, hard links, attributes. Flags of COPY."""
    for name in ("a/b/keep", "a/b/skip.tmp", "a/c/keep"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(name)
    os.link(context / "a/b/keep", context / "a/b/twin")
    build(
        "FROM busybox AS from\n"
        "RUN mkdir /o && cp /bin/busybox /o/s && chown 33:7 /o/s && chmod 6755 /o/s && ln /o/s /o/hard && "
        "mknod /o/null c 1 3 && mkfifo /o/pipe && ln -s gone /o/link && mkdir -m 1777 /o/sticky\n"
        "FROM busybox\n"
        "COPY --from=from /o /kept\n"
        "COPY --from=from --chown=1:2 --chmod=0700 /o /given/\n"
        "COPY --exclude=**/*.tmp a /some/\n"
        "COPY --parents a/*/keep /with/\n"
        "COPY --parents a/./c/keep /pivot/\n"
        "COPY --link a/c/keep /linked/\n"
        "COPY a/b /twins/\n"
    )  # fmt: skip
    listing = "cd {0}; for f in *; do stat -c '%n %a %u %g %h %F' $f; done"
    assert sh(wherry, listing.format("/kept")).splitlines() == [
        "hard 6755 33 7 2 regular file", "link 777 0 0 1 symbolic link", "null 644 0 0 1 character special file",
        "pipe 644 0 0 1 fifo", "s 6755 33 7 2 regular file", "sticky 1777 0 0 2 directory",
    ]  # fmt: skip
    assert {line.split()[1] for line in sh(wherry, listing.format("/given")).splitlines()} == {"700", "777"}
    found = sh(wherry, "find /some /with /pivot /linked -type f | sort; stat -c %h /twins/keep")
    assert found.split() == ["/linked/keep", "/pivot/c/keep", "/some/b/keep", "/some/b/twin", "/some/c/keep",
                             "/with/a/b/keep", "/with/a/c/keep", "2"]  # fmt: skip


def test_a_linked_copy_depends_on_nothing_below(build: Build, context: Path) -> None:
    (context / "f").write_text("x")
    build("FROM busybox\nRUN true\nCOPY --link f /d/f\n")
    assert steps(build("FROM busybox\nRUN echo other > /other\nCOPY --link f /d/f\n"))["COPY --link f /d/f"] == "CACHED"


# ---- the cache


def test_nothing_is_done_twice(wherry: Wherry, build: Build, context: Path) -> None:
    (context / "f").write_text("1")
    text = "FROM busybox\nRUN date +%N > /first\nCOPY f /f\nRUN date +%N > /second\n"
    build(text)
    before, first = wherry.inspect("app")["Id"], sh(wherry, "cat /first")
    again = build(text)
    assert set(steps(again).values()) - {"DONE"} == {"CACHED"}
    assert [title for title, end in steps(again).items() if end == "DONE"] == [
        "load build definition from Dockerfile", "exporting to image",
    ]  # fmt: skip
    assert wherry.inspect("app")["Id"] == before
    os.utime(context / "f", (1, 1))  # times are no content
    assert steps(build(text))["COPY f /f"] == "CACHED"
    for change in (lambda: (context / "f").write_text("2"), lambda: (context / "f").chmod(0o700)):
        change()
        found = steps(build(text))
        assert (found["RUN date +%N > /first"], found["COPY f /f"], found["RUN date +%N > /second"]) == (
            "CACHED", "DONE", "DONE",
        )  # fmt: skip
    assert sh(wherry, "cat /first") == first
    assert steps(build(text, "--no-cache"))["RUN date +%N > /first"] == "DONE"


def test_what_a_step_depends_on(build: Build) -> None:
    text = "FROM busybox\nARG A\nARG B\nENV C=$B\nRUN date +%N > /f\n"
    build(text, "--build-arg", "A=1")
    assert steps(build(text, "--build-arg", "A=1"))["RUN date +%N > /f"] == "CACHED"
    assert steps(build(text, "--build-arg", "A=2"))["RUN date +%N > /f"] == "DONE"
    assert steps(build(text, "--build-arg", "A=1", "--build-arg", "B=1"))["RUN date +%N > /f"] == "DONE"
    assert steps(build(text, "--build-arg", "A=1", "--build-arg", "NO_PROXY=x"))["RUN date +%N > /f"] == "CACHED"
    assert steps(build("FROM busybox\nARG A=1\nUSER 1\nRUN date +%N > /tmp/f\n"))["RUN date +%N > /tmp/f"] == "DONE"


def test_the_cache_outlives_the_image_and_goes_with_prune(wherry: Wherry, build: Build) -> None:
    text = "FROM busybox\nRUN date +%N > /f\n"
    build(text)
    first = sh(wherry, "cat /f")
    wherry("rmi", "-f", "app")
    wherry("gc")
    wherry("system", "check")
    assert steps(build(text))["RUN date +%N > /f"] == "CACHED"
    assert sh(wherry, "cat /f") == first
    assert wherry("builder", "prune", "-f").stdout.startswith("Total:")  # the image shares it: it stays
    assert steps(build(text))["RUN date +%N > /f"] == "CACHED"
    wherry("builder", "prune", "-a", "-f")
    assert steps(build(text))["RUN date +%N > /f"] == "DONE"
    wherry("rmi", "-f", "app")
    layers = len(list((wherry.root / "layers").iterdir()))
    wherry("builder", "prune", "-f")
    assert len(list((wherry.root / "layers").iterdir())) == layers - 1
    wherry("system", "check")


def test_the_same_step_at_the_same_time_is_done_once(wherry: Wherry, build: Build, context: Path) -> None:
    build("FROM busybox\n")
    (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 1; date +%N > /f\n")
    started = [wherry.popen("build", "-q", "--network", "none", "-t", f"same{n}", context) for n in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert len({wherry.inspect(f"same{n}")["Id"] for n in range(3)}) == 1


def test_reproducible(wherry: Wherry, build: Build, context: Path) -> None:
    (context / "d").mkdir()
    (context / "d/f").write_text("x")
    text = ("FROM busybox AS a\nRUN date > /dev/null; mkdir /made; echo x > /made/f\nWORKDIR /w\nCOPY d /d\n"
            "COPY <<E /doc\nhi\nE\nFROM a\nCOPY --from=a /made /again\nCMD [\"x\"]\n")  # fmt: skip
    digests = []
    for _ in range(2):
        build(text, "--no-cache", env={"SOURCE_DATE_EPOCH": "1700000000"})
        digests.append(wherry.inspect("app")["RepoDigests"])
        os.utime(context / "d/f")
        time.sleep(1.1)
    assert digests[0] == digests[1]
    assert wherry.inspect("app")["Created"] == "2023-11-14T22:13:20Z"
    assert int(sh(wherry, "stat -c %Y /made/f")) == 1700000000


# ---- stages


def test_independent_stages_run_at_the_same_time(build: Build) -> None:
    text = ("FROM busybox AS a\nRUN --mount=type=cache,target=/c,id=meet touch /c/a; n=0; "
            "until test -e /c/b || test $n -gt 50; do n=$((n+1)); sleep 0.1; done; test -e /c/b\n"
            "FROM busybox AS b\nRUN --mount=type=cache,target=/c,id=meet touch /c/b; n=0; "
            "until test -e /c/a || test $n -gt 50; do n=$((n+1)); sleep 0.1; done; test -e /c/a\n"
            "FROM scratch\nCOPY --from=a /bin/true /a\nCOPY --from=b /bin/true /b\n")  # fmt: skip
    build(text)  # each waits for the other


def test_unneeded_stages_are_not_built(wherry: Wherry, build: Build) -> None:
    text = "FROM busybox AS good\nRUN echo good > /f\nFROM busybox AS bad\nRUN false\nFROM good AS last\nRUN true\n"
    assert "RUN false" not in steps(build(text))
    assert "RUN true" not in steps(build(text, "--target", "good"))
    assert sh(wherry, "cat /f") == "good"


# ---- mounts


def test_secrets_are_seen_and_never_kept(wherry: Wherry, build: Build, tmp_path: Path) -> None:
    secret = "s3cret-" + os.urandom(8).hex()
    (tmp_path / "secret").write_text(secret)
    text = ("FROM busybox\nRUN --mount=type=secret,id=token,uid=33 test \"$(wc -c < /run/secrets/token)\" = 23 && "
            "stat -c '%a %u' /run/secrets/token > /rights\n"
            "RUN --mount=type=secret,id=var,target=/v,mode=0444 wc -c < /v >> /rights\n"
            "RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n"
            "RUN test ! -e /run/secrets && test ! -e /v\n")  # fmt: skip
    words = ["--secret", f"id=token,src={tmp_path}/secret", "--secret", "id=var,env=TOKEN"]
    done = build(text, *words, env={"TOKEN": secret})
    assert sh(wherry, "cat /rights").split() == ["400", "33", "23"]
    assert secret not in done.stderr + json.dumps(wherry.inspect("app")) + wherry.out("history", "--no-trunc", "app")
    for place in (wherry.root, wherry.state):
        found = subprocess.run(
            ["grep", "-r", "-l", "-a", secret, str(place)], capture_output=True, text=True, check=False
        )
        assert found.stdout == ""
    for blob in (wherry.root / "images/blobs/sha256").iterdir():
        packed = subprocess.run(["zgrep", "-a", "-c", secret, str(blob)], capture_output=True, text=True, check=False)
        assert packed.stdout.strip() in ("0", "")
    missing = build("FROM busybox\nRUN --mount=type=secret,id=none,required=true true\n", check=False)
    assert missing.returncode == 1
    assert "secret none: not found" in missing.stderr


def test_cache_mounts_persist_and_are_no_layer(wherry: Wherry, build: Build) -> None:
    mount = "--mount=type=cache,target=/root/.cache/x,mode=0700"
    text = f"FROM busybox\nRUN {mount} echo >> /root/.cache/x/n; wc -l < /root/.cache/x/n > /n\n"
    for count in ("1", "2", "3"):
        build(text, "--no-cache")
        assert sh(wherry, "cat /n; ls -A /root") == count
    wherry("builder", "prune", "-a", "-f")
    build(text, "--no-cache")
    assert sh(wherry, "cat /n") == "1"


def test_locked_cache_mounts_exclude_each_other(build: Build) -> None:
    step = (
        "RUN --mount=type=cache,target=/c,sharing=locked test ! -e /c/busy && touch /c/busy && sleep 0.5 && rm /c/busy"
    )
    build(f"FROM busybox AS a\n{step} && true a\nFROM busybox AS b\n{step} && true b\n"
          "FROM scratch\nCOPY --from=a /bin/true /a\nCOPY --from=b /bin/true /b\n")  # fmt: skip


def test_bind_and_tmpfs_mounts(wherry: Wherry, build: Build, context: Path) -> None:
    (context / "sub").mkdir()
    (context / "sub/f").write_text("context")
    (context / "hidden").write_text("no")
    (context / ".dockerignore").write_text("hidden\n")
    text = ("FROM busybox AS other\nRUN mkdir /out && echo stage > /out/f\n"
            "FROM busybox\nRUN --mount=target=/ctx --mount=type=bind,source=sub/f,target=/one/f "
            "--mount=type=bind,from=other,source=/out,target=/stage --mount=type=tmpfs,target=/t,size=1m "
            "cat /ctx/sub/f /one/f /stage/f > /all && ls -A /ctx > /list && ! touch /ctx/x && touch /t/x && "
            "grep -c ' /t tmpfs' /proc/mounts >> /list\n"
            "RUN --mount=type=bind,target=/w,rw touch /w/x\n")  # fmt: skip
    build(text)
    assert sh(wherry, "cat /all; cat /list; ls -d /ctx /one /stage /t /w 2>/dev/null || true").split() == [
        "contextcontextstage", ".dockerignore", "Dockerfile", "sub", "1",
    ]  # fmt: skip
    assert not (context / "x").exists()
    (context / "sub/f").write_text("changed")
    assert "DONE" in [end for title, end in steps(build(text)).items() if "/ctx/sub/f" in title]


def test_network_of_run(wherry: Wherry, build: Build, context: Path) -> None:
    build("FROM busybox\nRUN ls /sys/class/net > /none\nRUN --network=host ls /sys/class/net > /host\n")
    assert sh(wherry, "cat /none").split() == ["lo"]
    assert "lo" in sh(wherry, "cat /host").split()
    (context / "Dockerfile").write_text("FROM busybox\nRUN ls /sys/class/net > /own\n")
    wherry("build", "-q", "-t", "app", context)
    assert set(sh(wherry, "cat /own").split()) == {"lo", "eth0"}


# ---- contexts


def packed(context: Path, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        archive.add(context, ".")
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_as_the_context(wherry: Wherry, build: Build, context: Path, tmp_path: Path, mode: str) -> None:
    build("FROM busybox\n")
    (context / "Dockerfile").write_text("FROM busybox\nCOPY f /f\n")
    (context / "f").write_text(mode)
    (tmp_path / "context.tar").write_bytes(packed(context, mode))
    wherry("build", "-q", "-t", "app", tmp_path / "context.tar")
    assert sh(wherry, "cat /f") == mode
    wherry("rmi", "-f", "app")
    with open(tmp_path / "context.tar", "rb") as file:
        assert wherry.popen("build", "-q", "-t", "app", "-", stdin=file).wait(60) == 0
    assert sh(wherry, "cat /f") == mode


def test_a_dockerfile_on_standard_input(wherry: Wherry, build: Build, context: Path) -> None:
    build("FROM busybox\n")
    wherry("build", "-q", "-t", "app", "-", stdin="FROM busybox\nENV A=stdin\n")
    assert "A=stdin" in config(wherry)["Env"]
    (context / "f").write_text("context")
    wherry("build", "-q", "-t", "app", "-f", "-", context, stdin="FROM busybox\nCOPY f /f\n")
    assert sh(wherry, "cat /f") == "context"
    assert "COPY" in wherry("build", "-", stdin="FROM busybox\nCOPY f /f\n", check=False).stderr


def test_ignore_files(wherry: Wherry, build: Build, context: Path, tmp_path: Path) -> None:
    for name in ("a.md", "keep.md", "sub/x/deep", "sub/y", "z"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*.md\n!keep.md\nsub\n!sub/x/deep\n.dockerignore\nDockerfile\n")
    build("FROM busybox\nCOPY . /c/\n")
    assert sh(wherry, "cd /c && find . -type f | sort").split() == ["./keep.md", "./sub/x/deep", "./z"]
    assert "not found" in build("FROM busybox\nCOPY a.md /\n", check=False).stderr
    other = tmp_path / "Other"
    other.write_text("FROM busybox\nCOPY . /c/\n")
    (tmp_path / "Other.dockerignore").write_text("*\n!z\n")
    wherry("build", "-q", "-t", "app", "-f", other, context)
    assert sh(wherry, "cd /c && find . -type f").split() == ["./z"]


# ---- ADD


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """A web server on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Last-Modified", "Thu, 01 Jan 2015 00:00:00 GMT")
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_add_from_the_network(wherry: Wherry, build: Build, context: Path) -> None:
    data, archive = b"some bytes", packed(context)
    good, bad = hashlib.sha256(data).hexdigest(), hashlib.sha256(b"other").hexdigest()
    with served({"/d/file.bin": data, "/x.tar": archive}) as url:
        build(f"FROM busybox\nADD {url}/d/file.bin /got/\n"
              f"ADD --checksum=sha256:{good} --chmod=644 {url}/d/file.bin /as\nADD {url}/x.tar /kept/\n")  # fmt: skip
        script = "cat /got/file.bin /as; stat -c '%a %Y' /got/file.bin; stat -c %a /as; ls /kept"
        assert sh(wherry, script).split("\n") == [
            "some bytessome bytes600 1420070400", "644", "x.tar",
        ]  # fmt: skip
        failed = build(f"FROM busybox\nADD --checksum=sha256:{bad} {url}/d/file.bin /x\n", check=False)
        assert "digest mismatch" in failed.stderr
        assert "404" in build(f"FROM busybox\nADD {url}/none /x\n", check=False).stderr


def test_add_unpacks_what_is_an_archive(wherry: Wherry, build: Build, context: Path) -> None:
    inner = context / "tree"
    (inner / "d").mkdir(parents=True)
    (inner / "d/f").write_text("x")
    (context / "t.tar.gz").write_bytes(packed(inner, "w:gz"))
    (context / "plain.gz").write_bytes(__import__("gzip").compress(b"no tar"))
    build("FROM busybox\nADD t.tar.gz plain.gz /a/\nCOPY t.tar.gz /c/\nADD --unpack=false t.tar.gz /n/\n")
    assert sh(wherry, "cat /a/d/f; ls /a /c /n").split() == [
        "x/a:",
        "d",
        "plain.gz",
        "/c:",
        "t.tar.gz",
        "/n:",
        "t.tar.gz",
    ]


# ---- what is hostile


def test_a_context_cannot_reach_the_host(wherry: Wherry, build: Build, context: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("the host's")
    (context / "etc").mkdir()
    (context / "etc/passwd").write_text("the context's")
    for name, target in (("abs", tmp_path / "outside"), ("up", "../outside"), ("passwd", "/etc/passwd"),
                         ("dir", ".."), ("proc", "/proc/self/root")):  # fmt: skip
        (context / name).symlink_to(target)
    for source in ("abs", "up", "../outside", "dir/outside", "proc/etc/shadow", "/../../outside"):
        failed = build(f"FROM busybox\nCOPY {source} /x\n", check=False)
        assert failed.returncode == 1, source
        assert "not found" in failed.stderr or "or a magic one" in failed.stderr, source
    build(
        "FROM busybox\nCOPY passwd /x\nCOPY . /all/\n"
    )  # a link resolves in the context; below a directory it stays one
    assert sh(wherry, "cat /x; readlink /all/abs") == f"the context's{tmp_path}/outside"
    (context / "Dockerfile").unlink()
    (context / "Dockerfile").symlink_to(tmp_path / "outside")
    assert "failed to read dockerfile" in wherry("build", context, check=False).stderr


def test_odd_files_of_a_context(wherry: Wherry, build: Build, context: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(context / "socket"))
        os.mkfifo(context / "fifo")
        build("FROM busybox\nCOPY . /c/\n")
    assert sh(wherry, "ls /c; test -p /c/fifo && echo pipe").split() == ["Dockerfile", "fifo", "pipe"]
    os.mknod(context / "device", 0o600 | 0o020000, os.makedev(1, 5))
    failed = build("FROM busybox\nCOPY . /c/\n", check=False)
    assert "is a device" in failed.stderr


def test_an_image_cannot_lead_a_copy_out(wherry: Wherry, build: Build, context: Path, tmp_path: Path) -> None:
    (context / "f").write_text("copied")
    target = tmp_path / "target"
    target.mkdir()
    text = (f"FROM busybox\nRUN ln -s {target} /abs && ln -s ../../../../../..{target} /up && "
            f"ln -s /proc/self/root /magic && ln -s {target}/new /dangling\n"
            "COPY f /abs/\nCOPY f /up/g\nCOPY f /dangling/h\nWORKDIR /abs/work\n")  # fmt: skip
    build(text)
    assert list(target.iterdir()) == []
    assert (
        sh(wherry, f"cat {target}/f {target}/g {target}/new/h; test -d {target}/work && echo yes")
        == "copiedcopiedcopiedyes"
    )
    failed = build("FROM busybox\nRUN ln -s /proc/self/root /magic\nCOPY f /magic/root/x\n", check=False)
    assert failed.returncode in (0, 1)
    assert not Path("/root/x").exists()


def test_hostile_archives(build: Build, context: Path, tmp_path: Path) -> None:
    def archive(name: str, *infos: tarfile.TarInfo) -> None:
        with tarfile.open(context / name, "w") as made:
            for info in infos:
                made.addfile(info, io.BytesIO(b"x" * info.size))

    def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, size
        return info

    archive("up.tar", member("../../../escaped", size=1))
    archive("link.tar", member("l", tarfile.SYMTYPE, str(tmp_path)), member("l/escaped", size=1))
    for name in ("up.tar", "link.tar"):
        build(f"FROM busybox\nADD {name} /x/\n", check=False)
        assert not (tmp_path / "escaped").exists()
        assert not Path("/escaped").exists()


# ---- ends


def test_a_failing_step(wherry: Wherry, build: Build) -> None:
    failed = build("FROM busybox\nRUN true\nRUN echo out; echo err >&2; exit 7\nRUN echo never\n", check=False)
    assert failed.returncode == 1
    assert (
        'ERROR: process "/bin/sh -c echo out; echo err >&2; exit 7" did not complete successfully: exit code: 7'
        in failed.stderr
    )
    assert "   3 | >>> RUN echo out; echo err >&2; exit 7" in failed.stderr
    assert "never" not in list(steps(failed))
    assert wherry.out("images", "-q", "app") == ""
    assert steps(build("FROM busybox\nRUN true\n"))["RUN true"] == "CACHED"
    assert "no such file or directory" in build('FROM busybox\nRUN ["/none"]\n', check=False).stderr
    nobody = build("FROM busybox\nUSER nobody-there\nRUN true\n", check=False)
    assert "unable to find user nobody-there" in nobody.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("FROM busybox\nRUNN x\n", "unknown instruction: RUNN (did you mean RUN?)"),
        ("FROM busybox\nCOPY none /\n", '"/none": not found'),
        ("FROM busybox\nCOPY --from=9 a b\n", "no such stage"),
        ("FROM busybox\nCOPY a b /c\n", "the destination must be a directory and end with a /"),
        ("FROM busybox\nCOPY --chown=nobody-there Dockerfile /\n", "unable to find user nobody-there"),
        ("FROM busybox\nCOPY --chmod=999 Dockerfile /\n", "invalid chmod parameter"),
        ("FROM busybox\nCOPY Dockerfile /bin/sh/x\n", "cannot copy to"),
        ("FROM oci:/etc\n", "a Dockerfile names images"),
        ("FROM busybox\nADD git@host:x.git /\n", "not supported"),
    ],
)
def test_what_cannot_be_built(build: Build, text: str, sentence: str) -> None:
    failed = build(text, check=False)
    assert failed.returncode == 1
    assert sentence in failed.stderr


def _idle(wherry: Wherry) -> bool:
    rows = list(wherry.root.glob("containers/*"))
    return not rows and not list(wherry.root.glob("cache/build/work/*")) and not list(wherry.root.glob("snapshots/*"))


def _sleeping(wherry: Wherry, context: Path) -> subprocess.Popen[bytes]:
    (context / "Dockerfile").write_text(
        "FROM busybox AS a\nRUN --mount=type=secret,id=s echo ready > /r; sleep 60\n"
        "FROM busybox AS b\nRUN sleep 61\nFROM a\nCOPY --from=b / /b\n"
    )
    process = wherry.popen(
        "build", "--network", "none", "--secret", "id=s,env=HOME", context, stderr=subprocess.DEVNULL
    )
    until(lambda: len(list(wherry.root.glob("snapshots/*"))) == 2 and len(list(wherry.state.glob("c/*"))) == 2)
    time.sleep(0.2)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(wherry: Wherry, build: Build, context: Path, number: int) -> None:
    build("FROM busybox\n")
    process = _sleeping(wherry, context)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert _idle(wherry)
    assert not list(wherry.state.glob("build/*"))


def test_a_killed_build_is_swept(wherry: Wherry, build: Build, context: Path) -> None:
    build("FROM busybox\n")
    process = _sleeping(wherry, context)
    process.kill()
    process.wait(20)
    assert wherry.out("ps", "-aq") == ""  # they are nobody's
    assert not _idle(wherry)
    assert "builds" in wherry("gc").stdout
    assert _idle(wherry)
    assert not list(wherry.state.glob("build/*"))
    wherry("system", "check")


def test_a_failure_ends_the_other_stages(build: Build) -> None:
    began = time.monotonic()
    failed = build(
        "FROM busybox AS a\nRUN sleep 60\nFROM busybox AS b\nRUN exit 3\nFROM a\nCOPY --from=b / /b\n", check=False
    )
    assert time.monotonic() - began < 30
    assert "exit code: 3" in failed.stderr
    assert "CANCELED" in failed.stderr


def test_prune_beside_a_build(wherry: Wherry, build: Build, context: Path) -> None:
    """What a build stands on stays, also without a name."""
    build("FROM busybox\n")
    (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 2; echo x > /f\nRUN cat /f > /g\n")
    process = wherry.popen("build", "-q", "--network", "none", "-t", "slow", context, stdout=subprocess.DEVNULL)
    until(lambda: list(wherry.state.glob("c/*")))
    wherry("rmi", "-f", "busybox", "app")
    wherry("system", "prune", "-a", "-f")
    assert process.wait(60) == 0
    assert wherry.out("run", "--rm", "--network", "none", "slow", "cat", "/g") == "x"
    wherry("system", "check")


KILLS = int(os.environ.get("WHERRY_KILLS", "8"))


@pytest.mark.seconds(120 + 10 * KILLS)
def test_kills_at_random_moments(wherry: Wherry, build: Build, context: Path) -> None:
    """Whatever a build was killed in: the store is whole, a sweep leaves nothing, and the next build works."""
    (context / "d").mkdir()
    for number in range(200):
        (context / f"d/{number}").write_text(str(number) * 100)
    text = (
        "FROM busybox AS a\n"
        "RUN --mount=type=secret,id=s --mount=type=cache,target=/c echo x > /f; touch /c/x\n"
        "COPY d /d\n"
        "FROM busybox AS b\n"
        "WORKDIR /w\n"
        "RUN --mount=target=/ctx cp -r /ctx/d .\n"
        "FROM a\n"
        "COPY --from=b /w /w\n"
        "RUN ls /w/d > /l\n"
    )
    secret = ("--secret", "id=s,env=PATH")
    began = time.monotonic()
    build(text, *secret)
    length = time.monotonic() - began
    for _ in range(KILLS):
        process = wherry.popen("build", "-q", "--no-cache", "--network", "none", *secret, "-t", "app", context,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        time.sleep(random.uniform(0.05, length))
        process.kill()
        process.wait(20)
        wherry("gc")
        assert "clean" in wherry("system", "check").stdout
        assert _idle(wherry)
        assert not list(wherry.state.glob("build/*"))
    build(text, *secret)
    assert sh(wherry, "wc -l < /l; cat /f") == "200\nx"
