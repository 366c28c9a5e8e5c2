"""poststart and poststop hooks (runtime-spec, config.md "POSIX-platform Hooks"): those that no helper is left for.

Decides their order, input and deadline. The other hooks are steps of the plan.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

from wherry.container.state import State
from wherry.errors import Kind, WherryError
from wherry.kernel import process
from wherry.kernel.process import Process
from wherry.model import Json

__all__ = ["poststart", "poststop", "state_document"]

_DEADLINE = 60.0  # for a hook that names no timeout: a cleanup must end


def state_document(state: State, status: str, annotations: Json | None = None) -> Json:
    """The runtime-spec's state, as hooks get it on standard input and `wherry-oci state` prints it."""
    document: Json = {"ociVersion": "1.3.0", "id": state.id, "status": status, "bundle": state.bundle}
    if status != "stopped" and state.init is not None:
        document["pid"] = state.init.pid
    return {**document, "annotations": annotations} if annotations else document


def poststart(config: Json, state: State) -> None:
    """Run them in order; the first failure ends it (of a container that waited: the plan of others has them)."""
    text = json.dumps(state_document(state, "running", config.get("annotations"))).encode()
    for hook in (config.get("hooks") or {}).get("poststart") or []:
        _run(hook, text, "poststart")


def poststop(config: Json, state: State) -> list[WherryError]:
    """Run them all in order; a failure does not keep the next from running (the spec: log and go on)."""
    text = json.dumps(state_document(state, "stopped", config.get("annotations"))).encode()
    failures = []
    for hook in (config.get("hooks") or {}).get("poststop") or []:
        try:
            _run(hook, text, "poststop")
        except WherryError as error:
            failures.append(error)
    return failures


def _run(hook: Json, text: bytes, kind: str) -> None:
    path, name = str(hook["path"]), f"{kind} hook {hook['path']}"
    deadline = time.monotonic() + float(hook.get("timeout") or _DEADLINE)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = _spawn(hook, path, reader)
    except OSError as error:
        os.close(writer)
        raise WherryError(Kind.PRECONDITION, f"{name}: {error.strerror}") from error
    finally:
        os.close(reader)
    _feed(writer, text, deadline)
    _finish(name, child, deadline)


def _spawn(hook: Json, path: str, stdin: int) -> int:
    env = dict(entry.split("=", 1) for entry in hook.get("env") or [] if "=" in entry)
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    return os.posix_spawn(path, hook.get("args") or [path], env, file_actions=actions, setpgroup=0,
                          setsigmask=[], setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])  # Python ignores both


def _feed(writer: int, text: bytes, deadline: float) -> None:
    """Write all that the hook reads; one that reads nothing must not hold us."""
    os.set_blocking(writer, False)
    poll = select.poll()
    poll.register(writer, select.POLLOUT)
    try:
        while text and poll.poll(max(0, deadline - time.monotonic()) * 1000):
            text = text[os.write(writer, text) :]
    except BrokenPipeError:
        return
    finally:
        os.close(writer)


def _finish(name: str, child: int, deadline: float) -> None:
    hook = process.identify(child) or Process(child, 0)
    if not process.wait_gone(hook, deadline - time.monotonic()):
        os.killpg(child, 9)  # with its children; it is our own and not reaped yet
        process.reap(child)
        raise WherryError(Kind.UNAVAILABLE, f"{name}: no end in time, killed")
    code = process.reap(child)
    if code:
        raise WherryError(Kind.PRECONDITION, f"{name}: exit code {code}")
