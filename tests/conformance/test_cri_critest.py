"""critest, the CRI's upstream conformance program, against wherryd: the exact cases that do not pass, each with why.

WHERRY_TEST_CRI=containerd (or a path of one) puts that in wherryd's place, to learn what it scores on this machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from helpers import criimages, runtimes
from helpers.critest import DIGEST, Report, critest
from helpers.ociruntime import Space
from helpers.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

#: of 137, which are all but the benchmarks: pattern of a name, and why it is not run
SKIPPED = {
    r"AppArmor ": "this kernel has no AppArmor (9 cases)",
    DIGEST: "pulls by the digest of an image that nobody can make again",
}
#: what cannot be where cgroup v2 has no controllers; tests/testbed/test_cri_critest.py has these cases
OOM = "Container OOM"
LIMITS_SKIPPED = {OOM: "a limit of memory cannot be set, and the case waits a minute for its effect"}
LIMITS_FAILED = {"listing pod sandbox metrics": "figures that only controllers count are left out"}
TOTAL = 137


@pytest.mark.seconds(480)
def test_every_case_but_these_passes(tmp_path: Path, test_id: str, private_network: object, host_canary: None) -> None:
    with Space(private=("/run/containerd", "/run/netns", "/opt")) as space, Registry(tmp_path / "registry") as registry:
        criimages.publish(registry.host, tmp_path)
        runtime = runtimes.chosen(space, tmp_path / "runtime", registry.host, test_id)
        runtime.start()
        skip = DIGEST if controllers() else f"{DIGEST}|{OOM}"
        nri = f"--nri-socket={runtime.socket.with_name('nri.sock')}"
        report = critest(space, runtime.socket, tmp_path / "report", nri, skip=skip)
        left = runtime.crictl("pods", "-q").stdout.split(), runtime.crictl("ps", "-aq").stdout.split()
        runtime.end()
    check(report)
    assert left == ([], [])


def check(report: Report) -> None:
    """Every case that did not pass is one of the tables', and every entry of a table has a case."""
    limited = not controllers()
    assert report.ran + len(report.skipped) == TOTAL
    for lines, known in (
        (report.failed, [*LIMITS_FAILED] * limited), (report.skipped, [*SKIPPED, *[*LIMITS_SKIPPED] * limited]),
    ):  # fmt: skip
        assert [line for line in lines if not any(re.search(pattern, line) for pattern in known)] == []
        assert [pattern for pattern in known if not any(re.search(pattern, line) for line in lines)] == []
    assert report.passed == report.ran - len(report.failed)


def controllers() -> bool:
    """Whether cgroup v2 has the memory controller here."""
    roots = [Path("/sys/fs/cgroup/cgroup.controllers"), Path("/sys/fs/cgroup/unified/cgroup.controllers")]
    return any("memory" in root.read_text().split() for root in roots if root.exists())
