"""How a build looks while it goes on: BuildKit's lines, a live view on a terminal, raw JSON, or nothing."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from wherry.engine.build.values import BuildEvent

__all__ = ["Live", "Plain", "Raw", "Silent"]

_LINES = 6  # of a running step's output on a terminal


class Silent:
    """Takes news and shows none; what the others are made of."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: BuildEvent) -> None:
        """One event."""


class _Splitter:
    """A step's output in whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def lines(self, data: bytes, *, end: bool = False) -> list[str]:
        """The lines that are complete now; at the `end`, what is left too."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if end and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        return [line.rstrip(b"\r").decode("utf-8", "replace") for line in whole]


class Plain(Silent):
    """docker's --progress=plain: every line begins with its step's number."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._output: dict[int, _Splitter] = {}
        self._last = 0
        self._says: dict[str, Callable[[BuildEvent], list[str]]] = {
            "started": lambda event: [event.text],
            "note": lambda event: [event.text],
            "output": self._lines,
            "cached": lambda _event: ["CACHED"],
            "done": lambda event: [*self._lines(event, end=True), f"DONE {event.at:.1f}s"],
            "failed": lambda event: [*self._lines(event, end=True), f"ERROR: {event.text}"],
            "canceled": lambda event: [*self._lines(event, end=True), "CANCELED"],
        }

    def __call__(self, event: BuildEvent) -> None:
        """See `Silent`."""
        lines = self._says[event.kind](event)
        if lines and self._last not in (0, event.vertex):
            self._stream.write("\n")
        self._last = event.vertex if lines else self._last
        self._stream.write("".join(f"#{event.vertex} {line}\n" for line in lines))
        self._stream.flush()

    def _lines(self, event: BuildEvent, *, end: bool = False) -> list[str]:
        splitter = self._output.setdefault(event.vertex, _Splitter())
        return [f"{event.at:.3f} {line}" for line in splitter.lines(event.data, end=end)]


class Raw(Silent):
    """--progress=rawjson: one object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: BuildEvent) -> None:
        """See `Silent`."""
        fields = {key: value for key, value in event._asdict().items() if value not in ("", b"")}
        if event.data:
            fields["data"] = event.data.decode("utf-8", "replace")
        self._stream.write(json.dumps(fields) + "\n")
        self._stream.flush()


class _Shown:
    """One step on a terminal."""

    def __init__(self, event: BuildEvent) -> None:
        import time

        self.title, self.state, self.took = event.text, "", 0.0
        self.began = time.monotonic()
        self.splitter = _Splitter()
        self.tail: deque[str] = deque(maxlen=_LINES)


class Live(Silent):
    """docker's view on a terminal: all steps, and the last lines of those that run."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as Screen

        self._steps: dict[int, _Shown] = {}
        console = Console(file=stream)
        self._screen: Any = Screen(
            get_renderable=self._picture, console=console, refresh_per_second=8, redirect_stdout=False,
            redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip

    def __enter__(self) -> Live:
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.vertical_overflow = "visible"
        self._screen.stop()

    def __call__(self, event: BuildEvent) -> None:
        """See `Silent`."""
        if event.kind == "started":
            self._steps[event.vertex] = _Shown(event)
            return
        step = self._steps[event.vertex]
        if event.kind == "output":
            step.tail.extend(step.splitter.lines(event.data))
        elif event.kind == "note":
            step.tail.append(event.text)
        else:
            step.state, step.took = event.kind, event.at
            step.tail.clear()

    def _picture(self) -> Any:
        import time

        from rich.text import Text

        lines = Text(no_wrap=True, overflow="ellipsis")
        for step in list(self._steps.values()):
            took = step.took if step.state else time.monotonic() - step.began
            word = {"cached": "CACHED ", "failed": "ERROR ", "canceled": "CANCELED "}.get(step.state, "")
            style = {"": "bold", "failed": "red"}.get(step.state, "blue")
            lines.append(f" => {word}{step.title.splitlines()[0][:100]}  {took:.1f}s\n", style)
            for line in list(step.tail):
                lines.append(f" => => {line[:110]}\n", "dim")
        return lines
