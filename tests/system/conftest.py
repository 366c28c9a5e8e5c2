"""Fixtures of the tests of the CSI driver: one for many tests, and one that a test may break.

And the early boot of the testbed's guests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.csi import eventually, residue
from helpers.csifort import Fort, built


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fort]]:
    """One driver for all tests that leave it as it was, and a new one after a test that did not."""
    with ExitStack() as stack:
        now: list[Fort] = []

        def give(*, anew: bool = False) -> Fort:
            if anew:
                now.pop().raze()
            if not now:
                now.append(stack.enter_context(built(tmp_path_factory.mktemp("csi"), "xfs", "--controller-publish")))
            return now[0]

        yield give


@pytest.fixture
def fort(standing: Callable[..., Fort]) -> Iterator[Fort]:
    """It is left empty, with nothing to complain of, and the canary beside it as it was."""
    made = standing()
    yield made
    try:
        made.untouched()
        made.client.sweep()
        assert made.driver.check() == []
        eventually(lambda: not residue(made.pool), 5, "the pool is empty")
    except BaseException:
        standing(anew=True)
        raise


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fort]:
    """One that may be broken; xfs unless the test's parameter says otherwise."""
    with built(tmp_path, getattr(request, "param", "xfs")) as made:
        yield made


@pytest.fixture
def volume(fort: Fort) -> str:
    """A mounted volume's id."""
    return fort.client.create("one").volume_id


def pytest_collection_finish(session: pytest.Session) -> None:
    """The guests boot while other tests run."""
    for module in _testbed(session):
        if not session.config.option.collectonly:
            module.begin(session.config, session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """They end with the session."""
    for module in _testbed(session):
        module.end(session.config)


def _testbed(session: pytest.Session) -> set[Any]:
    """The module that boots them, where its tests were asked for."""
    found = [item for item in getattr(session, "items", []) if item.path.name == "test_testbed.py"]
    return {item.module for item in found if isinstance(item, pytest.Function)}
