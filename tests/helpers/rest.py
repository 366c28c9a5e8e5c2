"""What is on the host while a wherryd of a test is killed and started over and over: nothing may gather."""

from __future__ import annotations

import time

import audit

from .cri import Wherryd

__all__ = ["Rest"]


class Rest:
    """What is there at a moment; wherryd itself is another process after each death."""

    def __init__(self, wherryd: Wherryd, pause: str) -> None:
        """`pause`: the end of command lines that come and go meanwhile."""
        self._wherryd, self._pause = wherryd, pause
        self._before = audit.take(wherryd.mark)
        self._files = self._below()

    def _below(self) -> frozenset[str]:
        return audit.files_below(self._wherryd.root, self._wherryd.state)

    def left(self, seconds: float = 15) -> list[str]:
        """What is here now and was not, or is missing, after the kernel had its time."""
        deadline = time.monotonic() + seconds
        while found := self._now():
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return found

    def _now(self) -> list[str]:
        try:
            found = audit.take(self._wherryd.mark).left_since(self._before)
        except FileNotFoundError as error:  # a sweep takes it away under our eyes
            return [f"left, a moment ago: {error.filename}"]
        mine = f"left processes: {self._wherryd.pid} "
        others = [line for line in found if not line.startswith(mine) and not line.endswith(self._pause)]
        return others + sorted(f"left file: {path}" for path in self._below() - self._files)
