"""Exec sessions: one more process in a running container, with a monitor of its own that keeps no record.

Decides which descriptors a session gets. Refuses to know where the process comes from: the plan says it.
"""

from contextlib import ExitStack
from typing import NamedTuple

from wherry.container import attach, launch
from wherry.container.attach import AttachStream
from wherry.container.launch import Launched
from wherry.container.state import ContainerDir, State, Status
from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.oci.plan import Plan

__all__ = ["Session", "start", "target_pidfd"]


class Session(NamedTuple):
    """A running exec session; `stream` is None when it is detached."""

    launched: Launched
    stream: AttachStream | None


def target_pidfd(container: ContainerDir, state: State) -> int:
    """The pidfd of the container's init, checked; CONFLICT unless it runs and is not paused. The caller closes it."""
    status = container.status(state)
    fd = process.open_pidfd(state.init) if status is Status.RUNNING and state.init is not None else None
    if fd is None:
        hint = "unpause it first" if status is Status.PAUSED else ""
        raise WherryError(Kind.CONFLICT, f"container {container.id} is {status.value}, not running", hint=hint)
    return fd


def start(container: ContainerDir, plan: Plan, *, uid: int = 0, timeout: float = 30.0) -> Session:
    """Run the plan of `oci.compile_exec`. Slots that it names and that are ours to fill: pidfd, client, stdio pipes."""
    with ExitStack() as stack:
        fds: dict[str, int] = {}
        stack.callback(launch.close_all, fds)
        fds["pidfd"] = target_pidfd(container, container.load())
        stream = None
        if "client" in plan.inherited:
            stream, fds["client"] = attach.pair()
        streams = tuple(name for name in ("stdin", "stdout", "stderr") if name in plan.inherited)
        fds.update(launch.stdio_pipes(streams, uid))
        try:
            launched = launch.start(container.path, plan, "monitor", fds, name=container.id, timeout=timeout)
        except BaseException:
            if stream is not None:
                stream.close()
            raise
        return Session(launched, stream)
