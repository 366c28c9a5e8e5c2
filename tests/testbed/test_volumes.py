"""Volumes by our CSI driver on a host that has io limits, project quota, and growth of a mounted ext4."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from helpers.wherry import Wherry

MIB = 1 << 20


def status(wherry: Wherry, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(wherry("volume", "inspect", name).stdout)[0]["Status"]
    return found


def device(wherry: Wherry, ref: str, path: str) -> str:
    """major:minor of what is mounted in a container."""
    table = Path(f"/proc/{wherry.pid(ref)}/mountinfo").read_text().splitlines()
    return next(line.split()[2] for line in table if line.split()[4] == path)


def test_a_volume_s_io_limits_are_the_container_s(wherry: Wherry, busybox: str, group) -> None:  # type: ignore[no-untyped-def]
    words = ("-o", "size=64m", "-o", "backend=image", "-o", "write-bps=8m", "-o", "read-iops=100")
    wherry("volume", "create", *words, "data")
    name = wherry.name()
    wherry("run", "-d", "--name", name, "--network", "none", "-v", "data:/v", busybox, "sleep", "1000")
    lines = group(name)["io.max"].splitlines()
    assert lines == [f"{device(wherry, name, '/v')} rbps=max wbps={8 * MIB} riops=100 wiops=max"]
    began = time.monotonic()
    wherry("exec", name, "dd", "if=/dev/zero", "of=/v/x", "bs=1M", "count=16", "oflag=direct")
    assert time.monotonic() - began > 1.2  # 16 MiB at 8 MiB/s


def test_a_mounted_ext4_grows(wherry: Wherry, busybox: str) -> None:
    wherry("volume", "create", "-o", "size=32m", "-o", "fs=ext4", "data")
    name = wherry.name()
    wherry("run", "-d", "--name", name, "--network", "none", "-v", "data:/v", busybox, "sleep", "1000")
    assert wherry.out("volume", "resize", "data", "+64m") == str(96 * MIB)
    wherry("exec", name, "dd", "if=/dev/zero", "of=/v/x", "bs=1M", "count=60")
    assert status(wherry, "data")["used"] > 60 * MIB


def test_a_directory_with_a_quota_is_true_to_its_size(wherry: Wherry, busybox: str) -> None:
    for name in ("full", "well"):  # the pool lies on a disk with project quotas: /scratch
        wherry("volume", "create", "-o", "size=64m", "-o", "backend=directory", name)
    line = "dd if=/dev/zero of=/f/big bs=1M 2>&1; echo mine > /w/x; stat -f -c '%b %S' /f; du -k /f/big"
    run = ("run", "--rm", "--network", "none", "-v", "full:/f", "-v", "well:/w", busybox, "sh", "-c")
    said = wherry(*run, line).stdout
    assert "No space left on device" in said or "Disk quota exceeded" in said  # XFS; ext4
    df, du = (text.split() for text in said.splitlines()[-2:])
    assert int(df[0]) * int(df[1]) == 64 * MIB
    assert 63 << 10 < int(du[0]) <= 64 << 10
    found = status(wherry, "full")
    assert (found["size"], found["condition"]) == (64 * MIB, "ok")
    assert found["available"] < MIB
    assert wherry.out("volume", "resize", "full", "96m") == str(96 * MIB)
    assert wherry(*run, "cat /w/x; dd if=/dev/zero of=/f/more bs=1M count=20 && echo done").stdout == "mine\ndone\n"
    wherry("volume", "snapshot", "full", "monday")
    wherry("volume", "restore", "monday", "again")
    assert status(wherry, "again")["used"] >= 83 * MIB
    wherry("volume", "rm", "full", "well", "again")
    wherry("volume", "snapshot", "rm", "monday")
