"""What -d and -o of volumes ask for, and --mount's volume keys: values and sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import parse
from wherry.engine import mounts, voloptions
from wherry.engine.voloptions import OWN, Request
from wherry.errors import Kind, WherryError
from wherry.model import MountRequest, RunOptions


@pytest.mark.parametrize(
    ("driver", "options", "wanted"),
    [
        ("local", {}, None),
        ("local", {"type": "none", "o": "bind", "device": "/srv"}, None),
        ("local", {"size": "2G"}, Request(OWN, 2 << 30)),
        ("local", {"size": "64m", "fs": "xfs", "backend": "image", "pool": "fast"},
         Request(OWN, 64 << 20, "xfs", parameters={"backend": "image", "pool": "fast"})),
        (OWN, {"size": "1", "access": "block", "provisioning": "thick"},
         Request(OWN, 1, access="block", parameters={"provisioning": "thick"})),
        ("local", {"size": "1g", "read-bps": "10m", "write-iops": "500"},
         Request(OWN, 1 << 30, mutable={"readBps": str(10 << 20), "writeIops": "500"})),
        ("/run/x.sock", {}, Request("unix:///run/x.sock")),
        ("unix:///run/x.sock", {"size": "1G", "server": "nas", "read-bps": "as it likes"},
         Request("unix:///run/x.sock", 1 << 30, parameters={"server": "nas", "read-bps": "as it likes"})),
    ],
)  # fmt: skip
def test_requests(driver: str, options: dict[str, str], wanted: Request | None) -> None:
    assert voloptions.read(driver, options) == wanted


@pytest.mark.parametrize(
    ("driver", "options", "kind", "said"),
    [
        ("nfs", {}, Kind.NOT_FOUND, '"nfs" is not there'),
        ("unix://run/x.sock", {}, Kind.INVALID, "no endpoint"),
        ("unix:///run/../x.sock", {}, Kind.INVALID, "no endpoint"),
        ("/run/x\0.sock", {}, Kind.INVALID, "no endpoint"),
        ("local", {"fs": "xfs"}, Kind.INVALID, "needs a size"),
        (OWN, {}, Kind.INVALID, "needs a size"),
        ("local", {"size": "2G", "device": "/srv"}, Kind.INVALID, '"device" does not go with'),
        ("local", {"size": "2G", "colour": "red"}, Kind.INVALID, '"colour" is unknown'),
        ("local", {"size": "2G", "fs": "ntfs"}, Kind.INVALID, 'invalid fs="ntfs"'),
        ("local", {"size": "2G", "fs": "xfs", "access": "block"}, Kind.INVALID, "no file system"),
        ("local", {"size": "much"}, Kind.INVALID, 'invalid size="much"'),
        ("local", {"size": "0"}, Kind.INVALID, 'invalid size="0"'),
        ("local", {"size": "-1g"}, Kind.INVALID, "invalid size"),
        ("local", {"size": "9999999999e"}, Kind.INVALID, "invalid size"),
        ("local", {"size": "١g"}, Kind.INVALID, "invalid size"),
        ("local", {"size": "1g", "write-iops": "1k"}, Kind.INVALID, "invalid write-iops"),
        ("local", {"size": "1g", "read-bps": "0"}, Kind.INVALID, "invalid read-bps"),
        ("/x.sock", {"access": "tape"}, Kind.INVALID, 'invalid access="tape"'),
    ],
)
def test_refusals(driver: str, options: dict[str, str], kind: Kind, said: str) -> None:
    with pytest.raises(WherryError) as error:
        voloptions.read(driver, options)
    assert error.value.kind is kind
    assert said in error.value.message
    assert error.value.hint


@given(st.text(), st.dictionaries(st.sampled_from(["size", "fs", "access", "pool", "read-bps", "o", "x"]), st.text()))
def test_any_text_gives_a_request_or_a_sentence(driver: str, options: dict[str, str]) -> None:
    for name in (driver, "local", OWN, "/x.sock"):
        found: Request | WherryError | None
        try:
            found = voloptions.read(name, options)
        except WherryError as error:
            found = error
        refused = isinstance(found, WherryError) and found.kind in (Kind.INVALID, Kind.NOT_FOUND)
        assert refused or found is None or (isinstance(found, Request) and found.size >= 0)


def test_sizes_are_docker_s() -> None:
    for text in ("512", "64k", "10m", "1.5g", "2t", "3GiB", "7 mb"):
        assert voloptions.size(text) == parse.size("--size", text)


def test_limits_in_the_words_of_the_runtime_spec() -> None:
    found = voloptions.limits({"size": "1g", "read-bps": "1m", "write-iops": "7"})
    assert found == {"throttleReadBpsDevice": 1 << 20, "throttleWriteIOPSDevice": 7}


def test_mount_s_keys() -> None:
    text = "type=volume,src=db,dst=/db,volume-driver=local,volume-opt=size=2G,volume-opt=fs=xfs,ro"
    found = parse.mount("--mount", text)
    assert found == MountRequest("volume", "/db", "db", ("ro",), driver="local",
                                 driver_options=(("size", "2G"), ("fs", "xfs")))  # fmt: skip
    (resolved,) = mounts.collect(RunOptions("x", mounts=(found,)), (), ())
    assert (resolved.driver, dict(resolved.driver_options)) == ("local", {"size": "2G", "fs": "xfs"})
    for wrong in ("type=bind,src=/a,dst=/b,volume-opt=size=1", "dst=/b,volume-opt=size", "dst=/b,volume-opt",
                  "type=tmpfs,dst=/b,volume-driver=local"):  # fmt: skip
        with pytest.raises(WherryError):
            parse.mount("--mount", wrong)
    with pytest.raises(WherryError) as error:
        mounts.collect(RunOptions("x", mounts=(found._replace(driver="nfs"),)), (), ())
    assert error.value.kind is Kind.NOT_FOUND


def test_a_row_keeps_who_serves_the_volume() -> None:
    mount = mounts.Resolved("volume", "/db", "/run/x", "db", driver=OWN)
    row = mounts.inspect_row(mount)
    assert row["Driver"] == OWN
    assert mounts.from_row(row).served
    del row["Driver"]  # of a container made before volumes had drivers
    assert not mounts.from_row(row).served
