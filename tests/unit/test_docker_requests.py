"""docker's body of a create and an update, as what the engine is asked."""

from __future__ import annotations

import pytest

from wherry.daemon.docker import links, requests
from wherry.errors import Kind, WherryError
from wherry.model import Attachment, HealthCheck, Json, Limits, MountRequest, PortMapping, RestartPolicy, RunOptions


def made(host: Json | None = None, **config: object) -> RunOptions:
    return requests.create({"Image": "x", **config, **({"HostConfig": host} if host is not None else {})}, "", "")


def refused(kind: Kind, host: Json | None = None, **config: object) -> str:
    with pytest.raises(WherryError) as caught:
        made(host, **config)
    assert caught.value.kind is kind
    return caught.value.message


def test_what_the_docker_cli_sends_for_nothing_asks_for_nothing() -> None:
    idle = {"Binds": None, "NetworkMode": "default", "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "MemorySwappiness": -1, "OomKillDisable": False, "Links": None, "BlkioDeviceReadBps": [], "Isolation": "",
            "ConsoleSize": [0, 0], "ShmSize": 0, "PidsLimit": 0, "LogConfig": {"Type": "", "Config": {}},
            "MaskedPaths": None, "ReadonlyPaths": None}  # fmt: skip
    asked = made(idle, AttachStdout=True, AttachStderr=True, Cmd=["a"], Volumes={}, OnBuild=None, Labels={})
    assert asked == RunOptions("x", ("a",), attach=("stdout", "stderr"), pull="never")


def test_words() -> None:
    assert made(Cmd="a b", Entrypoint=["e"]).command == ("a b",)
    assert made(Entrypoint=[""]).entrypoint == ("",)
    assert made(Entrypoint=None).entrypoint is None
    assert made(Env=["A=1", "B"]).env == ("A=1",)
    assert requests.create({"Image": "x"}, "/one", "linux/amd64").name == "one"
    assert made().detach
    assert not made(AttachStdin=True).detach


def test_ports() -> None:
    host = {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": ""}],
                             "53/udp": None, "90": [{"HostPort": "9000-9010"}]}}  # fmt: skip
    assert made(host).ports == (
        PortMapping(80, 8080, "tcp", "127.0.0.1"), PortMapping(80), PortMapping(53, 0, "udp"),
        PortMapping(90, 9000, "tcp", "", 9010),
    )  # fmt: skip
    assert refused(Kind.INVALID, {"PortBindings": {"80/tcp": [{"HostPort": "99999"}]}}) == "invalid host port: '99999'"


def test_mounts() -> None:
    host = {
        "Binds": ["/a:/b:ro,z", "vol:/c"],
        "Mounts": [
            {"Type": "bind", "Source": "/d", "Target": "/e", "ReadOnly": True,
             "BindOptions": {"Propagation": "rslave"}},
            {"Type": "volume", "Source": "v", "Target": "/f", "VolumeOptions": {"NoCopy": True}},
            {"Type": "tmpfs", "Target": "/g", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 0o1770}},
        ],
        "Tmpfs": {"/h": "size=1m,noexec"},
    }  # fmt: skip
    assert made(host, Volumes={"/i": {}, "/b": {}}).mounts == (
        MountRequest("bind", "/b", "/a", ("ro", "z"), create_source=True), MountRequest("volume", "/c", "vol"),
        MountRequest("bind", "/e", "/d", ("rslave", "ro")), MountRequest("volume", "/f", "v", ("nocopy",)),
        MountRequest("tmpfs", "/g", options=("size=65536", "mode=1770")),
        MountRequest("tmpfs", "/h", options=("size=1m", "noexec")), MountRequest("volume", "/i"),
    )  # fmt: skip
    assert "Duplicate mount point: /b" in refused(Kind.INVALID, {"Binds": ["/a:/b", "/c:/b"]})
    assert "npipe" in refused(Kind.INVALID, {"Mounts": [{"Type": "npipe", "Target": "/x"}]})


def test_networks() -> None:
    ends = {"EndpointsConfig": {"one": {"Aliases": ["a"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}}, "two": None}}
    found = made({"NetworkMode": "one"}, NetworkingConfig=ends, MacAddress="02:00:00:00:00:01").network
    first = Attachment("one", ("a",), "10.0.0.2", "02:00:00:00:00:01", "eth0")
    assert found == (first, Attachment("two", interface="eth1"))
    assert made({"NetworkMode": "host"}, NetworkingConfig={"EndpointsConfig": {"host": {}}}).network == (
        Attachment("host"),
    )
    assert made({"NetworkMode": "default"}, NetworkingConfig={"EndpointsConfig": {"default": {}}}).network == (
        Attachment("bridge"),
    )
    assert made(NetworkDisabled=True).network == (Attachment("none"),)


def test_limits_and_health() -> None:
    host = {"Memory": 1 << 26, "MemorySwap": -1, "NanoCpus": 1_500_000_000, "PidsLimit": -1, "CpusetCpus": "0"}
    assert made(host).limits == Limits(1 << 26, None, -1, 1.5, None, "0", None, -1)
    assert made({"CpuQuota": 50_000}).limits.cpus == 0.5
    assert made({"CpuQuota": -1}).limits.cpus is None
    refused(Kind.INVALID, {"CpuQuota": 50_000, "NanoCpus": 1})
    refused(Kind.INVALID, {"Memory": -1})
    second = 1_000_000_000
    check = {"Test": ["CMD", "a"], "Interval": second, "Retries": 3}
    assert made(Healthcheck=check).health == HealthCheck(("CMD", "a"), 1.0, retries=3)
    assert made(Healthcheck={"Test": ["NONE"]}).no_healthcheck
    refused(Kind.INVALID, Healthcheck={"Interval": 1})


def test_security_and_devices() -> None:
    host = {"SecurityOpt": ["no-new-privileges", "label:disable", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'],
            "MaskedPaths": [], "ReadonlyPaths": [], "Devices": [{"PathOnHost": "/dev/null"}],
            "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["v.com/gpu=0"]}],
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}]}  # fmt: skip
    asked = made(host)
    assert asked.security_opt == (
        "no-new-privileges", "label=disable", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}', "systempaths=unconfined",
    )  # fmt: skip
    assert asked.devices == ("/dev/null:/dev/null:rwm", "v.com/gpu=0")
    assert asked.ulimits == ("nofile=10:20",)


@pytest.mark.parametrize(
    ("key", "value"),
    [("Cgroup", "x"), ("MemorySwappiness", 10), ("Runtime", "runc"), ("StorageOpt", {"size": "1"}),
     ("DeviceCgroupRules", ["c 1:1 rwm"]), ("OomKillDisable", True)],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(key: str, value: object) -> None:
    assert refused(Kind.UNSUPPORTED, {key: value}) == f"HostConfig.{key} is not supported by wherry"


@pytest.mark.parametrize(
    ("config", "said"),
    [({"Cmd": 1}, "Cmd must be a list, not int"), ({"Env": [1]}, "Env must be a text, not int"),
     ({"Tty": "yes"}, "Tty must be true or false, not str"), ({"Labels": []}, "Labels must be an object, not list"),
     ({"HostConfig": {"ShmSize": 1 << 70}}, "HostConfig.ShmSize is no number of 64 bits"),
     ({"Image": ""}, "no image specified: Config.Image is empty"),
     ({"HostConfig": []}, "HostConfig must be an object, not list")],
)  # fmt: skip
def test_wrong_types_are_named(config: Json, said: str) -> None:
    with pytest.raises(WherryError) as caught:
        requests.create({"Image": "x", **config}, "", "")
    assert (caught.value.kind, caught.value.message) == (Kind.INVALID, said)


def test_links_are_told_once() -> None:
    ends = {"EndpointsConfig": {"n": {"Links": ["one:a", "one:b"]}}}
    body: Json = {"Image": "x", "HostConfig": {"Links": ["one:a"]}, "NetworkingConfig": ends}
    assert links.asked(body) == ["one:a", "one:b"]


def test_update() -> None:
    found = requests.update({"Memory": 1 << 26, "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}})
    assert found == requests.Update(Limits(memory=1 << 26), RestartPolicy("on-failure", 2))
    assert requests.update({}) == requests.Update(Limits(), None)
