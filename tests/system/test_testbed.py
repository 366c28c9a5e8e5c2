"""Boots the testbed's guest once plain and once under systemd, runs tests/testbed in it, and relays each result here.
One file of it runs in a third guest, with a distribution's kernel, emulated: criu does not know the newest one.

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
EMULATED, EMULATED_FILE = ("--backend", "qemu", "--systemd"), "test_oci_criu.py"
PREPARE_SECONDS, BOOT_SECONDS = 1500, 900


def inner_tests(*, emulated: bool) -> list[str]:
    """file::function of every test in there, read without importing it."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(INNER.glob("test_*.py"))
        if (path.name == EMULATED_FILE) is emulated
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="session")
def prepared() -> None:
    """The kernel is there, or built within a bound."""
    prepare()


def prepare(*flags: str) -> None:
    try:
        done = subprocess.run(
            [str(VM_RUN), *flags, "--prepare"], capture_output=True, text=True, timeout=PREPARE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the testbed's kernel was not built within {PREPARE_SECONDS} s")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"not prepared ({VM_RUN.name} {' '.join([*flags, '--prepare'])}): {why}")


def checkout() -> list[str]:
    """The guest's /tmp and /run are its own: a checkout that lies there is shared with it."""
    hidden = any(TOP.is_relative_to(place) for place in ("/tmp", "/run"))
    return ["--rw", str(TOP)] if hidden else []


class Boot:
    """One run of the inner tests in one guest."""

    def __init__(self, mode: str, results: Path, flags: tuple[str, ...], inner: Path = INNER) -> None:
        xml = results / f"{mode}.xml"
        python = Path(sys.executable)
        path = f"{python.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = [
            str(VM_RUN), *flags, "--timeout", str(BOOT_SECONDS), "--rw", str(results), *checkout(),
            "--env", f"PATH={path}", "--env", "WHERRY_TESTBED=1", "--",
            str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/scratch/t",
            f"--junitxml={xml}", str(inner),
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
@pytest.mark.parametrize("test", inner_tests(emulated=False))
@pytest.mark.parametrize("mode", MODES)
def test_in_guest(mode: str, test: str, boots: dict[str, Boot], tmp_path_factory: pytest.TempPathFactory) -> None:
    if mode not in boots:
        boots[mode] = Boot(mode, tmp_path_factory.mktemp(f"testbed-{mode}"), MODES[mode])
    boots[mode].relay(test)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """The guest with a distribution's kernel."""
    prepare(*EMULATED)
    return Boot("emulated", tmp_path_factory.mktemp("testbed-emulated"), EMULATED, INNER / EMULATED_FILE)


@pytest.mark.seconds(PREPARE_SECONDS + BOOT_SECONDS + 60)
@pytest.mark.parametrize("test", inner_tests(emulated=True))
def test_in_emulated_guest(test: str, emulated: Boot) -> None:
    emulated.relay(test)
