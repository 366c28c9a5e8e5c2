"""Boots the testbed's guest once plain and once under systemd, runs tests/testbed in it, and relays each result here.
One file of it runs in a third guest, with a distribution's kernel, emulated: criu does not know the newest one.

The two boots begin when the tests have been collected, beside the tests before them and with less right to the CPUs,
and are over when their results are asked for: a guest takes one of two CPUs for minutes.

Skips with the reason where the guest's kernel cannot be had on this machine.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.testbed import PREPARE_SECONDS, TOP, VM_RUN, checkout, prepare

INNER = TOP / "tests" / "testbed"
MODES = {"plain": (), "systemd": ("--systemd",)}
EMULATED, EMULATED_FILE = ("--backend", "qemu", "--systemd"), "test_oci_criu.py"
BOOT_SECONDS = 1800
NICE = 10  # beside other tests, some of which look at the time
RUNNING: list[subprocess.Popen[str]] = []
EARLY = pytest.StashKey["Early"]()


def begin(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Boot what these items ask for, if any; `end` ends it."""
    own = [item for item in items if isinstance(item, pytest.Function) and item.originalname == test_in_guest.__name__]
    asked = {item.callspec.params["mode"] for item in own}
    if asked and os.geteuid() == 0:
        config.stash[EARLY] = Early([mode for mode in MODES if mode in asked])


def end(config: pytest.Config) -> None:
    """No guest outlives the session."""
    if early := config.stash.get(EARLY, None):
        early.end()


def inner_tests(*, emulated: bool) -> list[str]:
    """file::function of every test in there, read without importing it."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(INNER.glob("test_*.py"))
        if (path.name == EMULATED_FILE) is emulated
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


class Boot:
    """One run of the inner tests in one guest."""

    def __init__(self, mode: str, results: Path, flags: tuple[str, ...], inner: Path = INNER, nice: int = 0) -> None:
        xml = results / f"{mode}.xml"
        python = Path(sys.executable)
        path = f"{python.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = [
            "nice", "-n", str(nice), str(VM_RUN), *flags,
            "--timeout", str(BOOT_SECONDS), "--rw", str(results), *checkout(),
            "--env", f"PATH={path}", "--env", "WHERRY_TESTBED=1", "--",
            str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/scratch/t",
            f"--junitxml={xml}", str(inner),
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TOP, start_new_session=True
        ) as guest:
            RUNNING.append(guest)
            self.output = guest.communicate()[0][-12000:]
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


class Early:
    """The boots of one session, one after the other, beside whatever else runs."""

    def __init__(self, modes: list[str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="wherry-testbed-")
        self._thread = ThreadPoolExecutor(1)
        self._boots: dict[str, Future[Boot]] = {mode: self._thread.submit(self._boot, mode) for mode in modes}

    def _boot(self, mode: str) -> Boot:
        prepare()
        results = Path(self._directory.name) / mode
        results.mkdir()
        return Boot(mode, results, MODES[mode], nice=NICE)

    def __getitem__(self, mode: str) -> Boot:
        """Its results, waited for; or why there are none, which skips."""
        return self._boots[mode].result()

    def end(self) -> None:
        """The session is over, whatever was asked for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for guest in RUNNING:
            if guest.poll() is None:
                os.killpg(guest.pid, signal.SIGTERM)
        self._thread.shutdown()
        self._directory.cleanup()


@pytest.mark.seconds(PREPARE_SECONDS + 2 * BOOT_SECONDS + 60)
@pytest.mark.parametrize("test", inner_tests(emulated=False))
@pytest.mark.parametrize("mode", MODES)
def test_in_guest(mode: str, test: str, request: pytest.FixtureRequest) -> None:
    request.config.stash[EARLY][mode].relay(test)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """The guest with a distribution's kernel."""
    prepare(*EMULATED)
    return Boot("emulated", tmp_path_factory.mktemp("testbed-emulated"), EMULATED, INNER / EMULATED_FILE)


@pytest.mark.seconds(PREPARE_SECONDS + BOOT_SECONDS + 60)
@pytest.mark.parametrize("test", inner_tests(emulated=True))
def test_in_emulated_guest(test: str, emulated: Boot) -> None:
    emulated.relay(test)
