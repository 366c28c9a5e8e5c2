"""The driver by csi-sanity: every case runs and passes, mounted and as a block device, with reflink and without.

Two releases of it: 5.4, which the other tools' needs allow, and the newest. The directory backend, which needs a kernel
with project quotas, is judged in the testbed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.csi import loops, mounts_below, processes_of, residue
from helpers.csisanity import CASES, CASES_NEWEST, sanity
from helpers.loopfs import LoopFs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LIMITS = {"readBps": "104857600", "writeBps": "104857600", "readIops": "10000", "writeIops": "10000"}


@pytest.fixture(params=["xfs", "ext4"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """xfs has reflink, ext4 has not: snapshots and clones go two ways."""
    with LoopFs(tmp_path, 4096, request.param) as disk:
        yield disk.path


@pytest.mark.parametrize("access", ["mount", "block"])
def test_every_case_passes(pool: Path, access: str, tmp_path: Path) -> None:
    place = tmp_path / "csi"
    place.mkdir()
    report = sanity(place, pool, access, backend="image", mutable=LIMITS)
    assert not report.failed, "\n".join(report.failed)
    assert not report.skipped, "\n".join(report.skipped)
    assert (report.ran, report.passed, report.off) == (CASES, CASES, 1)
    assert residue(pool) == []
    assert mounts_below(place) + loops(pool) + processes_of(place) == []


@pytest.mark.parametrize("access", ["mount", "block"])
def test_the_newest_finds_nothing_either(pool: Path, access: str, tmp_path: Path) -> None:
    """csi-test 5.6, which knows the spec's 1.12 whole, and asks for 1.13: what it skips is that and nothing else."""
    place = tmp_path / "csi"
    place.mkdir()
    report = sanity(place, pool, access, backend="image", mutable=LIMITS, newest=True)
    assert not report.failed, "\n".join(report.failed)
    later = ("VolumeHealth not supported", "StorageHealth not supported", "ACCESSIBILITY_CONSTRAINTS not supported")
    assert [line for line in report.skipped if not line.endswith(later)] == []
    assert (report.ran, report.passed, report.off) == (CASES_NEWEST, CASES_NEWEST, 1)
    assert residue(pool) == []
