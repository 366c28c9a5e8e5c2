"""The directory backend with project quotas by csi-sanity: the guest's kernel has them, the host's need not.

Block volumes are always images: here in a pool that has both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.csi import loops, mounts_below, processes_of, residue
from helpers.csisanity import CASES, sanity

pytestmark = pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="run in the plain boot")


@pytest.mark.parametrize(("access", "backend"), [("mount", "directory"), ("block", "auto")])
def test_every_case_passes(access: str, backend: str, tmp_path: Path) -> None:
    """tmp_path is on /scratch: ext4 with project quotas. A directory has no device to limit, so its class has none."""
    place, pool = tmp_path / "csi", tmp_path / "pool"
    place.mkdir()
    pool.mkdir()
    mutable = {"writeBps": "max"} if backend == "directory" else {"writeBps": "104857600"}
    report = sanity(place, pool, access, backend=backend, mutable=mutable)
    assert not report.failed, "\n".join(report.failed)
    assert not report.skipped, "\n".join(report.skipped)
    assert (report.ran, report.passed, report.off) == (CASES, CASES, 1)
    assert residue(pool) == []
    assert mounts_below(place) + loops(pool) + processes_of(place) == []
