"""Programs that come as a Go module: built once per version into the user's cache."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from .tools import need

__all__ = ["built", "module_directory"]


def built(module: str, version: str, *packages: str) -> Path:
    """The directory with the programs of these packages of the module; skips where they cannot be built."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "wherry-gotools" / f"{module.replace('/', '_')}@{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "complete").exists():
            need("go")
            (cache / "go.mod").write_text(f"module build\n\ngo 1.19\n\nrequire {module} {version}\n")
            for package in packages:
                _go(cache, "build", "-trimpath", "-ldflags=-s -w", "-o", f"{cache}/bin/", f"{module}/{package}")
            (cache / "complete").touch()
    return cache / "bin"


def module_directory(programs: Path, module: str) -> Path:
    """Where the module's sources lie, beside programs that were built of it."""
    return Path(_go(programs.parent, "list", "-m", "-f", "{{.Dir}}", module).strip())


def _go(directory: Path, *words: str) -> str:
    env = {**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    done = subprocess.run(["go", *words], cwd=directory, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{words[-1]} cannot be built: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return done.stdout
