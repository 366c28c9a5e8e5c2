"""How long work looks while it goes on: bars on a terminal, a line for each change of state otherwise."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from wherry.model import ProgressEvent

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

Report = Callable[[ProgressEvent], None]


def reporter(stream: TextIO, terminal: bool) -> Report:
    """Where the events go. Bars end by themselves when nothing is left to do."""
    return _Bars(stream) if terminal else _Lines(stream)


class _Lines:
    """docker's lines without a terminal: one for each piece and state."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._seen: dict[str, str] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if self._seen.get(event.key) == event.status:
            return
        self._seen[event.key] = event.status
        self._stream.write(f"{short(event.key)}: {event.status}\n" if event.key else f"{event.status}\n")
        self._stream.flush()


class _Bars:
    """One bar for each piece."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.fields[key]}"),
            TextColumn("{task.description:<18}"),
            BarColumn(),
            DownloadColumn(),
            _rate(),
        )
        self._progress = Progress(*columns, console=Console(file=stream), redirect_stdout=False, redirect_stderr=False)
        self._tasks: dict[str, int] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if not self._progress.live.is_started:
            self._progress.start()
            atexit.register(self._progress.stop)  # the cursor comes back after a failure too
        task = self._task(event.key)
        self._progress.update(
            task,  # type: ignore[arg-type]
            description=event.status,
            total=event.total or None,
            completed=event.done,
        )
        if self._idle():
            self._progress.stop()

    def _task(self, key: str) -> int:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task("", key=short(key), total=None)
        return self._tasks[key]

    def _idle(self) -> bool:
        return bool(self._tasks) and all(_done(task.description) for task in self._progress.tasks)


def _rate() -> ProgressColumn:
    """Bytes a second, where some came lately."""
    from rich.progress import Task, TransferSpeedColumn
    from rich.text import Text

    class Rate(TransferSpeedColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.speed or task.finished_speed else Text("")

    return Rate()


DONE = frozenset({"Pull complete", "Already exists", "Done", "Complete", "Pushed", "Layer already exists"})


def _done(status: str) -> bool:
    return status in DONE or status.startswith("Mounted from")


def short(key: str) -> str:
    """Twelve digits of a digest; anything else as it is."""
    return key.partition(":")[2][:12] if key.startswith("sha256:") else key
