"""How the CSI driver is configured: flags, csi.toml, environment, and the sentences of what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wherry_csi.config import DEFAULT_ENDPOINT, Config, ConfigError, PoolConfig, make, size
from wherry_csi.main import main, parser


def made(flags: dict[str, Any] | None = None, file: str | None = None, env: dict[str, str] | None = None,
         pools: tuple[str, ...] = ("/srv/a",)) -> Config:  # fmt: skip
    return make(flags or {}, file, env or {}, "node-1", pools)


def test_flags_are_enough() -> None:
    config = made({"idle": 30.0, "endpoint": None}, pools=("/srv/a/", "fast=/mnt/nvme"))
    listed = (PoolConfig("a", "/srv/a"), PoolConfig("fast", "/mnt/nvme"))
    assert config == Config(DEFAULT_ENDPOINT, "node-1", listed, 30.0)
    assert config.socket == "/run/wherry/csi.sock"


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "csi.toml"
    file.write_text(
        'endpoint = "unix:///run/x.sock"\nnode_id = "n"\nidle = 5\nspec = "1.11"\n'
        '[[pool]]\npath = "/srv/a"\nmount = true\nreserve = "10GiB"\n'
        '[[pool]]\nname = "b"\npath = "/srv/b"\nbackend = "image"\noverprovision = 2\n'
    )
    config = make({"node_id": "flag"}, str(file), {"CSI_ENDPOINT": "unix:///env.sock"}, "host")
    assert (config.endpoint, config.node_id, config.idle, config.spec) == ("unix:///run/x.sock", "flag", 5, "1.11")
    assert config.pools == (
        PoolConfig("a", "/srv/a", True, reserve=10 << 30),
        PoolConfig("b", "/srv/b", backend="image", overprovision=2.0),
    )


def test_pools_of_flags_take_the_place_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "csi.toml"
    file.write_text('node_id = "n"\n[[pool]]\npath = "/srv/a"\n')
    config = made(file=str(file), pools=("/srv/b",))
    assert config.node_id == "n"
    assert [pool.name for pool in config.pools] == ["b"]


def test_the_environment_of_the_spec() -> None:
    assert made(env={"CSI_ENDPOINT": "unix:///csi/csi.sock"}).socket == "/csi/csi.sock"
    assert made({"endpoint": "unix:/x.sock"}, env={"CSI_ENDPOINT": "unix:///csi/csi.sock"}).socket == "/x.sock"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pol = 1", "did you mean 'pool'"),
        ("[[pool]]\nnmae = 'x'\npath='/a'", "did you mean 'name'"),
        ("[[pool]]\nname = 'x'", "has no path"),
        ("[[pool]]\npath = 'srv'", "not absolute"),
        ("[[pool]]\npath = '/a'\nbackend = 'lvm'", "not one of"),
        ("[[pool]]\npath = '/a'\nreserve = '1 ton'", "no size"),
        ("[[pool]]\npath = '/a'\noverprovision = 0.5", "less than 1"),
        ("[[pool]]\npath = '/a'\nmount = 1", "wrong type"),
        ("[[pool]]\npath = '/a'\n[[pool]]\nname = 'A'\npath = '/b'", "two pools have the name"),
        ("[[pool]]\npath = '/a/b'\n[[pool]]\nname='x'\npath = '/a//b'", "two pools have the path"),
        ("pool = 5", "wrong type"),
        ("idle = true", "wrong type"),
        ("idle = -1\n[[pool]]\npath='/a'", "not negative"),
        ("endpoint = 'tcp://1.2.3.4:5'\n[[pool]]\npath='/a'", "no unix socket"),
        ("endpoint = 'csi.sock'\n[[pool]]\npath='/a'", "not absolute"),
        ("endpoint = 'unix:///" + "x" * 120 + "'\n[[pool]]\npath='/a'", "longer"),
        ("node_id = '-'\n[[pool]]\npath='/a'", "topology value"),
        ("spec = '2.0'\n[[pool]]\npath='/a'", "not one of"),
        ("= 1", "not TOML"),
        ("", "no pool is named"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "csi.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        make({}, str(file), {}, "node-1")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        made(file=str(tmp_path / "none.toml"))


@pytest.mark.parametrize("text", ["/", "..=/a", "a b=/a", "x=relative", "=/a", "-=/a"])
def test_pools_of_flags_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        made(pools=(text,))


@pytest.mark.parametrize(
    ("text", "bytes_"), [(5, 5), ("5", 5), ("1k", 1024), ("2 MiB", 2 << 20), ("3GB", 3 << 30), ("1t", 1 << 40)]
)
def test_sizes(text: int | str, bytes_: int) -> None:
    assert size(text) == bytes_


def test_the_program_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pool", "relative"], {}) == 1
    assert re.fullmatch(r"wherry-csi: pool relative: path 'relative' is not absolute\n", capsys.readouterr().err)


def test_serve_is_what_it_does_without_a_command() -> None:
    flags = ["--endpoint", "unix:///x.sock", "--node-id", "n", "--pool", "/a", "--idle", "3"]
    assert vars(parser().parse_args(["serve", *flags]))["idle"] == 3
