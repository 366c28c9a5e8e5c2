"""One cluster for all of these tests: its node's runtime is wherryd, or what WHERRY_TEST_CRI names.

Decides only what lives how long. Skips where the programs are not built: scripts/test-kubernetes builds them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import cluster, criimages, runtimes
from helpers.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, private_network: object) -> Iterator[str]:
    """A registry (host:port) with every image that is asked for here."""
    place = tmp_path_factory.mktemp("registry")
    with Registry(place) as made:
        criimages.publish(made.host, place)
        yield made.host


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Iterator[runtimes.Runtime]:
    """A runtime in a space of its own, which serves; at the end its pods are gone."""
    place = tmp_path_factory.mktemp("k8s")
    with cluster.space() as space:
        made = runtimes.chosen(space, place / "runtime", registry, f"wtk{os.getpid()}{place.name[-1]}")
        made.start()
        yield made
        made.end()


@pytest.fixture(autouse=True)
def kills(request: pytest.FixtureRequest, runtime: runtimes.Runtime) -> Iterator[None]:
    """WHERRY_KUBE_KILLS=SECONDS: the runtime is killed about so often during every test but those marked `calm`."""
    seconds = float(os.environ.get("WHERRY_KUBE_KILLS") or 0)
    if not seconds or request.node.get_closest_marker("calm"):
        yield
        return
    with runtime.killed_over_and_over(seconds) as moments:
        yield
    print(f"WHERRY_SEED={runtimes.SEED}: killed {len(moments)} times")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the test's own, which its pods may have as a hostPath."""
    tmp_path.chmod(0o755)
    return tmp_path
