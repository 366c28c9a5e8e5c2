"""`pytest tests/plans --update-golden` writes the golden plans anew; the diff of git is then the review."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", default=False, help="write tests/plans/golden anew")
