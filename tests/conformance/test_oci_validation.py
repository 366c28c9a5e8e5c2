"""The validation programs of the OCI runtime-tools, one test each, with wherry-oci as their runtime.

They come as a Go module, built once into the user's cache. Each program runs with a --root, mounts and processes of its
own; what it leaves running ends with it. Several run side by side: most of their time they sleep.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import gotools, tools
from helpers.ociruntime import APART, HIDE, RUNTIME, wrapper

BUILD_SECONDS, PROGRAM_SECONDS, SIDE_BY_SIDE = 900, 90, 3

PROGRAMS = (
    "config_updates_without_affect", "create", "default", "delete_only_create_resources", "hooks_stdin", "hostname",
    "kill", "kill_no_effect", "killsig", "linux_devices", "linux_masked_paths", "linux_mount_label", "linux_ns_itype",
    "linux_ns_nopath", "linux_ns_path", "linux_ns_path_type", "linux_readonly_paths", "linux_rootfs_propagation",
    "linux_seccomp", "linux_sysctl", "linux_uid_mappings", "mounts", "poststart",
    "poststop", "poststop_fail", "prestart_fail", "process", "process_oom_score_adj", "process_rlimits_fail",
    "process_user", "root_readonly_true", "state", "linux_process_apparmor_profile", "process_capabilities",
)  # fmt: skip
V1 = "reads cgroup v1, which wherry leaves alone"
CONTROLLERS = ("blkio", "cpus", "devices", "hugetlb", "memory", "network", "pids")
#: what is not run, with the reason
NOT_RUN = {
    **{f"linux_cgroups_{way}{what}": V1 for way in ("", "relative_") for what in CONTROLLERS},
    "delete_resources": f"{V1}: pids.max",
    "delete": "wants delete to refuse a created container; runc and crun end it, and containerd's shim relies on that",
    "hooks": "has no way to pass: every outcome prints an error, and it compares with lines that no hook writes",
    "misc_props": "its bundle lacks the program that it names; create says so, as runc's and crun's do",
    "pidfile": "kills a process that ended 10 s before, and wants no error; the spec wants one",
    "poststart_fail": "wants a failed poststart hook to be a warning; spec 1.3: an error that ends the container",
    "prestart": "wants the hooks at start; spec 1.0.2 and newer: create calls them",
    "process_capabilities_fail": "wants an error for an unknown capability; spec 1.0.2 and newer: a warning",
    "process_rlimits": "Go 1.19 and newer raise RLIMIT_NOFILE's soft limit at the start, so runtimetest sees another",
    "start": "wants start without `process` to succeed, under the spec's sentence that it is an error",
}
#: compares by luck: the first write of the container's process with that of a hook started after its exec
RACES, TRIES = ("poststart",), 5
ALL_CAPABILITIES = (1 << int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1) - 1


class Said(NamedTuple):
    """What one program wrote, and the exit code: None when it had to be ended."""

    code: int | None
    out: str
    err: str
    left: tuple[str, ...]  # containers that it did not delete

    def failures(self) -> list[str]:
        """TAP's bad lines. Programs for hooks write no test line at all, but an error when there is one."""
        found = re.findall(r"^ *not ok.*(?:\n +---(?:\n +.*)*?\n +\.\.\.)?", self.out, re.MULTILINE)
        silent = not re.search(r"^ok ", self.out, re.MULTILINE)
        return found + (re.findall(r'"error": .*', self.out) if silent and not found else [])


Running = dict[str, Future[Said]]


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory with the built programs, runtimetest for inside of containers, and the root file system."""
    directory = gotools.runtime_tools()
    if not list(directory.glob("*.gz")):
        for archive in gotools.module_directory(directory, gotools.RUNTIME_TOOLS).glob("rootfs-*.tar.gz"):
            shutil.copyfile(archive, directory / archive.name)
    return directory


def run(program: str, programs: Path, directory: Path) -> Said:
    """One program; one that races is run again until it has won."""
    for number in range(TRIES if program in RACES else 1):
        said = once(program, programs, directory / f"{program}-{number}")
        if not said.failures():
            break
    return said


def once(program: str, programs: Path, place: Path) -> Said:
    """One program in a place of its own, where it finds its root file system and runtimetest beside itself."""
    (place / "tmp").mkdir(parents=True)
    (place / "left").touch()
    runtime = wrapper(place)
    listing = f'ids=$({runtime} list -q); for id in $ids; do echo "$id" >&3; {runtime} delete --force "$id"; done'
    script = f"{HIDE}cd {programs} && ./{program}; code=$?; {{ {listing}; }} >/dev/null 2>&1 3>{place}/left; exit $code"
    env = {**os.environ, "RUNTIME": str(runtime), "TMPDIR": str(place / "tmp")}
    with open(place / "out", "w") as out, open(place / "err", "w") as err:
        command = [*APART, "sh", "-c", script]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        try:
            code: int | None = process.wait(PROGRAM_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
    texts = {name: (place / name).read_text(errors="replace") for name in ("out", "err", "left")}
    return Said(code, texts["out"], texts["err"], tuple(texts["left"].split()))


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest, programs: Path, private_network: object) -> Iterator[Running]:
    """The results to come of the programs that were asked for."""
    tools.need(RUNTIME)
    items = [item for item in request.session.items if getattr(item, "function", None) is test_validation]
    wanted = [item.callspec.params["program"] for item in items]  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="wherry-validation-") as name, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        Path(name).chmod(0o755)  # users of user namespaces come by
        yield {program: pool.submit(run, program, programs, Path(name)) for program in wanted}
        pool.shutdown(cancel_futures=True)


def what_host_lacks(program: str) -> str:
    """Why a program cannot pass on this host; "" where it can."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if program == "process_capabilities" and int(status["CapBnd"], 16) != ALL_CAPABILITIES:
        return "wants all capabilities, and this host's root lacks some"
    if program == "linux_process_apparmor_profile" and not Path("/sys/kernel/security/apparmor").exists():
        return "needs AppArmor"
    return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.seconds(BUILD_SECONDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_validation(program: str, running: Running) -> None:
    if lacking := what_host_lacks(program):
        pytest.skip(lacking)
    said = running[program].result()
    assert not said.failures(), "\n".join([*said.failures(), said.err])
    assert said.code == 0, f"exit {said.code}\n{said.out[-2000:]}{said.err}"
    assert not said.left, f"containers left: {said.left}"


@pytest.mark.parametrize("program", NOT_RUN)
def test_not_run(program: str) -> None:
    pytest.skip(NOT_RUN[program])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.seconds(BUILD_SECONDS)
def test_every_program_is_named(programs: Path) -> None:
    built = {path.name for path in programs.iterdir() if path.suffix != ".gz"} - {"runtimetest"}
    assert built == {*PROGRAMS, *NOT_RUN}
