"""Directories of CNI lists: what counts, in which order, and that no change is missed, nor a directory made anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wherry.net import cniconf
from wherry.net.cniconf import Directory
from wherry.net.confwatch import Watch


def conflist(name: str, *types: str, **more: Any) -> str:
    return json.dumps({"cniVersion": "1.1.0", "name": name, "plugins": [{"type": t} for t in types], **more})


def kinds(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {one["name"]: [plugin["type"] for plugin in one["plugins"]] for one in found}


def old(path: Path) -> None:
    """As a file is that nobody has touched for a while: only then its looks are trusted."""
    os.utime(path, ns=(1, 1))


def test_lists_single_plugins_and_the_first_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "20-b.conf").write_text(json.dumps({"cniVersion": "0.3.1", "name": "b", "type": "ptp"}))
    (tmp_path / "10-a.conflist").write_text(conflist("a", "bridge", "portmap"))
    (tmp_path / "30-a.conflist").write_text(conflist("a", "other"))
    (tmp_path / "40-c.txt").write_text(conflist("c", "other"))
    assert kinds(Directory(str(tmp_path)).lists()) == {"a": ["bridge", "portmap"], "b": ["ptp"]}


@pytest.mark.parametrize("only", [True, "true", False])
def test_plugins_beside_a_list_come_after_its_own(tmp_path: Path, only: object) -> None:
    (tmp_path / "net.conflist").write_text(conflist("net", "bridge", loadOnlyInlinedPlugins=only))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "20.conf").write_text('{"type": "tuning"}')
    (tmp_path / "net" / "10.conf").write_text('{"type": "portmap"}')
    (tmp_path / "net" / "30.json").write_text('{"type": "never"}')
    wanted = ["bridge", "portmap", "tuning"] if only is False else ["bridge"]
    assert kinds(Directory(str(tmp_path)).lists()) == {"net": wanted}


def test_a_list_may_have_all_its_plugins_beside_it(tmp_path: Path) -> None:
    (tmp_path / "net.conflist").write_text('{"cniVersion": "1.1.0", "name": "net"}')
    directory = Directory(str(tmp_path))
    assert directory.lists() == []
    assert "lists no plugins" in next(iter(directory.problems().values()))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.conf").write_text('{"type": "bridge"}')
    assert kinds(directory.lists()) == {"net": ["bridge"]}


@pytest.mark.parametrize(("text", "why"), [
    ("{ broken", "not JSON"), ("[]", "not an object"), ('{"cniVersion": "1.0.0", "plugins": []}', "no name"),
    ('{"name": "../x", "plugins": [{"type": "a"}]}', "not a network's name"), ('{"name": "n", "plugins": 5}', "list"),
    ('{"name": "n", "plugins": [{"x": 1}]}', "no type"), ('{"name": "n", "plugins": []}', "no plugins"),
    ('{"name": "n", "plugins": ["a"]}', "no type"), ('{"name": "n", "cniVersion": 1, "type": "a"}', "cniVersion"),
    ('{"name": "n", "plugins": [{"type": "a", "capabilities": []}, {"type": 3}]}', "no type"),
    ('{"name": "n", "plugins": [{"type": "a", "capabilities": ["b"]}]}', "capabilities"), ("[" * 100000, "not JSON"),
])
def test_a_file_that_is_none_is_nobodys_network_and_tells_why(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.conflist").write_text(text)
    (tmp_path / "b.conflist").write_text(conflist("good", "bridge"))
    directory = Directory(str(tmp_path))
    assert [one["name"] for one in directory.lists()] == ["good"]
    ((path, told),) = directory.problems().items()
    assert path.endswith("a.conflist")
    assert why in told


def test_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.conf")
    directory = Directory(str(tmp_path))
    assert directory.lists() == []
    assert list(directory.problems().values()) == ["1.conf is not a file"]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.conflist"
    path.write_text(conflist("net", "bridge"))
    monkeypatch.setattr(cniconf, "_FRESH", -1)
    directory = Directory(str(tmp_path))
    first = directory.lists()
    monkeypatch.setattr(cniconf, "parsed", None)
    assert directory.lists() == first
    monkeypatch.undo()
    path.write_text(conflist("net", "ptp"))
    assert kinds(directory.lists()) == {"net": ["ptp"]}


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    directory, path = Directory(str(tmp_path)), tmp_path / "net.conflist"
    for number in range(200):  # the same inode and size, often the same time
        name = "ab"[number % 2]
        path.write_text(conflist(name, "bridge"))
        assert list(kinds(directory.lists())) == [name]


def test_a_directory_made_anew_is_another_one(tmp_path: Path) -> None:
    where = tmp_path / "net.d"
    directory = Directory(str(where))
    assert directory.lists() == []
    for name in ("a", "b", "c"):
        where.mkdir()
        (where / "net.conflist").write_text(conflist(name, "bridge"))
        old(where / "net.conflist")
        assert list(kinds(directory.lists())) == [name]
        shutil.rmtree(where)
        assert directory.lists() == []


def test_a_watch_hears_of_files_that_come_change_and_go(tmp_path: Path) -> None:
    path = tmp_path / "net.conflist"
    with Watch(Directory(str(tmp_path))) as watch:
        assert not watch.wait(0.05)
        path.write_text(conflist("a", "bridge"))
        assert watch.wait(5)
        path.write_text(conflist("b", "bridge"))
        assert watch.wait(5)
        os.replace(path, tmp_path / "other.conflist")
        assert watch.wait(5)
        assert not watch.wait(0.05)
        (tmp_path / "other.conflist").unlink()
        assert watch.wait(5)


def test_a_watch_outlives_its_directory(tmp_path: Path) -> None:
    """Not there, made with its parents, removed, made again: each time what is put there is heard of."""
    where = tmp_path / "etc" / "cni" / "net.d"
    with Watch(Directory(str(where))) as watch:
        for _ in range(3):
            where.mkdir(parents=True)
            (where / "net.conflist").write_text(conflist("a", "bridge"))
            assert watch.wait(5)
            while watch.wait(0.1):
                pass
            (where / "net.conflist").write_text(conflist("b", "bridge"))
            assert watch.wait(5), "in the new directory"
            shutil.rmtree(tmp_path / "etc")
            assert watch.wait(5)
            while watch.wait(0.1):
                pass


def test_a_watch_hears_of_plugins_beside_a_list(tmp_path: Path) -> None:
    (tmp_path / "net.conflist").write_text(conflist("net", "bridge"))
    with Watch(Directory(str(tmp_path))) as watch:
        (tmp_path / "net").mkdir()
        assert watch.wait(5)
        while watch.wait(0.1):
            pass
        (tmp_path / "net" / "10.conf").write_text('{"type": "portmap"}')
        assert watch.wait(5)
