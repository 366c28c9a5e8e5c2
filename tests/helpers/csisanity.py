"""csi-sanity, the upstream conformance program for CSI drivers: run against a driver, its report read."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .csi import MIB, Driver
from .gotools import newest_sanity, tool

__all__ = ["CASES", "CASES_NEWEST", "Report", "sanity"]

CASES = 91  # of csi-test v5.4.0, beside one that its authors have switched off
CASES_NEWEST = 95  # of csi-test v5.6.0, beside that one and seven for what the spec has since 1.13
SIZE, LARGER = 64 * MIB, 96 * MIB
ATTACHABLE = 8  # volumes that the driver lets one node have: a case publishes one more
SECONDS = 150
_BAD = ("failure", "error", "skipped")  # children of a testcase


class Report(NamedTuple):
    """What became of the cases, each a line `what: why` but for those that passed."""

    ran: int
    passed: int
    failed: list[str]
    skipped: list[str]
    off: int  # "pending": written, but not to be run


def sanity(
    place: Path, pool: Path, access: str, *, backend: str, mutable: Mapping[str, str], newest: bool = False
) -> Report:
    """Run all of it against a driver of its own on `pool`, with every capability on: all of the spec's 1.12 for the
    newest, less one for csi-test 5.4, which takes that for an error. `place` is an empty directory."""
    program = newest_sanity() if newest else tool("csi-sanity")
    words = ("--controller-publish", "--max-volumes", str(ATTACHABLE), *(() if newest else ("--spec", "1.11")))
    driver = Driver(place, {"sanity": pool}, *words)
    client = driver.start()
    report = place / "junit.xml"
    snapshot = {"csi.storage.k8s.io/volumesnapshot/name": "sanity"}
    parameters = {"backend": backend, "provisioning": "thin"}
    files = {"volumeparameters": parameters, "volumemutableparameters": mutable, "snapshotparameters": snapshot}
    command = [str(program), f"--csi.endpoint=unix://{driver.socket}", f"--csi.testvolumeaccesstype={access}",
             f"--csi.testvolumesize={SIZE}", f"--csi.testvolumeexpandsize={LARGER}", "--csi.testnodevolumeattachlimit",
             f"--csi.mountdir={place}/mount", f"--csi.stagingdir={place}/staging",
             f"--ginkgo.junit-report={report}", "--ginkgo.no-color"]  # fmt: skip
    for name, values in files.items():
        (place / name).write_text("".join(f'{key}: "{value}"\n' for key, value in values.items()))
        command.append(f"--csi.test{name}={place / name}")
    # its Connect loses a minute and a case if the connection is ready between two looks of its own: one thread, no race
    env = {**os.environ, "GOMAXPROCS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=env)
    assert report.exists(), f"csi-sanity: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr}\n{driver.tail()}"
    client.sweep()  # of a driver that fails cases
    assert not driver.check()
    driver.stop()
    return read(report)


def read(path: Path) -> Report:
    """ginkgo's JUnit report; its own set-up nodes are no cases."""
    cases = [case for case in ET.parse(path).getroot().iter("testcase") if case.get("name", "").startswith("[It]")]
    said: dict[str, list[str]] = {}
    for case in cases:
        why = "".join(child.get("message") or child.text or "" for child in case if child.tag in _BAD)
        said.setdefault(case.get("status", ""), []).append(f"{case.get('name', '')[5:]}: {why[:500]}")
    passed, skipped, off = (said.pop(status, []) for status in ("passed", "skipped", "pending"))
    failed = [line for lines in said.values() for line in lines]  # failed, panicked, interrupted, timedout, aborted
    return Report(len(cases) - len(skipped) - len(off), len(passed), failed, skipped, len(off))
