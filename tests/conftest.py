"""Fixtures of the system tests: a private wherry per test, an image, a registry, the audit, a time limit.

Decides where the tests' wherries live and what "nothing left behind" means for them. As root the whole session runs in
a network namespace of its own with a router behind it (`outside`), so that the host's links and firewall stay untouched
and a leak is ours beyond doubt; WHERRY_TEST_NETNS=host keeps the host's.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

import audit
from helpers import images, network, tools
from helpers.nethost import NetHost
from helpers.registry import Registry
from helpers.wherry import Wherry
from image_support import helper_factory
from wherry.image.store import ImageStore
from wherry.kernel import process
from wherry.net import launchers

TEST_SECONDS = 180
_numbers = itertools.count(1)

# a machine that judges a change must judge it twice alike; everywhere else each run looks at new examples. No example
# has a deadline of its own: a machine with something else to do would miss it, and each test as a whole has one
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("looking", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "looking")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seconds(n): how long this test may take (default 180)")
    # also for what tests start without a fixture: no command may leave a warm process that nobody ends
    os.environ["WHERRY_WARM"] = "off"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Root's tests skip by name for another user; pure tests run anywhere."""
    if os.geteuid() == 0:
        return
    for item in items:
        if {"system", "testbed"} & set(item.path.parts):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that hangs fails, instead of taking the whole run with it."""
    marker = item.get_closest_marker("seconds")
    seconds = marker.args[0] if marker else TEST_SECONDS

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"still running after {seconds} s", pytrace=True)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def orphans_are_not_ours() -> Iterator[None]:
    """A test that wants orphans as its children says so (PR_SET_CHILD_SUBREAPER); for the next one nobody would reap
    them, and a pid namespace does not end while one of its dead waits."""
    yield
    process.become_subreaper(False)


@pytest.fixture(scope="session")
def private_network() -> Iterator[network.Outside | None]:
    """Our own network namespace and the router behind it; None where WHERRY_TEST_NETNS=host."""
    if os.geteuid() != 0 or os.environ.get("WHERRY_TEST_NETNS") == "host":
        yield None
        return
    tools.need("ip", "nft")
    audit.enter_private_network()
    outside = network.Outside()
    yield outside
    outside.close()


@pytest.fixture
def outside(private_network: network.Outside | None) -> network.Outside:
    """Another host, one hop away: what masquerading and publishing look like from there."""
    if private_network is None:
        pytest.skip("needs the private network (WHERRY_TEST_NETNS=host is set)")
    return private_network


@pytest.fixture
def host(test_id: str) -> Iterator[NetHost]:
    """A host of namespaces, in which the test stands, and another machine one hop away."""
    made = NetHost(test_id)
    yield made
    made.close()


@pytest.fixture
def bin_dir(tmp_path: Path) -> str:
    """A directory with our CNI plugins, by their launchers."""
    directory = launchers.provide(str(tmp_path / "bin"))
    assert directory is not None
    return directory


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An OCI image layout with the distribution's static busybox, as an image name: oci:DIR."""
    return images.busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def host_canary() -> Iterator[None]:
    """Facts of the host, compared at the end of the session."""
    before = audit.canary()
    yield
    after = audit.canary()
    assert after == before


@pytest.fixture
def test_id(request: pytest.FixtureRequest) -> str:
    """Unique and short: every object's name carries it, so that a leak names its author."""
    return f"wt{os.getpid()}n{next(_numbers)}"


@pytest.fixture
def wherry(test_id: str, tmp_path: Path, private_network: object, host_canary: None) -> Iterator[Wherry]:
    """A whole wherry of this test's own; at the end everything is removed and nothing may be left."""
    own = Wherry(test_id, tmp_path)
    before = audit.take(own.mark)
    yield own
    own.remove_everything()
    leaks = audit.settle(before, own.mark) + own.leftovers()
    assert not leaks, "\n".join(leaks)


@pytest.fixture(scope="session")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], int]:
    """Gives a descriptor of the static helper: the installed one, or one made of the same sources."""
    return helper_factory(tmp_path_factory.mktemp("helper"))


@pytest.fixture
def store(tmp_path: Path, helper: Callable[[], int]) -> ImageStore:
    """An empty image store of the test's own."""
    return ImageStore(str(tmp_path / "root"), helper=helper)


@pytest.fixture
def registry(tmp_path: Path, private_network: object) -> Iterator[Registry]:
    """The distribution's registry on a free loopback port."""
    with Registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def no_stray_children() -> Iterator[None]:
    """The session's own children are gone at its end."""
    yield
    done = subprocess.run(
        ["ps", "--no-headers", "-o", "pid,args", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    )
    strays = [line for line in done.stdout.splitlines() if " ps " not in line and "<defunct>" not in line]
    assert not strays, "\n".join(strays)
