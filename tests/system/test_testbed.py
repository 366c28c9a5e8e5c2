"""Boots the testbed's guest once plain and once under systemd, runs tests/testbed in it, and relays each result here.

Skips with the reason where the guest's kernel cannot be had on this machine.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
INNER = TOP / "tests" / "testbed"
VM_RUN = TOP / "scripts" / "testbed" / "vm-run"
MODES = {"plain": (), "systemd": ("--systemd",)}
PREPARE_SECONDS, BOOT_SECONDS = 1500, 900


def inner_tests() -> list[str]:
    """file::function of every test in there, read without importing it."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(INNER.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="session")
def prepared() -> None:
    """The kernel is there, or built within a bound."""
    try:
        done = subprocess.run(
            [str(VM_RUN), "--prepare"], capture_output=True, text=True, timeout=PREPARE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the testbed's kernel was not built within {PREPARE_SECONDS} s")
    if done.returncode:
        pytest.skip(f"no testbed here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def checkout() -> list[str]:
    """The guest's /tmp and /run are its own: a checkout that lies there is shared with it."""
    hidden = any(TOP.is_relative_to(place) for place in ("/tmp", "/run"))
    return ["--rw", str(TOP)] if hidden else []


class Boot:
    """One run of the inner tests in one guest."""

    def __init__(self, mode: str, results: Path) -> None:
        xml = results / f"{mode}.xml"
        python = Path(sys.executable)
        path = f"{python.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = [
            str(VM_RUN), *MODES[mode], "--timeout", str(BOOT_SECONDS), "--rw", str(results), *checkout(),
            "--env", f"PATH={path}", "--env", "WHERRY_TESTBED=1", "--",
            str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/scratch/t",
            f"--junitxml={xml}", str(INNER),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOP)
        self.output = done.stdout[-6000:] + done.stderr[-6000:]
        self.cases = list(ET.parse(xml).getroot().iter("testcase")) if xml.exists() else []

    def relay(self, test: str) -> None:
        """Become the result of one inner test, all its parameters together."""
        file, _, name = test.partition("::")
        module = file.removesuffix(".py")
        own = [
            case
            for case in self.cases
            if case.get("classname", "").endswith(module) and case.get("name", "").partition("[")[0] == name
        ]
        assert own, f"the guest gave no result of {test}:\n{self.output}"
        bad = [
            f"{case.get('name')}\n{child.text}" for case in own for child in case if child.tag in ("failure", "error")
        ]
        assert not bad, "\n".join(bad)
        skipped = [child.get("message", "") for case in own for child in case if child.tag == "skipped"]
        if len(skipped) == len(own):
            pytest.skip(skipped[0])


@pytest.fixture(scope="session")
def boots(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Boot]:
    """The guests' results by mode; each boots when its first test asks."""
    return {}


@pytest.mark.seconds(PREPARE_SECONDS + BOOT_SECONDS + 60)
@pytest.mark.parametrize("test", inner_tests())
@pytest.mark.parametrize("mode", MODES)
def test_in_guest(mode: str, test: str, boots: dict[str, Boot], tmp_path_factory: pytest.TempPathFactory) -> None:
    if mode not in boots:
        boots[mode] = Boot(mode, tmp_path_factory.mktemp(f"testbed-{mode}"))
    boots[mode].relay(test)
