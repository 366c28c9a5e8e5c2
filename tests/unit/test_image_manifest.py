"""Documents of images: agreement of media types, platforms, configs; challenges and who may see credentials."""

from __future__ import annotations

import base64
import io
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.image import manifest as m
from wherry.image.auth import Credentials, credentials_for, parse_challenges, realm_trusted
from wherry.image.inflate import inflate
from wherry.image.snapshot import Snapshotter, check_place, layer_path
from wherry.image.transport import is_loopback, origin_of
from wherry.image.unpack import LayerLimits
from wherry.model import Descriptor, Platform

SHA = "sha256:" + "a" * 64
BLOB = {"mediaType": m.OCI_TAR_GZIP, "digest": SHA, "size": 3}
MANIFEST = {"schemaVersion": 2, "config": {**BLOB, "mediaType": m.OCI_CONFIG}, "layers": [BLOB]}
INDEX = {"schemaVersion": 2, "manifests": []}


@pytest.mark.parametrize(("document", "declared", "expected"), [
    (MANIFEST, [], m.OCI_MANIFEST),
    (MANIFEST, [m.OCI_MANIFEST + "; charset=utf-8"], m.OCI_MANIFEST),
    (MANIFEST, ["application/json", ""], m.OCI_MANIFEST),
    ({**MANIFEST, "mediaType": m.DOCKER_MANIFEST}, [m.DOCKER_MANIFEST], m.DOCKER_MANIFEST),
    (INDEX, [m.DOCKER_INDEX, m.DOCKER_INDEX], m.DOCKER_INDEX),
])  # fmt: skip
def test_agreed_media_types(document, declared, expected):
    assert m.agreed_type(document, declared, "x") == expected


@pytest.mark.parametrize(
    ("document", "declared"),
    [
        (MANIFEST, [m.OCI_INDEX]),
        (INDEX, [m.OCI_MANIFEST]),
        ({**MANIFEST, **INDEX}, []),
        ({"schemaVersion": 2}, []),
        ({**MANIFEST, "mediaType": m.OCI_MANIFEST}, [m.DOCKER_MANIFEST]),
        (MANIFEST, ["text/html"]),
        ({**MANIFEST, "schemaVersion": 3}, []),
        ({**MANIFEST, "schemaVersion": 1}, []),
        ({**MANIFEST, "mediaType": m.OCI_INDEX}, []),
    ],
)
def test_disagreeing_media_types_are_refused(document, declared):
    with pytest.raises(WherryError):
        m.agreed_type(document, declared, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../etc/passwd"},
        {"digest": "md5:" + "a" * 32},
        {"digest": 5},
        {"size": -1},
        {"size": "3"},
        {"size": True},
        {"size": 1 << 60},
        {"mediaType": 4},
        {"annotations": {"a": 1}},
        {"mediaType": "application/x-tar"},
    ],
)
def test_bad_layers_are_refused(change):
    with pytest.raises(WherryError):
        m.parse_manifest({**MANIFEST, "layers": [{**BLOB, **change}]}, m.OCI_MANIFEST, "x")


def at(os: str, architecture: str, variant: str = "") -> Descriptor:
    return Descriptor(
        m.OCI_MANIFEST, SHA, 1, {"at": f"{os}/{architecture}/{variant}"}, Platform(os, architecture, variant)
    )


@pytest.mark.parametrize(("wanted", "offered", "expected"), [
    ("arm/v7", ["arm/v5", "arm/v6", "arm/v7"], "arm/v7"), ("arm/v7", ["arm/v5", "arm/v6"], "arm/v6"),
    ("arm/v6", ["arm/v7", "arm/v5"], "arm/v5"), ("arm64", ["arm64/v8"], "arm64/v8"), ("arm64/v8", ["arm64/"], "arm64/"),
    ("amd64", ["amd64/"], "amd64/"), ("amd64/v3", ["amd64/v2", "amd64/"], "amd64/v2"), ("amd64", ["amd64/v3"], None),
    ("arm/v6", ["arm/v7"], None), ("amd64", ["arm64/v8"], None), ("amd64", ["unknown/"], None),
])  # fmt: skip
def test_variant_fallback(wanted, offered, expected):
    candidates = [at("linux", *name.split("/")) for name in offered]
    platform = m.parse_platform(f"linux/{wanted}")
    if expected is None:
        with pytest.raises(WherryError):
            m.choose(candidates, platform, "x")
    else:
        assert m.choose(candidates, platform, "x").annotations["at"] == f"linux/{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64", "v8")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("LINUX/AARCH64", Platform("linux", "arm64", "v8")),
    ],
)
def test_platform_texts(text, expected):
    assert m.parse_platform(text) == expected


@pytest.mark.parametrize("text", ["a/b/c/d", "linux/", "/amd64", "linux/a b", "linux/amd64/"])
def test_bad_platform_texts(text):
    with pytest.raises(WherryError):
        m.parse_platform(text)


def test_configs():
    config = m.parse_config(
        {
            "os": "linux",
            "architecture": "amd64",
            "created": "2024-05-06T07:08:09.5Z",
            "config": {
                "Entrypoint": "one",
                "Cmd": None,
                "Env": ["A=1"],
                "Volumes": {"/v": {}},
                "ExposedPorts": {"80/tcp": {}},
                "User": "7",
                "Labels": {"a": "b"},
            },
            "rootfs": {"diff_ids": [SHA]},
            "history": [{"x": 1}, 5],
        },
        "x",
    )
    assert (config.entrypoint, config.cmd, config.volumes, config.exposed) == (("one",), (), ("/v",), ("80/tcp",))
    assert (config.user, config.diff_ids, config.history) == ("7", (SHA,), ({"x": 1},))
    assert m.created_time(config.created) == 1714979289.5
    assert m.created_time("yesterday") == m.created_time("") == 0


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config",
                    "layers",
                    "rootfs",
                    "diff_ids",
                    "digest",
                    "size",
                    "Env",
                    "Labels",
                    "manifests",
                    "mediaType",
                    "schemaVersion",
                    "history",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(json_value)
def test_any_json_is_a_document_or_a_clear_error(value):
    data = json.dumps(value).encode()
    kinds = set()
    for parse in (
        lambda d: m.parse_config(d, "x"),
        lambda d: m.parse_manifest(d, m.OCI_MANIFEST, "x"),
        lambda d: m.parse_index(d, "x"),
        lambda d: m.agreed_type(d, [], "x"),
    ):
        try:
            parse(m.parse_document(data, 1 << 20, "x"))
        except WherryError as error:
            kinds.add(error.kind)
    assert kinds <= {Kind.INVALID, Kind.UNSUPPORTED}


def test_documents_have_a_limit():
    with pytest.raises(WherryError, match="larger than"):
        m.parse_document(b" " * 100 + b"{}", 50, "x")
    with pytest.raises(WherryError, match="not JSON"):
        m.parse_document(b"[" * 200000, 1 << 20, "x")


# ---- credentials


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a:pull",
                    },
                )
            ],
        ),
        ('Basic realm="a \\"b\\", c"', [("basic", {"realm": 'a "b", c'})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (
            'Bearer realm="r" , error="invalid_token", Basic realm="b"',
            [("bearer", {"realm": "r", "error": "invalid_token"}), ("basic", {"realm": "b"})],
        ),
        ("", []),
    ],
)
def test_challenges(header, expected):
    assert [(one.scheme, dict(one.parameters)) for one in parse_challenges(header)] == expected


@given(st.text(max_size=200))
def test_challenges_of_any_text_end(text):
    parse_challenges(text)


@pytest.mark.parametrize(
    ("registry", "realm", "trusted"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("ghcr.io", "ghcr.io", True),
        ("registry.gitlab.com", "gitlab.com", True),
        ("registry-1.docker.io", "docker.io.evil.com", False),
        ("registry-1.docker.io", "evil.io", False),
        ("a.co.uk", "b.co.uk", False),
        ("r.a.co.uk", "auth.a.co.uk", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.1", "9.0.0.1", False),
        ("localhost", "evil", False),
        ("127.0.0.1", "localhost", False),
        ("::1", "::1", True),
    ],
)
def test_realms(registry, realm, trusted):
    assert realm_trusted(registry, realm) is trusted


def test_credentials_of_dockers_config(tmp_path):
    auth = base64.b64encode(b"anna:a:b").decode()
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "auths": {
                    "https://index.docker.io/v1/": {"auth": auth},
                    "host:5000": {"username": "u", "password": "p"},
                    "https://old.example/v2/": {"auth": auth},
                    "idp.example": {"identitytoken": "tok"},
                    "pod.example/ns": {"auth": auth},
                }
            }
        )
    )
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    assert credentials_for("docker.io", environment) == Credentials("anna", "a:b")
    assert credentials_for("host:5000", environment) == Credentials("u", "p")
    assert credentials_for("old.example", environment) == Credentials("anna", "a:b")
    assert credentials_for("idp.example", environment) == Credentials("<token>", "tok", identity=True)
    assert credentials_for("pod.example", environment) is None
    assert credentials_for("host", environment) is None
    assert "a:b" not in repr(credentials_for("docker.io", environment))
    assert credentials_for("x", {"DOCKER_CONFIG": str(tmp_path / "none")}) is None


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"auths":{"x":{"auth":"!!"}}}', '{"credsStore":"../../bin/sh"}', '{"credsStore":"no-such-one"}'],
)
def test_bad_docker_configs_are_said(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WherryError):
        credentials_for("x", {"DOCKER_CONFIG": str(tmp_path), "PATH": "/nowhere"})


def test_origins_and_loopback():
    assert origin_of("https://A.example/x") == ("https", "a.example", 443) == origin_of("https://user@a.example:443/y")
    assert origin_of("https://a:99999999/") == ("https", "a", 0)
    assert [
        is_loopback(host)
        for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "128.0.0.1", "127.0.0.1.evil.com", "")
    ] == [True] * 4 + [False] * 3


# ---- streams and places


@given(st.binary(max_size=3000), st.integers(0, 3000))
def test_inflate_gives_back_what_was_packed(data, cut):
    packer = zlib.compressobj(wbits=31)
    one = packer.compress(data[:cut]) + packer.flush()
    packer = zlib.compressobj(wbits=31)
    two = packer.compress(data[cut:]) + packer.flush()
    assert b"".join(inflate(io.BytesIO(one + two))) == data
    for length in range(0, len(one), max(1, len(one) // 5)):
        if length > 4:
            with pytest.raises((EOFError, zlib.error)):
                b"".join(inflate(io.BytesIO(one[:length])))


def test_limits():
    limits = LayerLimits(total=1000, ratio=10, free=50)
    assert [limits.bytes_for(n) for n in (1, 10, 1000)] == [50, 100, 1000]


@pytest.mark.parametrize("root", ["relative", "/a:b", "/a,b", "/a\\b", "/a\nb"])
def test_roots_that_overlay_cannot_carry(root):
    with pytest.raises(WherryError) as caught:
        check_place(root)
    assert "--root" in caught.value.hint


@pytest.mark.parametrize("key", ["", "A", "a/b", "..", "a" * 65, "a_b", "a\n"])
def test_keys_are_minted_not_given(tmp_path, key):
    for call in (
        Snapshotter(str(tmp_path)).upper,
        Snapshotter(str(tmp_path)).remove,
        lambda k: Snapshotter(str(tmp_path)).prepare(k, []),
    ):
        with pytest.raises(WherryError) as caught:
            call(key)
        assert caught.value.kind is Kind.INVALID


def test_layer_paths_are_made_of_digests_only():
    with pytest.raises(WherryError):
        layer_path("/x", "sha256:../../etc")
    assert layer_path("/x", SHA) == "/x/layers/" + "a" * 64


def test_snapshots_without_root(tmp_path):
    snapshots = Snapshotter(str(tmp_path / "r"))
    (mount,) = snapshots.prepare("one", [])
    assert mount.type == "overlay"
    assert mount.options[0] == f"lowerdir={tmp_path}/r/mountpoints"
    (tmp_path / "r/snapshots/one/upper/dir").mkdir()
    (tmp_path / "r/snapshots/one/upper/dir/f").write_text("x" * 5000)
    assert snapshots.usage("one") == (sum(p.lstat().st_blocks * 512 for p in [tmp_path / "r/snapshots/one/upper",
                                      *(tmp_path / "r/snapshots/one/upper").rglob("*")]), 3)  # fmt: skip
    assert list(snapshots.diff("one")) == [("A", "/dir"), ("A", "/dir/f")]
    with pytest.raises(WherryError, match="exists already"):
        snapshots.prepare("one", [])
    with pytest.raises(WherryError, match="not unpacked"):
        snapshots.prepare("two", [SHA])
    snapshots.remove("one")
    snapshots.remove("one")
    assert snapshots.keys() == []
    assert [p.name for p in (tmp_path / "r/snapshots").iterdir()] == []


def test_a_tree_deeper_than_any_path_is_counted_and_removed(tmp_path):
    import os

    snapshots = Snapshotter(str(tmp_path / "r"))
    snapshots.prepare("deep", [])
    fd = os.open(snapshots.upper("deep"), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 10, dir_fd=fd)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert snapshots.usage("deep")[1] == 3001
    snapshots.remove("deep")
    assert list((tmp_path / "r/snapshots").iterdir()) == []
