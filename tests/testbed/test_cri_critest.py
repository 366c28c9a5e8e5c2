"""critest's cases that need controllers of cgroup v2: the host, whose memory controller is of v1, cannot show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import criimages, runtimes
from helpers.critest import critest
from helpers.ociruntime import Space
from helpers.registry import Registry

pytestmark = pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="run in the plain boot")
#: and the figures that a pod has only where they are counted
FOCUS, CASES = "OOMKilled|metrics operations", 3


@pytest.mark.seconds(300)
def test_what_needs_controllers_passes(tmp_path: Path, test_id: str, private_network: object) -> None:
    place = tmp_path / "runtime"
    with Space() as space, Registry(tmp_path / "registry") as registry:
        criimages.publish(registry.host, tmp_path)
        runtime = runtimes.wherryd(space, place, registry.host, test_id)
        runtime.start()
        report = critest(space, runtime.socket, tmp_path / "report", focus=FOCUS)
        runtime.end()
    assert not report.failed, "\n".join(report.failed)
    assert (report.ran, report.passed) == (CASES, CASES)
