"""The systemd cgroup driver against a real systemd: what a unit was given is what systemd shows and the kernel holds,
and a daemon-reload takes nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.bundles import Bundle, make_root
from helpers.wherry import until
from wherry.container import systemd
from wherry.container.systemd import Holder, Manager
from wherry.errors import Kind, WherryError
from wherry.kernel import cgroup, facts, process, shim
from wherry.model import Json
from wherry.oci import bpf, cgroup2, defaults
from wherry.oci import systemd as words
from wherry.oci.systemd import Scope

pytestmark = pytest.mark.skipif(not systemd.available(), reason="no systemd in this boot")

MIB = 1 << 20
BUS = "/run/dbus/system_bus_socket"
#: 24.69 % of a CPU: systemd keeps whole percents
RESOURCES: Json = {
    "memory": {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB},
    "cpu": {"shares": 512, "quota": 12345, "period": 50000, "burst": 1000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 20},
    "blockIO": {"weight": 500},
    "unified": {"memory.high": str(60 * MIB)},
}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
ZERO = {**NULL, "minor": 5}
KMSG = {**NULL, "minor": 11}


def show(unit: str, *names: str) -> dict[str, str]:
    out = subprocess.check_output(["systemctl", "show", unit, *(f"-p{name}" for name in names)], text=True)
    return dict(line.split("=", 1) for line in out.splitlines())


def gone(scope: Scope) -> bool:
    folder = f"/sys/fs/cgroup/{words.slice_path(scope.slice)}/{scope.unit}"
    return show(scope.unit, "LoadState")["LoadState"] == "not-found" and not os.path.exists(folder)


def reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def holders() -> list[str]:
    """Helpers in role launch: none stays but one that waits."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"wherry-helper\0launch"):
                found.append(folder.name)
    return found


@pytest.fixture
def scope(test_id: str) -> Iterator[Scope]:
    """A name for a unit; at the end neither it nor a process that waits is there."""
    made = words.scope(f"wherry-test.slice:wherry:{test_id}", test_id)
    yield made
    systemd.stop(made)
    until(lambda: gone(made), message=f"{made.unit} is left over")
    until(lambda: not holders(), message="a holder is left over")


@pytest.fixture
def one(tmp_path: Path, test_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    made = Bundle(str(tmp_path / "state"), test_id, make_root(tmp_path_factory.mktemp("bundle") / "root"))
    yield made
    made.remove()


def begin(scope: Scope, resources: Json, rules: list[Json] | None = None) -> Holder:
    return systemd.start(scope, words.properties(cgroup2.writes(resources), rules), facts.measure())


def run(one: Bundle, scope: Scope, *args: str, resources: Json = RESOURCES) -> str:
    """A container in a scope of its own, as a caller does it; the cgroup's path."""
    one.configure(*args)
    rules = defaults.device_rules()
    with begin(scope, resources, rules) as holder:
        one.cgroup = holder.path
        one.run(one.how()._replace(
            cgroup_exists=True, device_bpf=bpf.program(rules),
            cgroup_writes=tuple(words.direct(cgroup2.writes(resources))),
        ))  # fmt: skip
    return one.cgroup


def opened(path: str, device: str, flags: int = os.O_RDONLY) -> bool:
    """Whether a process in the cgroup may open a device."""
    pid = os.fork()
    if not pid:
        code = 2
        with suppress(BaseException):
            Path(path, "cgroup.procs").write_text("0")
            try:
                os.close(os.open(device, flags))
                code = 0
            except PermissionError:
                code = 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0


def attach(path: str, rules: list[Json]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        shim.attach_device_program(fd, bpf.program(rules))
    finally:
        os.close(fd)


def test_a_scope_says_what_it_was_given(scope: Scope) -> None:
    with begin(scope, RESOURCES, [NULL]) as holder:
        assert holder.path == f"/sys/fs/cgroup/wherry.slice/wherry-test.slice/{scope.unit}"
        wanted = {
            "MemoryMax": str(64 * MIB), "MemorySwapMax": str(32 * MIB), "MemoryLow": str(32 * MIB),
            "MemoryHigh": str(60 * MIB), "CPUWeight": "59", "CPUQuotaPerSecUSec": "250ms", "AllowedCPUs": "0",
            "CPUQuotaPeriodUSec": "50ms", "AllowedMemoryNodes": "0", "IOWeight": "4950", "Delegate": "yes",
            "Slice": "wherry-test.slice", "DevicePolicy": "strict", "DeviceAllow": "/dev/char/1:3 rwm",
            "CollectMode": "inactive-or-failed", "DefaultDependencies": "no", "TasksAccounting": "yes",
        }  # fmt: skip
        assert show(scope.unit, *wanted) == wanted
        inexact = {"cpu.max", "cpu.max.burst", "pids.max"}
        limits = [write for write in cgroup2.writes(RESOURCES) if write[0] not in inexact]
        assert cgroup.mismatches(holder.path, limits) == []


@pytest.mark.parametrize(("file", "value", "name", "shown"), [
    ("cpu.idle", "1", "CPUWeight", "idle"),
    ("io.max", "98:0 rbps=1048576 wiops=120", "IOReadBandwidthMax", "/dev/block/98:0 1048576"),
    ("io.max", "98:0 rbps=1048576 wiops=120", "IOWriteIOPSMax", "/dev/block/98:0 120"),
    ("memory.min", "1M", "MemoryMin", str(MIB)),
    ("memory.swap.max", "max", "MemorySwapMax", "infinity"),
    ("pids.max", "max", "TasksMax", "infinity"),
    ("cpu.max", "max 20000", "CPUQuotaPerSecUSec", "infinity"),
])  # fmt: skip
def test_each_file_has_its_property(scope: Scope, file: str, value: str, name: str, shown: str) -> None:
    with begin(scope, {"unified": {file: value}}):
        assert show(scope.unit, name) == {name: shown}


def test_a_container_lives_in_its_scope(scope: Scope, one: Bundle) -> None:
    path = run(one, scope, "sleep", "1000")
    assert one.launched is not None
    assert cgroup.processes(path) == [one.launched.init.pid]
    assert holders() == []
    assert cgroup.mismatches(path, cgroup2.writes(RESOURCES)) == []
    assert show(scope.unit, "TasksMax", "ActiveState") == {"TasksMax": "20", "ActiveState": "active"}


def test_a_scope_goes_with_its_container(scope: Scope, one: Bundle) -> None:
    run(one, scope, "true")
    assert one.ended().code == 0
    until(lambda: gone(scope))


def test_a_limit_of_one_process_is_enough_to_be_born(scope: Scope, one: Bundle) -> None:
    path = run(one, scope, "sleep", "1000", resources={"pids": {"limit": 1}})
    assert Path(path, "pids.max").read_text() == "1\n"


def test_limits_survive_a_reload(scope: Scope, one: Bundle) -> None:
    """systemd then writes all it knows anew, and knows whole percents of a CPU: never less than was granted."""
    path = run(one, scope, "sleep", "1000")
    for _ in range(2):
        reload()
        systemd.set_properties(scope, [("CPUWeight", ("t", 59))])
        assert cgroup.mismatches(path, cgroup2.writes(RESOURCES)) == [("cpu.max", "12345 50000", "12500 50000")]


def test_a_real_container_keeps_its_devices_over_a_reload(scope: Scope, one: Bundle) -> None:
    script = "mknod /tmp/kmsg c 1 11; while :; do cat /tmp/kmsg; head -c1 /dev/zero | wc -c; sleep 0.1; done 2>&1"
    run(one, scope, "sh", "-c", script)
    for _ in range(3):
        reload()
        seen = len(one.lines())
        until(lambda: len(one.lines()) > seen + 3)  # noqa: B023
    said = {text for _, _, text in one.lines()}
    assert said == {"cat: can't open '/tmp/kmsg': Operation not permitted", "1"}


@pytest.mark.parametrize("after", ["", "reload"])
@pytest.mark.parametrize(("ours", "theirs", "zero", "kmsg"), [
    (None, [NULL, ZERO], True, False),  # systemd alone
    ([NULL, ZERO], [NULL, ZERO], True, False),  # one list, both programs
    ([NULL, ZERO, KMSG], [NULL, ZERO], True, False),  # systemd's is the narrower one
    ([NULL], [NULL, ZERO], False, False),  # ours is
    ([{"allow": True}, {**KMSG, "allow": False}], [{"allow": True}, {**KMSG, "allow": False}], True, False),  # a cut
    ([{"allow": True}], [{"allow": True}], True, True),
])  # fmt: skip
def test_both_device_programs_hold(  # noqa: PLR0917
    scope: Scope, after: str, ours: list[Json] | None, theirs: list[Json], zero: bool, kmsg: bool
) -> None:
    with begin(scope, {}, theirs) as holder:
        if ours is not None:
            attach(holder.path, ours)
        if after:
            reload()
        found = [opened(holder.path, f"/dev/{name}") for name in ("null", "zero", "kmsg")]
        assert found == [True, zero, kmsg] if ours is not None or not kmsg else found[:2] == [True, zero]


def test_a_cut_is_left_to_our_program(scope: Scope) -> None:
    """The control of the test above: systemd alone has no word for it."""
    with begin(scope, {}, [{"allow": True}, {**KMSG, "allow": False}]) as holder:
        assert opened(holder.path, "/dev/kmsg")
        attach(holder.path, [{"allow": True}, {**KMSG, "allow": False}])
        assert not opened(holder.path, "/dev/kmsg")
        assert opened(holder.path, "/dev/zero")


def test_any_major_and_minor_may_be_ruled(scope: Scope) -> None:
    """No rule that the spec's schema takes keeps systemd from starting the unit."""
    odd = [
        {"allow": True, "type": "c", "major": 2**32 - 1, "minor": 0},
        {"allow": True, "type": "b", "minor": 3},
        {"allow": True, "type": "b", "major": 259},
        {"allow": True, "type": "c", "major": 0, "minor": 2**31, "access": "m"},
        NULL,
    ]
    with begin(scope, {}, odd) as holder:
        assert opened(holder.path, "/dev/null")
        assert not opened(holder.path, "/dev/zero")


def test_an_update_reaches_unit_and_kernel(scope: Scope, one: Bundle) -> None:
    path = run(one, scope, "sleep", "1000")
    writes = cgroup2.writes({"memory": {"limit": 128 * MIB}, "pids": {"limit": 30}, "cpu": {"quota": 70000}})
    systemd.set_properties(scope, words.properties(writes, [KMSG]))
    assert cgroup.mismatches(path, writes) == []
    shown = show(scope.unit, "MemoryMax", "TasksMax", "DeviceAllow")
    assert shown == {"MemoryMax": str(128 * MIB), "TasksMax": "30", "DeviceAllow": "/dev/char/1:11 rwm"}
    reload()
    assert cgroup.mismatches(path, writes) == []


def test_an_update_leaves_an_exact_quota(scope: Scope, one: Bundle) -> None:
    path = run(one, scope, "sleep", "1000")
    systemd.set_properties(scope, [("MemoryMax", ("t", 128 * MIB))], path=path)
    assert Path(path, "cpu.max").read_text() == "12345 50000\n"
    assert Path(path, "memory.max").read_text() == f"{128 * MIB}\n"


def test_a_unit_that_is_not_there_is_said_so(scope: Scope) -> None:
    systemd.stop(scope)
    with pytest.raises(WherryError, match=scope.unit) as caught:
        systemd.set_properties(scope, [("TasksMax", ("t", 5))])
    assert caught.value.kind is Kind.NOT_FOUND


def test_a_name_is_taken_once(scope: Scope) -> None:
    with begin(scope, {}):
        with pytest.raises(WherryError, match=f"{scope.unit}.*already") as caught:
            begin(scope, {})
        assert caught.value.kind is Kind.EXISTS
        assert show(scope.unit, "ActiveState") == {"ActiveState": "active"}


def test_a_name_is_free_at_once(scope: Scope) -> None:
    for _ in range(20):
        begin(scope, {}).release()
        begin(scope, {}).release()
        systemd.stop(scope)


def test_a_property_that_systemd_refuses_leaves_nothing(scope: Scope) -> None:
    with pytest.raises(WherryError, match="Gravity") as caught:
        systemd.start(scope, [("Gravity", ("b", False))], facts.measure())
    assert caught.value.kind is Kind.UNSUPPORTED
    assert gone(scope)
    assert holders() == []


def test_a_failed_start_leaves_no_unit(scope: Scope, one: Bundle) -> None:
    with pytest.raises(WherryError, match="no such file"):
        run(one, scope, "/nope")
    assert gone(scope)
    assert holders() == []


def test_a_killed_caller_leaves_no_unit(scope: Scope) -> None:
    pid = os.fork()
    if not pid:
        begin(scope, RESOURCES)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: gone(scope))


def test_a_killed_holder_is_an_error_of_the_start(scope: Scope) -> None:
    holder = begin(scope, RESOURCES)
    (pid,) = cgroup.processes(holder.path)
    os.kill(pid, 9)
    until(lambda: gone(scope))
    with pytest.raises(WherryError, match=f"{scope.unit} was killed"):
        holder.release()
    holder.release()


def test_stop_takes_what_will_not_go(scope: Scope, one: Bundle) -> None:
    run(one, scope, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    before = time.monotonic()
    systemd.stop(scope)
    assert time.monotonic() - before < 10
    assert gone(scope)
    assert one.launched is not None
    assert not process.alive(one.launched.init)


def test_a_paused_container_stays_so_and_can_be_stopped(scope: Scope, one: Bundle) -> None:
    path = run(one, scope, "sleep", "1000")
    cgroup.freeze(path)
    reload()
    systemd.set_properties(scope, [("CPUWeight", ("t", 59))])
    assert cgroup.events(path)["frozen"] == 1
    systemd.stop(scope)
    assert gone(scope)


def test_the_bus_does_as_well(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd's own socket is not to be had."""
    if not os.path.exists(BUS):
        pytest.skip("no D-Bus daemon in this boot")
    monkeypatch.setattr(Manager, "addresses", lambda _: [(f"unix:path={BUS}", True)])
    with begin(scope, RESOURCES) as holder:
        assert Path(holder.path, "memory.max").read_text() == f"{64 * MIB}\n"
    systemd.stop(scope)
    assert gone(scope)


def test_annotations_reach_the_unit(scope: Scope) -> None:
    given = words.annotated({
        "org.systemd.property.TimeoutStopSec": "uint32 7", "org.systemd.property.SendSIGHUP": "true",
    })  # fmt: skip
    with systemd.start(scope, given, facts.measure()):
        assert show(scope.unit, "TimeoutStopUSec", "SendSIGHUP") == {"TimeoutStopUSec": "7s", "SendSIGHUP": "yes"}


# ---- a user's own instance

NOBODY = 65534
#: as that user: make a scope, show it, go through its end
AS_USER = """
import os, sys, time
from wherry.container import systemd
from wherry.kernel import facts
from wherry.oci import systemd as words
own = systemd.Manager(user=True, env=os.environ)
assert systemd.available(own)
scope = words.scope("", sys.argv[1], user=True)
with systemd.start(scope, [("MemoryMax", ("t", 1 << 26))], facts.measure(), manager=own) as holder:
    print(holder.path, open(holder.path + "/memory.max").read().strip(), os.access(holder.path, os.W_OK))
    os.mkdir(holder.path + "/below")
systemd.stop(scope, own)
print(os.path.exists(holder.path))
"""


@pytest.fixture(scope="module")
def user_instance() -> Iterator[dict[str, str]]:
    """systemd --user of a user without rights; the environment that names it."""
    unit = f"user@{NOBODY}.service"
    done = subprocess.run(["systemctl", "start", unit], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no instance of systemd for a user here: {done.stderr.strip()}")
    for found in (Path(sys.executable), Path(sys.executable).resolve(), Path(systemd.__file__)):
        for folder in found.parents:  # the guest's root is thrown away: nothing is opened on the host
            folder.chmod(folder.stat().st_mode | 0o555)
    yield {"XDG_RUNTIME_DIR": f"/run/user/{NOBODY}", "PATH": os.environ["PATH"]}
    subprocess.run(["systemctl", "stop", unit, f"user-runtime-dir@{NOBODY}.service"], check=True)


@pytest.mark.parametrize("through", ["socket", "bus", "user namespace"])
def test_a_users_own_instance(user_instance: dict[str, str], test_id: str, through: str) -> None:
    script = AS_USER
    if through == "bus":
        path = f"{user_instance['XDG_RUNTIME_DIR']}/bus"
        if not os.path.exists(path):
            pytest.skip("no D-Bus daemon for users here: dbus-user-session")
        address = f"unix:path={path}"
        script = script.replace("assert", f"systemd.Manager.addresses = lambda _: [({address!r}, True)]\nassert", 1)
    command = [sys.executable, "-c", script, test_id]
    if through == "user namespace":
        command = ["unshare", "--user", "--map-root-user", *command]
    done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], env=user_instance, cwd="/",
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = f"/sys/fs/cgroup/user.slice/user-{NOBODY}.slice/user@{NOBODY}.service/user.slice/wherry-{test_id}.scope"
    assert done.stdout.splitlines() == [f"{where} {64 * MIB} True", "False"]
