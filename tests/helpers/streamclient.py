"""client-go's exec, attach and port-forward as a program: tests/gotools/streamclient, built once per version."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from helpers import gotools

__all__ = ["program"]

_SOURCE = Path(__file__).resolve().parents[1] / "gotools"


def program() -> Path:
    """The program; skips where it cannot be built."""
    return gotools._or_skip("streamclient", _built)


def _built() -> Path:
    texts = [(_SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "streamclient/main.go")]
    cache = gotools._cache(f"streamclient@{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}")
    with gotools._once(cache) as missing:
        if missing:
            for name in ("go.mod", "go.sum"):
                shutil.copy(_SOURCE / name, cache / name)
            shutil.copytree(_SOURCE / "streamclient", cache / "streamclient", dirs_exist_ok=True)
            words = ("-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", f"{cache}/bin/")
            gotools._go(cache, "build", *words, "./streamclient")
    return cache / "bin" / "streamclient"
