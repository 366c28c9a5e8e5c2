"""Containers find each other by name, on the default network and on a named one; a name goes with its container."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.root


@pytest.mark.parametrize("named", [False, True], ids=["default", "named"])
def test_a_second_container_reaches_the_first_by_name(wherry, busybox, named):
    where = ["--network", f"net-{wherry.id}"] if named else []
    if named:
        wherry("network", "create", f"net-{wherry.id}")
    wherry("run", "-d", "--name", "web", *where, busybox, "httpd", "-f", "-p", "80", "-h", "/etc")
    # no -T: with a time-out Debian's static busybox crashes, in any runtime and outside of one
    fetched = wherry("run", "--rm", *where, busybox, "wget", "-q", "-O", "-", "http://web/hostname")
    assert fetched.stdout.strip() == wherry("ps", "-q").stdout.strip()
    late = wherry("run", "-d", "--name", "late", *where, busybox, "sleep", "1000").stdout.strip()
    hosts = wherry("exec", "web", "cat", "/etc/hosts").stdout
    assert f"late {late[:12]}" in hosts, "who comes later is told to the first"
    wherry("rm", "-f", "late")
    assert "late" not in wherry("exec", "web", "cat", "/etc/hosts").stdout, "who goes is forgotten"
