"""Links to `wherry-cni` in a directory of plugins: what is put, replaced, left alone and taken away."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

import wherry_cni.__main__
from wherry.engine import cni
from wherry.errors import Kind, WherryError
from wherry.net import launchers

NAMES = set(launchers.PLUGINS)
FIRST = min(NAMES)  # what is put first


@pytest.fixture
def front(tmp_path: Path) -> str:
    program = tmp_path / "scripts" / "wherry-cni"
    program.parent.mkdir()
    program.touch(0o755)
    return str(program)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    return directory


def links(directory: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in directory.iterdir() if path.is_symlink()}


def test_each_plugin_is_a_link_and_goes_again(plugins: Path, front: str) -> None:
    assert cni.install(str(plugins), front=front) == [str(plugins / name) for name in launchers.PLUGINS]
    assert links(plugins) == dict.fromkeys(NAMES, front)
    assert set(cni.uninstall(str(plugins))) == {str(plugins / name) for name in NAMES}
    assert not list(plugins.iterdir())
    assert cni.uninstall(str(plugins)) == []


def test_an_installation_that_moved_is_replaced(plugins: Path, front: str) -> None:
    (plugins / "bridge").symlink_to("/gone/wherry-cni")
    cni.install(str(plugins), front=front)
    assert links(plugins) == dict.fromkeys(NAMES, front)


@pytest.mark.parametrize("link", [False, True])
def test_a_plugin_of_another_stays_and_nothing_is_put(plugins: Path, front: str, link: bool) -> None:
    theirs = plugins / "portmap"
    theirs.symlink_to("/usr/lib/cni/portmap") if link else theirs.write_text("theirs")
    with pytest.raises(WherryError, match="portmap of another") as refused:
        cni.install(str(plugins), front=front)
    assert refused.value.kind == Kind.CONFLICT
    assert "--force" in refused.value.hint
    assert [path.name for path in plugins.iterdir()] == ["portmap"]
    assert cni.uninstall(str(plugins)) == []
    assert os.path.lexists(theirs)
    cni.install(str(plugins), force=True, front=front)
    assert links(plugins) == dict.fromkeys(NAMES, front)


def test_a_directory_of_that_name_is_never_replaced(plugins: Path, front: str) -> None:
    (plugins / FIRST).mkdir()
    with pytest.raises(WherryError, match=rf"cannot put .*/{FIRST}: Is a directory"):
        cni.install(str(plugins), force=True, front=front)
    assert [path.name for path in plugins.iterdir()] == [FIRST]


@pytest.mark.parametrize("verb", [cni.install, cni.uninstall])
def test_no_directory_is_told(tmp_path: Path, verb: object) -> None:
    assert callable(verb)
    with pytest.raises(WherryError, match="absent is not a directory") as refused:
        verb(str(tmp_path / "absent"))
    assert (refused.value.kind, refused.value.hint) == (Kind.NOT_FOUND, f"mkdir -p {tmp_path}/absent")


def test_a_directory_that_we_may_not_write_to_is_told(front: str) -> None:
    with pytest.raises(WherryError, match=rf"cannot put /sys/kernel/{FIRST}: (Operation not|Permission)") as refused:
        cni.install("/sys/kernel", front=front)
    assert refused.value.kind == Kind.DENIED


def test_without_the_program_there_is_no_link(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(WherryError, match=f"there is no wherry-cni in {tmp_path}"):
        cni.install(str(plugins))
    assert not list(plugins.iterdir())


def test_both_sides_know_the_same_plugins() -> None:
    """They import nothing of each other: each has a list of its own."""
    assert launchers.PLUGINS == wherry_cni.__main__.PLUGINS
