"""Programs that come as Go modules, and one of a package that excludes an installed one: built once per version into
the user's cache, the first time by scripts/test.

Most are declared in tests/gotools/go.mod, those with other needs in directories below it; of one module only the
schemas are taken. A test's network leads nowhere: `python -m helpers.gotools` builds before all that does not take
long; the others are built by name (`python -m helpers.gotools kubernetes`). What is not there is tried once more, and
skips the test with the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

__all__ = [
    "CONTAINERD",
    "CRITEST",
    "KUBERNETES",
    "PROVISIONER",
    "module_directory",
    "newest_sanity",
    "nri_plugin",
    "plain_busybox",
    "runtime_tools",
    "snapshot_schemas",
    "stream_client",
    "tool",
]

_DECLARED = Path(__file__).resolve().parents[1] / "gotools"
#: go.mod files with the programs of one project each, too large to be built in passing; the last is CSI's
KUBERNETES, CONTAINERD, PROVISIONER = "kubernetes", "containerd", "provisioner"
#: programs that their authors wrote as tests; the newest critest has the cases of image volumes and needs newer modules
CRITEST = "critest"
_TESTS = {CRITEST: ("sigs.k8s.io/cri-tools/cmd/critest",)}
#: their test programs need a module file of their own: what they require is older than the others can bear
RUNTIME_TOOLS, _VERSION = "github.com/opencontainers/runtime-tools", "v0.9.1-0.20250303011046-260e151b8552"

#: the custom resources of volume snapshots, of the release whose sidecar csi/deploy names
SNAPSHOTS, _SNAPSHOTS_VERSION = "github.com/kubernetes-csi/external-snapshotter/client/v8", "v8.7.0"

#: csi-sanity for the spec after ours: it knows what 5.4 takes for an error, and needs newer modules than the others can
CSI_TEST, _CSI_TEST_VERSION = "github.com/kubernetes-csi/csi-test/v5", "v5.6.0"


class Unbuilt(Exception):
    """Why a program cannot be built here."""


def tool(name: str, of: str = "") -> Path:
    """One program of tests/gotools/go.mod, or of another of these files; skips where it cannot be built."""
    return _or_skip(name, lambda: _declared(of)) / name


def runtime_tools() -> Path:
    """The directory with the OCI runtime-tools' validation programs; skips where they cannot be built."""
    return _or_skip(RUNTIME_TOOLS, _runtime_tools)


def newest_sanity() -> Path:
    """csi-sanity 5.6, where `tool` gives 5.4; skips where it cannot be built."""
    return _or_skip(CSI_TEST, _newest_sanity) / "csi-sanity"


def snapshot_schemas() -> Path:
    """The directory with the CustomResourceDefinitions of volume snapshots; skips where they cannot be had."""
    return _or_skip(SNAPSHOTS, _snapshot_schemas)


def stream_client() -> Path:
    """client-go's exec, attach and port-forward as a program, of tests/gotools/streamclient; skips where it cannot be
    built."""
    return _or_skip("streamclient", functools.partial(_own, "streamclient"))


def nri_plugin() -> Path:
    """A plugin by NRI's own library, of tests/gotools/nriplugin; skips where it cannot be built."""
    return _or_skip("nriplugin", functools.partial(_own, "nriplugin", CRITEST))


def plain_busybox() -> Path:
    """The distribution's busybox whose shell starts programs by their path, where busybox-static's, which excludes it,
    runs its own in their place; skips where it cannot be had."""
    return _or_skip("busybox", _plain_busybox)


def module_directory(programs: Path, module: str) -> Path:
    """Where the module's sources lie, beside programs that were built of it."""
    words = ("list", "-mod=mod", "-m", "-f", "{{.Dir}}", module)
    return _or_skip(module, lambda: Path(_go(programs.parent, *words).strip()))


def _declared(of: str = "") -> Path:
    texts = {name: (_DECLARED / of / name).read_bytes() for name in ("go.mod", "go.sum")}
    cache = _cache(f"{of or 'declared'}@{hashlib.sha256(b''.join(texts.values())).hexdigest()[:16]}")
    with _once(cache) as missing:
        if missing:
            for name, text in texts.items():
                (cache / name).write_bytes(text)
            (cache / "bin").mkdir(exist_ok=True)
            if of not in _TESTS:
                _go(cache, "install", "-trimpath", "-ldflags=-s -w", "tool")
            for package in _TESTS.get(of, ()):
                program = cache / "bin" / package.rpartition("/")[2]
                _go(cache, "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", str(program), package)
    return cache / "bin"


def _runtime_tools() -> Path:
    cache = _cache(f"{RUNTIME_TOOLS.replace('/', '_')}@{_VERSION}")
    with _once(cache) as missing:
        if missing:
            (cache / "go.mod").write_text(f"module build\n\ngo 1.19\n\nrequire {RUNTIME_TOOLS} {_VERSION}\n")
            for package in ("validation/...", "cmd/runtimetest"):
                words = ("-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", f"{cache}/bin/")
                _go(cache, "build", *words, f"{RUNTIME_TOOLS}/{package}")
    return cache / "bin"


def _newest_sanity() -> Path:
    cache = _cache(f"{CSI_TEST.replace('/', '_')}@{_CSI_TEST_VERSION}")
    with _once(cache) as missing:
        if missing:
            _go(cache, "install", "-trimpath", "-ldflags=-s -w", f"{CSI_TEST}/cmd/csi-sanity@{_CSI_TEST_VERSION}")
    return cache / "bin"


def _snapshot_schemas() -> Path:
    cache = _cache(f"{SNAPSHOTS.replace('/', '_')}@{_SNAPSHOTS_VERSION}")
    with _once(cache) as missing:
        if missing:
            told = json.loads(_go(cache, "mod", "download", "-json", f"{SNAPSHOTS}@{_SNAPSHOTS_VERSION}"))
            shutil.copytree(Path(told["Dir"]) / "config" / "crd", cache / "crd", dirs_exist_ok=True)
    return cache / "crd"


def _own(program: str, of: str = "") -> Path:
    """A program of ours, with the modules that one of these files names."""
    texts = {name: (_DECLARED / of / name).read_bytes() for name in ("go.mod", "go.sum")}
    texts[f"{program}/main.go"] = (_DECLARED / program / "main.go").read_bytes()
    cache = _cache(f"{program}@{hashlib.sha256(b''.join(texts.values())).hexdigest()[:16]}")
    with _once(cache) as missing:
        if missing:
            (cache / program).mkdir(exist_ok=True)
            for name, text in texts.items():
                (cache / name).write_bytes(text)
            words = ("-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", f"{cache}/bin/")
            _go(cache, "build", *words, f"./{program}")
    return cache / "bin" / program


def _plain_busybox() -> Path:
    cache = _cache("busybox")
    with _once(cache) as missing:
        if missing:
            _run(cache, dict(os.environ), "apt-get", "download", "-q", "busybox")
            _run(cache, dict(os.environ), "dpkg", "-x", str(next(cache.glob("busybox_*.deb"))), str(cache))
    return cache / "bin" / "busybox"


def _cache(name: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "wherry-gotools" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _once(cache: Path) -> Iterator[bool]:
    """Whether it is still to be built; marked as built when the block ends well."""
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not (cache / "complete").exists()
        (cache / "complete").touch()


def _or_skip(what: str, build: Callable[[], Path]) -> Path:
    try:
        return build()
    except Unbuilt as why:
        pytest.skip(f"{what} cannot be built: {why}")


def _go(directory: Path, *words: str) -> str:
    return _run(directory, {**os.environ, "CGO_ENABLED": "0", "GOBIN": f"{directory}/bin"}, "go", *words)


def _run(directory: Path, env: dict[str, str], *words: str) -> str:
    if not shutil.which(words[0]):
        raise Unbuilt(f"{words[0]} is not installed")
    done = subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unbuilt((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    return done.stdout


def main(asked: Sequence[str] = ()) -> None:
    """Build what is asked for, else all that does not take long, and name what cannot be built."""
    critest = functools.partial(_declared, CRITEST)
    own = (functools.partial(_own, "streamclient"), functools.partial(_own, "nriplugin", CRITEST))
    usual = (_declared, critest, *own, _runtime_tools, _newest_sanity, _snapshot_schemas, _plain_busybox)
    for build in [functools.partial(_declared, of) for of in asked] or usual:
        try:
            build()
        except Unbuilt as why:
            print(f"Go programs of the tests: {why}: what needs them is skipped", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
