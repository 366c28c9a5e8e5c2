"""The engine's pure parts: who wins, what is refused, what the words are."""

from __future__ import annotations

import pytest

from wherry.engine import codec, filters, health, limits, listing, mounts, names, restart, security, specgen, users
from wherry.engine.records import Life
from wherry.errors import Kind, WherryError
from wherry.model import (
    Attachment,
    HealthCheck,
    ImageConfig,
    Limits,
    MountRequest,
    PortMapping,
    RestartPolicy,
    RunOptions,
)
from wherry.oci.facts import HostFacts

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/srv:/bin/sh\nlost:x:70:70\n1000:x:5:5::/five:/bin/sh\n"
GROUP = b"root:x:0:root\nweb:x:34:\nadm:x:4:web,root\nbig:x:99999999999:web\n"


@pytest.mark.parametrize(
    ("spec", "extra", "expected"),
    [
        ("", (), (0, 0, (0, 4), "/root")),
        ("web", (), (33, 34, (34, 4), "/srv")),
        ("web:adm", (), (33, 4, (4,), "/srv")),
        ("33", (), (33, 34, (34, 4), "/srv")),
        ("1000", (), (1000, 0, (0,), "/")),  # digits are a uid, never the user of that name
        ("7:8", ("adm", "9"), (7, 8, (8, 4, 9), "/")),
    ],
)
def test_users(spec: str, extra: tuple[str, ...], expected: tuple[int, int, tuple[int, ...], str]) -> None:
    found = users.resolve(spec, extra, PASSWD, GROUP)
    assert (found.uid, found.gid, found.groups, found.home) == expected


@pytest.mark.parametrize(
    "spec", ["nobody", "2147483648", "-1", "99999999999999", "web:nogroup", "0:4294967296", "+5000000000"]
)
def test_users_refused(spec: str) -> None:
    with pytest.raises(WherryError) as error:
        users.resolve(spec, (), PASSWD, GROUP)
    assert error.value.code == 126


def test_names() -> None:
    assert len(names.mint()) == 64
    assert names.check("/web.1") == "web.1"
    left, _, right = names.automatic().partition("_")
    assert left
    assert right
    for bad in ("", "a", "-a", "a b", "a/b", "a\n", "x" * 129):
        with pytest.raises(WherryError):
            names.check(bad)


def test_capabilities() -> None:
    full = (1 << 41) - 1
    assert len(security.capabilities(RunOptions(""), full)) == 14
    assert security.capabilities(RunOptions("", cap_drop=("ALL",), cap_add=("net_admin",)), full) == ("CAP_NET_ADMIN",)
    assert "CAP_CHOWN" not in security.capabilities(RunOptions("", cap_drop=("chown",)), full)
    assert len(security.capabilities(RunOptions("", cap_add=("ALL",)), full)) == 41
    assert len(security.capabilities(RunOptions("", privileged=True), full & ~(1 << 24))) == 40
    assert len(security.capabilities(RunOptions("", profile="strict"), full)) == 9
    with pytest.raises(WherryError, match="unknown capability"):
        security.capabilities(RunOptions("", cap_add=("EVERYTHING",)), full)
    with pytest.raises(WherryError) as error:
        security.capabilities(RunOptions("", cap_add=("SYS_RESOURCE",)), full & ~(1 << 24))
    assert error.value.kind is Kind.PRECONDITION


def test_security_options() -> None:
    found = security.parse(
        RunOptions("", security_opt=("no-new-privileges", "seccomp=unconfined", "unmask=/proc/acpi"))
    )
    assert found.no_new_privileges
    assert found.seccomp == "unconfined"
    assert found.unmask == ("/proc/acpi",)
    assert security.parse(RunOptions("", privileged=True)).open_paths
    assert security.parse(RunOptions("", profile="strict")).no_new_privileges
    for bad in ("what=1", "seccomp", "no-new-privileges=maybe", "systempaths=x", "mask=relative"):
        with pytest.raises(WherryError):
            security.parse(RunOptions("", security_opt=(bad,)))


def test_restart_policy() -> None:
    always, failure = RestartPolicy("always"), RestartPolicy("on-failure", 2)
    assert restart.wanted(always, Life(code=0))
    assert not restart.wanted(always, Life(code=0, stopped=True))
    assert not restart.wanted(RestartPolicy(), Life(code=1))
    assert restart.wanted(failure, Life(code=1, restarts=1))
    assert not restart.wanted(failure, Life(code=1, restarts=2))
    assert not restart.wanted(failure, Life(code=0))
    delays, life = [], Life(started=1, finished=2)
    for _ in range(12):
        life = Life(started=1, finished=2, delay=restart.delay(life))
        delays.append(life.delay)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60
    assert restart.delay(Life(started=1, finished=12, delay=60)) == 0.1
    for bad in (RestartPolicy("maybe"), RestartPolicy("always", 3), RestartPolicy("on-failure", -1)):
        with pytest.raises(WherryError):
            restart.check(bad, False)
    with pytest.raises(WherryError):
        restart.check(always, True)


def test_limits_of_a_missing_controller() -> None:
    hybrid = HostFacts(cgroup_available=("hugetlb",), cgroup_holders={"memory": "cgroup v1 at /x"})
    with pytest.raises(WherryError) as error:
        limits.check(Limits(memory=1 << 30), hybrid)
    assert error.value.kind is Kind.PRECONDITION
    assert "memory" in error.value.message
    assert "/x" in error.value.message
    assert error.value.hint
    assert limits.resources(Limits(), hybrid, 2048) == {}
    assert limits.degraded(Limits(), hybrid, 2048) == ("pids",)


def test_limits_as_docker_converts_them() -> None:
    found = limits.resources(Limits(memory=64 << 20, cpus=1.5, cpuset_cpus="0-1"), HostFacts(), 2048)
    assert found["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert found["cpu"] == {"quota": 150000, "period": 100000, "cpus": "0-1"}
    assert found["pids"] == {"limit": 2048}
    mega = 64 << 20
    for bad in (Limits(memory=1 << 20), Limits(memory_swap=1), Limits(memory=mega, memory_swap=mega - 1),
                Limits(cpus=0.001), Limits(cpuset_cpus="all"),
                Limits(memory=mega, memory_reservation=mega + 1)):  # fmt: skip
        with pytest.raises(WherryError):
            limits.check(bad, HostFacts())


def test_mounts_merge_and_order() -> None:
    options = RunOptions(
        "", mounts=(MountRequest("bind", "/a/b/", "/src", ("ro",)), MountRequest("tmpfs", "/v", "", ("size=1m",)))
    )
    found = mounts.collect(options, ("/v", "/w"), [mounts.Resolved("volume", "/w", name="shared")])
    assert [(m.kind, m.target, m.name) for m in found] == [
        ("tmpfs", "/v", ""),
        ("volume", "/w", "shared"),
        ("bind", "/a/b", ""),
    ]
    assert mounts.oci(found[2])["options"] == ["rbind", "nodev", "nosuid", "rprivate", "ro"]
    assert mounts.oci(found[0])["options"] == ["noexec", "nosuid", "nodev", "size=1m"]
    assert mounts.from_row(mounts.inspect_row(found[2])) == mounts.Resolved("bind", "/a/b", "/src", options=("ro",))
    loose = mounts.Resolved("bind", "/d", "/dev", options=("dev", "suid", "rshared"))
    assert mounts.oci(loose)["options"] == ["rbind", "rshared"]


@pytest.mark.parametrize(
    "request_",
    [MountRequest("bind", "rel", "/s"), MountRequest("bind", "/", "/s"), MountRequest("bind", "/x", "rel"),
     MountRequest("bind", "/x", "/s", ("wat",)), MountRequest("bind", "/x", "/s", ("size=1",)),
     MountRequest("odd", "/x")],
)  # fmt: skip
def test_mounts_refused(request_: MountRequest) -> None:
    with pytest.raises(WherryError) as error:
        mounts.collect(RunOptions("", mounts=(request_,)), (), ())
    assert error.value.kind is Kind.INVALID


def test_two_mounts_on_one_target() -> None:
    twice = (MountRequest("tmpfs", "/x"), MountRequest("tmpfs", "/x/"))
    with pytest.raises(WherryError, match="duplicate mount point"):
        mounts.collect(RunOptions("", mounts=twice), (), ())


def test_codec_round_trip() -> None:
    options = RunOptions(
        "img", ("a", "b"), entrypoint=(), network=(Attachment("n", ("x",)),), ports=(PortMapping(80, 8080),),
        limits=Limits(cpus=0.5), restart=RestartPolicy("always"), health=HealthCheck(("CMD", "x"), 1.5),
        labels={"k": "v"}, mounts=(MountRequest("tmpfs", "/t", "", ("size=1",)),),
    )  # fmt: skip
    assert codec.decode_options(codec.encode(options)) == options
    image = ImageConfig(env=("A=1",), labels={"a": "b"}, healthcheck={"Test": ["NONE"]})
    assert codec.decode_image(codec.encode(image)) == image


def test_command_line_and_environment() -> None:
    image = ImageConfig(entrypoint=("entry",), cmd=("arg",), env=("PATH=/x", "A=image", "B=image"))
    assert specgen.argv(RunOptions(""), image) == ("entry", "arg")
    assert specgen.argv(RunOptions("", ("mine",)), image) == ("entry", "mine")
    assert specgen.argv(RunOptions("", ("mine",), entrypoint=("other",)), image) == ("other", "mine")
    with pytest.raises(WherryError, match="no command"):
        specgen.argv(RunOptions("", entrypoint=("",)), image)
    found = specgen.environment(RunOptions("", env=("A=asked", "B"), tty=True), image, "host", users.User(home="/h"))
    assert found == ["PATH=/x", "HOSTNAME=host", "TERM=xterm", "A=asked", "HOME=/h"]


def test_ulimits() -> None:
    assert specgen.asked_rlimits(RunOptions("", ulimits=("nofile=1:2", "core=-1"))) == ("RLIMIT_NOFILE", "RLIMIT_CORE")
    for bad in ("nofile", "what=1", "nofile=x", "nofile=2:1"):
        with pytest.raises(WherryError):
            specgen.asked_rlimits(RunOptions("", ulimits=(bad,)))


def test_health_judgement() -> None:
    spec = health.settings(RunOptions("", health=HealthCheck(("CMD", "x"), retries=2, start_period=10)), ImageConfig())
    assert spec is not None
    assert spec["interval"] == 30
    state = {"Status": "starting", "FailingStreak": 0, "started": 100.0}
    assert health.judge(spec, state, 1, 105)["FailingStreak"] == 0
    once = health.judge(spec, state, 1, 111)
    assert (once["Status"], once["FailingStreak"]) == ("starting", 1)
    assert health.judge(spec, once, 1, 112)["Status"] == "unhealthy"
    assert health.judge(spec, once, 0, 112)["Status"] == "healthy"
    inherited = health.settings(
        RunOptions(""), ImageConfig(healthcheck={"Test": ["CMD", "y"], "Interval": 2_000_000_000})
    )
    assert inherited is not None
    assert inherited["interval"] == 2
    assert health.settings(RunOptions("", no_healthcheck=True), ImageConfig(healthcheck={"Test": ["CMD", "y"]})) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (61, "About a minute"), (600, "10 minutes"),
     (3700, "About an hour"), (10000, "3 hours"), (90 * 3600, "3 days"), (20 * 86400, "2 weeks")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert listing.duration(seconds) == words


def test_filters() -> None:
    assert filters.labels(["a", "b=1"], {"a": "x", "b": "1"})
    assert not filters.labels(["b=2"], {"b": "1"})
    assert filters.named(["^we"], "web")
    with pytest.raises(WherryError):
        filters.named(["("], "web")
    with pytest.raises(WherryError):
        filters.check({"odd": ["1"]}, ["name"])
