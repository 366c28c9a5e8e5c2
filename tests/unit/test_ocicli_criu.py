"""What of a container criu is told to leave to the outside, and the words it is told so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from wherry.container.criu import descriptors, externals
from wherry.errors import WherryError
from wherry.kernel import process
from wherry.model import Json
from wherry.ocicli import criu, flags
from wherry.ocicli.verbs import VERBS


def values(verb: str, *argv: str) -> dict[str, Any]:
    return flags.read(next(found.flags for found in VERBS if found.name == verb), argv)[0]


@pytest.mark.parametrize(
    ("verb", "argv", "found"),
    [
        ("checkpoint", (), ["--manage-cgroups=soft"]),
        ("restore", ("--manage-cgroups-mode", "ignore"), ["--manage-cgroups=ignore"]),
        (
            "checkpoint",
            ("--leave-running", "--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"),
            ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--leave-running",
             "--manage-cgroups=soft"],
        ),
        (
            "checkpoint",
            ("--page-server", "[::1]:99"),
            ["--manage-cgroups=soft", "--page-server", "--address", "::1", "--port", "99"],
        ),
        ("restore", ("--lsm-profile", "apparmor:x"), ["--lsm-profile", "apparmor:x", "--manage-cgroups=soft"]),
    ],
)  # fmt: skip
def test_options_in_crius_words(verb: str, argv: tuple[str, ...], found: list[str]) -> None:
    assert list(criu.options(values(verb, *argv))) == found


@pytest.mark.parametrize("argv", [("--manage-cgroups-mode", "hard"), ("--page-server", "99"), ("--page-server", "a:b")])
def test_what_criu_would_not_understand_is_refused(argv: tuple[str, str]) -> None:
    with pytest.raises(WherryError, match=argv[0]):
        list(criu.options(values("checkpoint", *argv)))


def test_bind_mounts_and_masks_are_the_outsides(tmp_path: Path) -> None:
    config: Json = {
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data/", "source": "/srv/data", "options": ["rbind"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "hosts"},
        ],
        "linux": {"maskedPaths": ["/proc/kcore", str(tmp_path)]},
    }
    assert externals(config, "/bundle") == [
        ("/data", "/srv/data"), ("/etc/hosts", "/bundle/hosts"), ("/proc/kcore", "/dev/null"),
    ]  # fmt: skip


def test_streams_from_outside_have_names() -> None:
    """A pipe by its inode; a file only where its mount is not the container's: ours are."""
    with subprocess.Popen(["sleep", "100"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        init = process.identify(child.pid)
        assert init is not None
        assert child.stdin is not None
        try:
            assert descriptors(init)[:2] == [f"pipe:[{os.fstat(child.stdin.fileno()).st_ino}]", ""]
        finally:
            child.kill()
