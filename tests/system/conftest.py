"""Fixtures of the tests of the CSI driver: one for many tests, and one that a test may break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.csi import (
    eventually,
    residue,
)
from helpers.csifort import Fort, built


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    """One for all tests that leave it as it was."""
    with built(tmp_path_factory.mktemp("csi"), "xfs", "--controller-publish") as made:
        yield made


@pytest.fixture
def fort(standing: Fort) -> Iterator[Fort]:
    yield standing
    standing.untouched()
    standing.client.sweep()
    assert standing.driver.check() == []
    eventually(lambda: not residue(standing.pool), 5, "the pool is empty")


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fort]:
    """One that may be broken; xfs unless the test's parameter says otherwise."""
    with built(tmp_path, getattr(request, "param", "xfs")) as made:
        yield made


@pytest.fixture
def volume(fort: Fort) -> str:
    return fort.client.create("one").volume_id
