"""hosts.toml: which endpoints a registry's name leads to, in containerd's layout, and what is refused in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import Kind, WherryError
from wherry.image.hosts import Reach, endpoints

EVERYTHING = """
server = "https://registry-1.docker.io"
[host."https://mirror.example/"]
capabilities = ["pull", "resolve"]
ca = ["ca.pem", "/etc/other.pem"]
client = [["c.cert", "c.key"], ["both.pem", ""]]
dial_timeout = "1.5s"
[host."https://mirror.example/".header]
x-one = "1"
x-more = ["2", "3"]
[host."http://10.0.0.1:5000/cache/v2"]
capabilities = "pull"
skip_verify = true
override_path = true
client = "both.pem"
"""


def write(place: Path, name: str, text: str) -> Reach:
    (place / name).mkdir(parents=True)
    (place / name / "hosts.toml").write_text(text)
    return Reach(str(place))


def test_everything_that_the_layout_has(tmp_path):
    first, second, last = endpoints("docker.io", write(tmp_path, "docker.io", EVERYTHING))
    assert (first.base, first.capabilities) == ("https://mirror.example/v2", {"pull", "resolve"})
    assert first.origin.ca == (str(tmp_path / "docker.io/ca.pem"), "/etc/other.pem")
    assert first.origin.client == (
        (str(tmp_path / "docker.io/c.cert"), str(tmp_path / "docker.io/c.key")),
        (str(tmp_path / "docker.io/both.pem"), ""),
    )
    assert first.origin.headers == (("x-one", "1"), ("x-more", "2, 3"))
    assert (first.origin.connect, first.origin.url) == (1.5, "https://mirror.example")
    assert (first.account, first.namespace) == ("mirror.example", "docker.io")
    assert (second.base, second.origin.skip_verify) == ("http://10.0.0.1:5000/cache/v2", True)
    assert (last.base, last.account, last.namespace) == ("https://registry-1.docker.io/v2", "docker.io", "")
    assert last.capabilities == {"pull", "resolve", "push"}


@pytest.mark.parametrize(("registry", "host", "base"), [
    ("docker.io", "registry-1.docker.io", "https://registry-1.docker.io/v2"), ("ghcr.io", "ghcr.io", "https://ghcr.io/v2"),
    ("localhost:5000", "localhost:5000", ""), ("127.0.0.1", "127.0.0.1", ""), ("plain.example", "plain.example", ""),
    ("[::1]:5000", "[::1]:5000", ""),
])  # fmt: skip
def test_without_settings_the_registry_itself(registry, host, base):
    (only,) = endpoints(registry, Reach(insecure=frozenset({"plain.example"})))
    assert (only.host, only.base, only.account) == (host, base, registry)


@pytest.mark.parametrize("directory", ["reg.example:5000", "reg.example_5000_", "_default"])
def test_the_directory_of_a_registry(tmp_path, directory):
    reach = write(tmp_path, directory, 'server = "http://there:1"')
    (only,) = endpoints("reg.example:5000", reach)
    assert (only.base, only.account, only.namespace) == ("http://there:1/v2", "reg.example:5000", "reg.example:5000")
    (other,) = endpoints("other.example", reach)
    assert (other.host == "other.example") == (directory != "_default")


def test_a_directory_of_its_own_hides_the_default(tmp_path):
    reach = write(tmp_path, "_default", '[host."https://mirror.example"]')
    assert [e.host for e in endpoints("a.example", reach)] == ["mirror.example", "a.example"]
    (tmp_path / "a.example").mkdir()
    assert [e.host for e in endpoints("a.example", reach)] == ["a.example"]


def test_certificates_alone_as_docker_has_them(tmp_path):
    place = tmp_path / "a.example"
    place.mkdir()
    for name in ("ca.crt", "client.cert", "client.key", "README"):
        (place / name).touch()
    (only,) = endpoints("a.example", Reach(str(tmp_path)))
    assert only.origin.ca == (str(place / "ca.crt"),)
    assert only.origin.client == ((str(place / "client.cert"), str(place / "client.key")),)
    assert only.origin.url == "https://a.example"


@pytest.mark.parametrize("text", [
    "server = 5", "serve = 'x'", "[host]\n'ftp://x' = {}", "[host.'https://x']\ncapabilities = ['fly']",
    "[host.'https://x']\nskip_verify = 'yes'", "[host.'https://x']\nclient = [['a', 'b', 'c']]",
    "[host.'https://x']\nca = 5",
    "[host.'https://x']\nheader = {'a b' = 'c'}", "[host.'https://x']\nheader = {a = \"b\\r\\nc: d\"}",
    "[host.'https://user:pw@x']", "[host.'https://x']\ndial_timeout = 'soon'", "not toml", "server = '/only/a/path'",
    "[host.'https://x']\nclient = 7", "host = 3", "[host.'https://x?query=1']",
])  # fmt: skip
def test_what_is_refused(tmp_path, text):
    with pytest.raises(WherryError, match=r"hosts\.toml") as caught:
        endpoints("a.example", write(tmp_path, "a.example", text))
    assert caught.value.kind is Kind.INVALID


@given(st.text(max_size=200))
def test_any_text_is_settings_or_an_error(tmp_path_factory, text):
    place = tmp_path_factory.mktemp("hosts")
    try:
        tomllib.loads(text)
        good = True
    except tomllib.TOMLDecodeError:
        good = False
    try:
        found = endpoints("a.example", write(place, "a.example", text))
    except (WherryError, UnicodeEncodeError):
        return
    assert good
    assert found
