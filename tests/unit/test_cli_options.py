"""The table of flags to RunOptions: every flag lands, contradictions are found before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import quick
from wherry.cli.app import App, Command, Stdio
from wherry.cli.clicks import Switch, Verb, option, switches_spelled_out
from wherry.cli.commands.run import create, options_of, run
from wherry.cli.options import ATTACHED_FLAGS, RUN_FLAGS
from wherry.errors import WherryError
from wherry.model import (
    Attachment,
    HealthCheck,
    Limits,
    LogConfig,
    MountRequest,
    PortMapping,
    RestartPolicy,
    RunOptions,
)


def parsed(
    *argv: str, env: dict[str, str] | None = None, cwd: str = "/cwd", command: Command = run
) -> RunOptions:
    """What click makes of the line; what `quick` makes of it must be the same."""
    app = App(env or {}, Stdio.process(), cwd)
    context = Verb(command).make_context("run", list(argv), obj=app)
    line = quick.read([command.name, *argv])
    assert line is not None, f"not plain: {argv}"
    assert line.command is command
    assert dict(line.values) == context.params
    return options_of(app, context.params)


def test_nothing_given_is_nothing_set() -> None:
    assert parsed("alpine") == RunOptions("alpine")


def test_the_command_keeps_its_own_flags() -> None:
    found = parsed("-it", "alpine", "ls", "-l", "--rm", "--", "-x")
    assert (found.interactive, found.tty, found.remove) == (True, True, False)
    assert found.command == ("ls", "-l", "--rm", "--", "-x")


ONE_FLAG: list[tuple[str, str, Any]] = [
    ("-i", "interactive", True),
    ("--interactive=false", "interactive", False),
    ("-t=true", "tty", True),
    ("-d", "detach", True),
    ("--rm", "remove", True),
    ("--name web1", "name", "web1"),
    ("-p 8080:80 -p 53:53/udp", "ports", (PortMapping(80, 8080), PortMapping(53, 53, "udp"))),
    ("-P", "publish_all", True),
    ("-v /a:/b -v c1:/d", "mounts", (MountRequest("bind", "/b", "/a", (), True), MountRequest("volume", "/d", "c1"))),
    ("-v ./a:/b", "mounts", (MountRequest("bind", "/b", "/cwd/a", (), True),)),
    ("--mount type=bind,src=../x,dst=/y", "mounts", (MountRequest("bind", "/y", "/x"),)),
    ("--volumes-from web:ro", "volumes_from", ("web:ro",)),
    ("-e A=1 --env B", "env", ("A=1", "B=from-env")),
    ("-w /srv", "workdir", "/srv"),
    ("-u 1000:1000", "user", "1000:1000"),
    ("--group-add audio", "group_add", ("audio",)),
    ("--entrypoint sh", "entrypoint", ("sh",)),
    ("--entrypoint=", "entrypoint", ("",)),
    ("--network back", "network", (Attachment("back"),)),
    ("--net host", "network", (Attachment("host"),)),
    (
        "--network a1 --network name=b1,ip=10.0.0.2",
        "network",
        (Attachment("a1"), Attachment("b1", (), "10.0.0.2", "", "eth1")),
    ),
    ("--network a1 --ip 10.0.0.3 --network-alias x", "network", (Attachment("a1", ("x",), "10.0.0.3"),)),
    ("--network a1 --ip6 fd00::3", "network", (Attachment("a1", ip6="fd00::3"),)),
    ("--network a1:ip=10.0.0.2,mac=02:00:00:00:00:01", "network",
     (Attachment("a1", (), "10.0.0.2", "02:00:00:00:00:01"),)),
    ("--ip 10.88.0.3", "network", (Attachment("bridge", (), "10.88.0.3"),)),
    ("--restart on-failure:3", "restart", RestartPolicy("on-failure", 3)),
    ("-m 64m", "limits", Limits(memory=64 << 20)),
    ("-m64m", "limits", Limits(memory=64 << 20)),
    ("--memory=64m --memory-swap -1", "limits", Limits(memory=64 << 20, memory_swap=-1)),
    ("--memory-reservation 1m", "limits", Limits(memory_reservation=1 << 20)),
    ("--cpus 1.5 -c 512", "limits", Limits(cpus=1.5, cpu_shares=512)),
    ("--cpuset-cpus 0-1 --cpuset-mems 0", "limits", Limits(cpuset_cpus="0-1", cpuset_mems="0")),
    ("--pids-limit 50", "limits", Limits(pids=50)),
    ("--device /dev/fuse", "devices", ("/dev/fuse:/dev/fuse:rwm",)),
    ("--cap-add NET_ADMIN --cap-drop ALL", "cap_drop", ("ALL",)),
    ("--security-opt seccomp=p.json", "security_opt", ("seccomp=/cwd/p.json",)),
    ("--security-opt seccomp=unconfined", "security_opt", ("seccomp=unconfined",)),
    ("--privileged", "privileged", True),
    ("--read-only", "read_only", True),
    ("--tmpfs /run:size=1m", "mounts", (MountRequest("tmpfs", "/run", "", ("size=1048576",)),)),
    ("--shm-size 64m", "shm_size", 64 << 20),
    ("--ulimit nofile=10", "ulimits", ("nofile=10:10",)),
    ("--init", "init", True),
    ("--platform linux/arm64", "platform", "linux/arm64"),
    ("--pull always", "pull", "always"),
    ("-l a=b --label c", "labels", {"a": "b", "c": ""}),
    ("--annotation a=b", "annotations", {"a": "b"}),
    ("--add-host db:10.0.0.1", "add_host", ("db:10.0.0.1",)),
    ("--dns 1.1.1.1 --dns-search x.y --dns-option ndots:2", "dns", ("1.1.1.1",)),
    ("-h box", "hostname", "box"),
    ("--domainname x.y", "domainname", "x.y"),
    ("--stop-signal int", "stop_signal", "SIGINT"),
    ("--stop-timeout 0", "stop_timeout", 0),
    ("--log-driver none", "log", LogConfig("none")),
    ("--log-opt max-size=1m", "log", LogConfig("", {"max-size": "1m"})),
    (
        "--health-cmd true --health-interval 5s --health-retries 2",
        "health",
        HealthCheck(("CMD-SHELL", "true"), interval=5.0, retries=2),
    ),
    ("--no-healthcheck", "no_healthcheck", True),
    ("--sysctl net.ipv4.ip_forward=1", "sysctls", {"net.ipv4.ip_forward": "1"}),
    ("--ipc host", "ipc", "host"),
    ("--pid host", "pid", "host"),
    ("--uts host", "uts", "host"),
    ("--userns auto", "userns", "auto"),
    ("--cgroupns host", "cgroupns", "host"),
    ("--cgroup-parent /x", "cgroup_parent", "/x"),
    ("--cidfile id", "cidfile", "/cwd/id"),
    ("--oom-score-adj -500", "oom_score_adj", -500),
    ("--expose 80-81", "expose", ("80/tcp", "81/tcp")),
    ("-a stdin -a STDOUT", "attach", ("stdin", "stdout")),
    ("--profile strict", "profile", "strict"),
]


@pytest.mark.parametrize(("flags", "name", "value"), ONE_FLAG, ids=lambda v: v if isinstance(v, str) else "")
def test_each_flag_lands_in_its_field(flags: str, name: str, value: Any) -> None:
    found = parsed(*flags.split(), "alpine", env={"B": "from-env"})
    assert getattr(found, name) == value


def test_every_flag_of_the_table_is_tried_above() -> None:
    tried = {word.partition("=")[0] for flags, _, _ in ONE_FLAG for word in flags.split() if word.startswith("-")}
    tried = {word[:2] if len(word) > 2 and word[1] != "-" else word for word in tried}
    elsewhere = {"--env-file", "--label-file", "--detach-keys", "--sig-proxy", "--explain", "--quiet", "--mac-address"}
    elsewhere |= {"--link"}  # refused
    elsewhere |= {"--health-timeout", "--health-start-period", "--health-start-interval"}
    missing = [flag.names for flag in (*RUN_FLAGS, *ATTACHED_FLAGS) if not set(flag.names) & (tried | elsewhere)]
    assert not missing


def test_files_come_before_flags(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\n# no\nC\nHOME_NOT_SET\n")
    (tmp_path / "labels").write_text("x=1\ny\n")
    argv = ("-e", "A=flag", "--env-file", "env", "--label-file", "labels", "--label", "x=2", "alpine")
    found = parsed(*argv, env={"C": "mine"}, cwd=str(tmp_path))
    assert found.env == ("A=file", "C=mine", "A=flag")
    assert found.labels == {"x": "2", "y": ""}


CONTRADICTIONS = [
    ("--rm --restart always", "--restart"),
    ("-d -a stdout", "--attach"),
    ("--no-healthcheck --health-cmd true", "--no-healthcheck"),
    ("--network host --network back", "no other network"),
    ("--network none --ip 10.0.0.1", "no address"),
    ("--network back --network back", "twice"),
    ("--link web", "links are not built"),
    ("-v /a:/x --tmpfs /x", "/x"),
    ("--memory-swap 1g", "--memory"),
    ("-m 2g --memory-swap 1g", "--memory-swap"),
    ("--uts host -h box", "--hostname"),
    ("--uts container:db --domainname box", "--domainname"),
    ("--privileged --profile strict", "--privileged"),
]


@pytest.mark.parametrize(("flags", "says"), CONTRADICTIONS)
def test_contradictions_are_one_clear_sentence(flags: str, says: str) -> None:
    with pytest.raises(WherryError) as caught:
        parsed(*flags.split(), "alpine")
    assert says in caught.value.message
    assert caught.value.hint


def test_unknown_flags_are_clicks_error() -> None:
    for flag in ("--gpus", "--nope", "-Z"):
        with pytest.raises(click.UsageError):
            parsed(flag, "all", "alpine")
    with pytest.raises(click.UsageError):
        parsed("-d", "alpine", command=create)  # create has no -d


def test_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(WherryError, match=r"nothing\.env"):
        parsed("--env-file", "nothing.env", "alpine", cwd=str(tmp_path))


SWITCHES = [Switch(["-i", "--interactive", "interactive"]), Switch(["-t", "--tty", "tty"])]
OPTIONS = [*SWITCHES, click.Option(["-v", "--volume", "volume"]), click.Option(["-p", "--publish", "publish"])]
SPELLED = [
    (["-it"], ["--interactive=true", "--tty=true"]),
    (["-itv", "a:b", "x"], ["--interactive=true", "--tty=true", "-v", "a:b", "x"]),
    (["-itva:b"], ["--interactive=true", "--tty=true", "-va:b"]),
    (["-t=false", "-p=80"], ["--tty=false", "-p80"]),
    (["--tty", "x", "-i"], ["--tty=true", "x", "-i"]),
    (["-v", "-i", "--tty"], ["-v", "-i", "--tty=true"]),
    (["--volume=-i", "--", "-t"], ["--volume=-i", "--", "-t"]),
    (["-z", "-t"], ["-z", "--tty=true"]),
    (["-"], ["-"]),
]


@pytest.mark.parametrize(("given_args", "spelled"), SPELLED)
def test_switches_are_spelled_out(given_args: list[str], spelled: list[str]) -> None:
    assert switches_spelled_out(given_args, OPTIONS, interspersed=False) == spelled


@given(st.lists(st.text(alphabet="-itvpx=a ", max_size=6), max_size=6))
def test_spelling_out_never_fails_and_keeps_what_follows_the_first_argument(args: list[str]) -> None:
    out = switches_spelled_out(args, OPTIONS, interspersed=False)
    assert switches_spelled_out(["image", *args], OPTIONS, interspersed=False) == ["image", *args]
    assert len(out) >= len([a for a in args if not a.startswith("-")])


@given(st.lists(st.sampled_from([flag for flag in RUN_FLAGS if flag.parser is None]), unique_by=lambda f: f.key))
def test_switches_parse_in_any_order(flags: list[Any]) -> None:
    command = click.Command("x", params=[option(f) for f in RUN_FLAGS])
    args = switches_spelled_out(
        [f.names[-1] for f in flags], [p for p in command.params if isinstance(p, click.Option)], True
    )
    found = command.make_context("x", args).params
    assert {f.key for f in RUN_FLAGS if f.parser is None and found[f.key]} == {f.key for f in flags}


@given(st.lists(st.sampled_from([
    "-it", "-d", "--rm", "-dit", "-e", "A=1", "--name", "x1", "-p8080:80", "--label=a=b", "--init=false", "-i=false",
    "--", "-", "img", "ls", "-l", "--help", "--nope", "-z", "", "--rm=maybe", "-v", "/a:/b", "-m", "64m", "--memory=",
]), max_size=8))
def test_the_quick_reader_and_click_agree(argv: list[str]) -> None:
    """Where the quick reader understands a line, click reads the same values; what click refuses, it leaves alone."""
    line = quick.read(["run", *argv])
    try:
        found = Verb(run).make_context("run", list(argv), obj=App({}, Stdio.process(), "/")).params
    except (click.UsageError, click.exceptions.Exit, WherryError):
        found = None
    assert line is None or found == dict(line.values)
