"""The value parsers: docker's grammar, and an error that teaches for everything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wherry.cli import parse
from wherry.cli.options import ATTACHED_FLAGS, RUN_FLAGS
from wherry.errors import Kind, WherryError
from wherry.model import Attachment, MountRequest, PortMapping, RestartPolicy

GOOD: list[tuple[Any, str, Any]] = [
    (parse.size, "10m", 10 << 20),
    (parse.size, "1.5g", int(1.5 * (1 << 30))),
    (parse.size, "512", 512),
    (parse.size, "64KiB", 64 << 10),
    (parse.size, "2 GB", 2 << 30),
    (parse.size, "7b", 7),
    (parse.bytes_or_unlimited, "-1", -1),
    (parse.cpus, "1.5", 1.5),
    (parse.cpus, ".5", 0.5),
    (parse.cpuset, "0-3,7", "0-3,7"),
    (parse.duration, "1h2m3s", 3723.0),
    (parse.duration, "1.5s", 1.5),
    (parse.duration, "300ms", 0.3),
    (parse.duration, "0", 0.0),
    (parse.boolean, "T", True),
    (parse.boolean, "0", False),
    (parse.name, "web_1.a-b", "web_1.a-b"),
    (parse.hostname, "a.b-c", "a.b-c"),
    (parse.signal_name, "term", "SIGTERM"),
    (parse.signal_name, "SIGUSR1", "SIGUSR1"),
    (parse.signal_name, "9", "9"),
    (parse.signal_name, "RTMIN+3", "SIGRTMIN+3"),
    (parse.platform, "linux/arm/v7", "linux/arm/v7"),
    (parse.key_value, "a", ("a", "")),
    (parse.key_value, "a=b=c", ("a", "b=c")),
    (parse.restart, "on-failure:5", RestartPolicy("on-failure", 5)),
    (parse.restart, "unless-stopped", RestartPolicy("unless-stopped")),
    (parse.security, "no-new-privileges", "no-new-privileges=true"),
    (parse.security, "no-new-privileges:false", "no-new-privileges=false"),
    (parse.security, "seccomp:unconfined", "seccomp=unconfined"),
    (parse.security, "label=type:x_t", "label=type:x_t"),
    (parse.detach_keys, "ctrl-p,ctrl-q", b"\x10\x11"),
    (parse.detach_keys, "a,ctrl-@,ctrl-[", b"a\x00\x1b"),
    (parse.detach_keys, "", b""),
    (parse.publish, "80", (PortMapping(80),)),
    (parse.publish, "8080:80", (PortMapping(80, 8080),)),
    (parse.publish, "127.0.0.1:53:5353/udp", (PortMapping(5353, 53, "udp", "127.0.0.1"),)),
    (parse.publish, "127.0.0.1::80", (PortMapping(80, 0, "tcp", "127.0.0.1"),)),
    (parse.publish, "[::1]:80:80", (PortMapping(80, 80, "tcp", "::1"),)),
    (parse.publish, "8000-8002:80-82", tuple(PortMapping(80 + n, 8000 + n) for n in range(3))),
    (parse.publish, "8000-8010:80", (PortMapping(80, 8000, host_port_end=8010),)),
    (parse.publish, "0:80", (PortMapping(80, 0),)),
    (parse.expose, "80-81/udp", ("80/udp", "81/udp")),
    (parse.add_host, "db:10.0.0.1", "db:10.0.0.1"),
    (parse.add_host, "db=[::1]", "db:::1"),
    (parse.add_host, "up:host-gateway", "up:host-gateway"),
    (parse.mac, "02:42:AC:11:00:02", "02:42:ac:11:00:02"),
    (parse.cidr, "10.90.0.0/24", "10.90.0.0/24"),
    (parse.network, "back", Attachment("back")),
    (parse.network, "container:web", Attachment("container:web")),
    (parse.network, "name=back,alias=a,alias=b,ip=10.0.0.9", Attachment("back", ("a", "b"), "10.0.0.9")),
    (parse.network, "back:ip6=fd00::9,driver-opt=a=b=c,gw-priority=-3",
     Attachment("back", ip6="fd00::9", options={"a": "b=c"}, priority=-3)),
    (parse.network, "name=back,ip=10.0.0.9,ip6=fd00::9", Attachment("back", (), "10.0.0.9", ip6="fd00::9")),
    (parse.named_ip, "router=10.0.0.1", ("router", "10.0.0.1")),
    (parse.named_ip, "10.0.0.1", ("10.0.0.1", "10.0.0.1")),
    (parse.volume, "/data", MountRequest("volume", "/data")),
    (parse.volume, "data:/data:ro", MountRequest("volume", "/data", "data", ("ro",))),
    (parse.volume, "/src:/dst/", MountRequest("bind", "/dst", "/src", (), True)),
    (parse.volume, "./x:/dst:ro,Z", MountRequest("bind", "/dst", "./x", ("ro", "Z"), True)),
    (parse.volume, "/a:/b:cached", MountRequest("bind", "/b", "/a", (), True)),
    (parse.mount, "type=bind,src=/a,dst=/b,readonly", MountRequest("bind", "/b", "/a", ("ro",))),
    (parse.mount, "type=bind,source=/a,target=/b,ro=false", MountRequest("bind", "/b", "/a")),
    (parse.mount, "source=data,target=/b,volume-nocopy", MountRequest("volume", "/b", "data", ("nocopy",))),
    (parse.mount, "target=/b", MountRequest("volume", "/b")),
    (parse.mount, 'type=bind,"src=/a,b",dst=/c', MountRequest("bind", "/c", "/a,b")),
    (
        parse.mount,
        "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777",
        MountRequest("tmpfs", "/t", "", ("size=1048576", "mode=1777")),
    ),
    (
        parse.tmpfs,
        "/run:size=64k,mode=755,noexec",
        MountRequest("tmpfs", "/run", "", ("size=65536", "mode=755", "noexec")),
    ),
    (parse.tmpfs, "/run", MountRequest("tmpfs", "/run")),
    (parse.device, "/dev/fuse", "/dev/fuse:/dev/fuse:rwm"),
    (parse.device, "/dev/a:/dev/b", "/dev/a:/dev/b:rwm"),
    (parse.device, "/dev/a:r", "/dev/a:/dev/a:r"),
    (parse.device, "nvidia.com/gpu=all", "nvidia.com/gpu=all"),
    (parse.ulimit, "nofile=1024:2048", "nofile=1024:2048"),
    (parse.ulimit, "core=-1", "core=-1:-1"),
    (parse.ulimit, "nproc=10", "nproc=10:10"),
]


@pytest.mark.parametrize(("parser", "text", "value"), GOOD, ids=lambda v: v if isinstance(v, str) else "")
def test_good_values(parser: Any, text: str, value: Any) -> None:
    assert parser("--flag", text) == value


BAD: list[tuple[Any, str]] = [
    *((parse.size, t) for t in ("", "x", "10x", "-1", "1e3", "1..5g", "٣")),
    *((parse.cpus, t) for t in ("0", "-1", "x", "0.001", "nan", "1e9")),
    *((parse.cpuset, t) for t in ("", "a", "3-1", "1,", "-1")),
    *((parse.duration, t) for t in ("", "10", "5 m", "1x", "-1s", "1h2", "h")),
    *((parse.name, t) for t in ("", "a", "-ab", "a/b", "a b", "ä1")),
    *((parse.hostname, t) for t in ("", "-a", "a..b", "a" * 65)),
    *((parse.signal_name, t) for t in ("", "0", "65", "SIGNOPE", "-9")),
    *((parse.platform, t) for t in ("", "windows/amd64", "linux/arm/v7/x", "Linux")),
    *((parse.restart, t) for t in ("", "sometimes", "always:3", "on-failure:x", "on-failure:")),
    *((parse.security, t) for t in ("", "x=y", "seccomp", "seccomp=", "label=", "no-new-privileges=maybe")),
    *((parse.detach_keys, t) for t in ("ctrl-", "ctrl-1", "ab", "ctrl-p,", "ä")),
    *(
        (parse.publish, t)
        for t in ("", "x", "0", "70000", "80:", "1:2:3:4", "1-3:80-81", "x:80:80", "80/icmp", "[::1", "9-8")
    ),
    *((parse.add_host, t) for t in ("", "a", "a:", ":1.2.3.4", "a:b")),
    *((parse.mac, t) for t in ("", "02:42", "03:00:00:00:00:01")),
    *((parse.network, t) for t in ("", "container:", "name=", "alias=a", "name=a,ip=x", "name=a,speed=1", "name=a,ip",
                                        "a:ip6=10.0.0.1", "a:gw-priority=x", "a:driver-opt=x", ":ip=10.0.0.1")),
    *(
        (parse.volume, t)
        for t in (
            "",
            ":",
            "a:b",
            "/a:/b:zz",
            "/a:/b:ro,rw",
            "a/b:/c",
            "/a:/b:ro:x",
            "/a:/",
            "/a:/b:nocopy",
            "vol:/b:rshared",
        )
    ),
    *(
        (parse.mount, t)
        for t in (
            "",
            "type=bind,dst=/b",
            "type=x,dst=/b",
            "type=bind,src=/a",
            "dst",
            "type=tmpfs,src=/a,dst=/b",
            "type=tmpfs,dst=/b,tmpfs-size=x",
            "src=a b,dst=/c",
            "type=bind,src=/a,dst=b",
            "type=volume,dst=/a,bind-propagation=shared",
            "type=bind,src=/a,dst=/b,bind-propagation=up",
        )
    ),
    *((parse.tmpfs, t) for t in ("", "x", "/", "/a:foo", "/a:size=x", "/a:mode=9", "/a:size")),
    *((parse.device, t) for t in ("", "x", "/dev/a:/dev/b:x", "/dev/a:/b:/c:rwm", "/dev/a:rr", "/dev/a:")),
    *(
        (parse.ulimit, t)
        for t in ("", "nofile", "nofile=", "nofile=2:1", "nofile=-1:5", "x=1", "nofile=1:2:3", "nofile=a")
    ),
    *((parse.cidr, t) for t in ("", "10.0.0.1/24", "x")),
    (parse.mode_of, "9"),
    (parse.stream, "stdwhat"),
    (parse.boolean, "maybe"),
    (parse.key_value, "=x"),
    (parse.required_value, "x"),
    (parse.env_name, ""),
    (parse.env_name, "=x"),
    (parse.env_name, "A=\0"),
    (parse.workdir, "relative"),
    (parse.ip, "1.2.3"),
]


@pytest.mark.parametrize(("parser", "text"), BAD, ids=lambda v: repr(v) if isinstance(v, str) else "")
def test_bad_values_name_the_flag_the_value_and_what_is_allowed(parser: Any, text: str) -> None:
    with pytest.raises(WherryError) as caught:
        parser("--flag", text)
    assert caught.value.kind is Kind.INVALID
    assert "--flag" in caught.value.message
    quoted = caught.value.message.split('"')[1]
    assert quoted in text  # all of it, or the part of it that is wrong
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_moments() -> None:
    now = 1_700_000_000.0
    assert parse.moment("--since", "10m", now) == now - 600
    assert parse.moment("--since", "1136073600.5", now) == 1136073600.5
    assert parse.moment("--since", "2006-01-02T15:04:05.123456789Z", now) == pytest.approx(1136214245.123456)
    assert parse.moment("--since", "2006-01-02T15:04:05+01:00", now) == 1136210645
    assert parse.moment("--since", "2006-01-02", now) == 1136160000
    with pytest.raises(WherryError):
        parse.moment("--since", "yesterday", now)


def test_line_files() -> None:
    text = "# comment\n\nA=1\n  B=two words \r\nC\n"
    assert parse.line_file("--env-file", "f", text) == ["A=1", "B=two words ", "C"]
    with pytest.raises(WherryError, match="line 2"):
        parse.line_file("--env-file", "f", "A=1\nx y=2")


PARSERS = sorted({flag.parser for flag in (*RUN_FLAGS, *ATTACHED_FLAGS) if flag.parser}, key=repr)


@example(parse.mount, "\n0")
@given(st.sampled_from(PARSERS), st.text(max_size=40) | st.from_regex(r"[a-z0-9/:=,.\[\]_-]{0,40}", fullmatch=True))
def test_any_text_gives_a_value_or_a_teaching_error(parser: Any, text: str) -> None:
    failure = None
    try:
        parser("--flag", text)
    except WherryError as error:
        failure = error
    assert failure is None or (failure.kind is Kind.INVALID and failure.hint)


@given(st.integers(0, 1 << 40), st.sampled_from(["", "b", "k", "K", "m", "MB", "g", "GiB", "t"]))
def test_sizes_scale_by_1024(number: int, unit: str) -> None:
    power = "bkmgt".find(unit[:1].lower() or "b")
    assert parse.size("--memory", f"{number}{unit}") == number * 1024**power


@given(st.integers(0, 9999), st.integers(0, 59), st.integers(0, 59))
def test_durations_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse.duration("--t", f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(0, 20), st.sampled_from(["tcp", "udp", "sctp"]))
def test_port_ranges_pair_up(inside: int, outside: int, more: int, protocol: str) -> None:
    inside, outside = min(inside, 65535 - more), min(outside, 65535 - more)
    text = f"{outside}-{outside + more}:{inside}-{inside + more}/{protocol}"
    found = parse.publish("-p", text)
    assert [(p.host_port, p.container_port, p.protocol) for p in found] == [
        (outside + n, inside + n, protocol) for n in range(more + 1)
    ]
