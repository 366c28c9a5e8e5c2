"""Image layouts that we write are read by other tools, and theirs by us."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import tools
from helpers.wherry import Wherry


def test_other_tools_read_the_example_layout(busybox: str, tmp_path: Path) -> None:
    tools.need("skopeo", "umoci")
    layout = busybox.removeprefix("oci:")
    shown = json.loads(tools.run("skopeo", "inspect", "--config", f"{busybox}:busybox:latest").stdout)
    assert shown["os"] == "linux"
    tools.run("umoci", "raw", "unpack", "--image", f"{layout}:busybox:latest", tmp_path / "rootfs")
    assert (tmp_path / "rootfs/bin/busybox").stat().st_mode & 0o777 == 0o755


def test_we_read_what_umoci_writes(wherry: Wherry, tmp_path: Path, busybox: str) -> None:
    """A second layer with a changed and a removed file, made by another program."""
    tools.need("umoci", "skopeo")
    layout = tmp_path / "layout"
    tools.run("skopeo", "--insecure-policy", "copy", f"{busybox}:busybox:latest", f"oci:{layout}:two")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "greeting").write_text("hello\n")
    tools.run("umoci", "insert", "--image", f"{layout}:two", tree / "greeting", "/etc/greeting")
    tools.run("umoci", "insert", "--whiteout", "--image", f"{layout}:two", "/etc/group")
    tools.run(
        "umoci", "config", "--image", f"{layout}:two", "--config.env", "A=from the image", "--config.user", "33:33"
    )
    script = "cat /etc/greeting; test -e /etc/group || echo gone; echo $A; id -u"
    out = wherry.out("run", "--rm", "--network", "none", f"oci:{layout}:two", "sh", "-c", script)
    assert out.splitlines() == ["hello", "gone", "from the image", "33"]


def test_an_archive_of_skopeo_runs(wherry: Wherry, tmp_path: Path, busybox: str) -> None:
    tools.need("skopeo")
    for kind in ("oci-archive", "docker-archive"):
        archive = tmp_path / f"{kind}.tar"
        tag = ":busybox:latest" if kind == "docker-archive" else ":latest"
        tools.run(
            "skopeo", "--insecure-policy", "copy", "--quiet", f"{busybox}:busybox:latest", f"{kind}:{archive}{tag}"
        )
        assert wherry.out("run", "--rm", "--network", "none", f"{kind}:{archive}", "echo", kind) == kind
