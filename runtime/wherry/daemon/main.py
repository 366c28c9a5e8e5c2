"""`wherryd`: reads its arguments, opens its sockets, serves until it is told to stop."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The program."""
    sys.exit("wherryd: not built yet")
