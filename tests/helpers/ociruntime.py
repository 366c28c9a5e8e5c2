"""The OCI runtime under test as other programs call it, and places where they run apart from the host.

It is wherry-oci; WHERRY_TEST_RUNTIME=runc (or crun, or a path) puts another in its place, to learn whether a failure is
ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from .tools import need
from .warm import Warm

__all__ = ["APART", "HIDE", "RUNTIME", "Space", "wrapper"]

_OURS = str(Path(sys.executable).with_name("wherry-oci"))
_ASKED = os.environ.get("WHERRY_TEST_RUNTIME", _OURS)
RUNTIME = shutil.which(_ASKED) or _ASKED

#: other mounts and processes: what is started in there ends with the first of them, and its mounts with it
APART = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
#: crun refuses hybrid cgroups whose v2 side has controllers: there it runs with that side hidden, and on v1 alone
HIDE = "umount /sys/fs/cgroup/unified 2>/dev/null; " if os.path.basename(RUNTIME) == "crun" else ""


#: the first call leaves a warm process, in the namespaces of the caller: it ends with them
_WARM = """\
export WHERRY_STATE={state} WHERRY_WARM=on
mkdir -p -m 711 {state}
[ -S {state}/warm/socket ] || {{
    {python} -I -c "from wherry.warm.server import main; main('{state}/warm')" </dev/null >/dev/null 2>&1 3>&- 4>&- &
    while [ ! -S {state}/warm/socket ]; do sleep 0.05; done
}}
"""


def wrapper(directory: Path, *, root: Path | None = None) -> Path:
    """A program that is the runtime with a --root of its own: what takes a path only has no other way to say it."""
    need(RUNTIME)
    script = directory / os.path.basename(RUNTIME)  # callers know some runtimes by their name
    warm = _WARM.format(state=directory / "warm-state", python=sys.executable) if Warm.wanted() else ""
    script.write_text(f'#!/bin/sh\n{warm}exec {RUNTIME} --root {root or directory / "state"} "$@"\n')
    script.chmod(0o755)
    return script


class Space:
    """`with Space() as space: space.run("podman", ...)`: mounts and processes apart; all of them end at its end.

    The network stays the caller's (the session's own: see conftest).
    """

    #: the first process, which takes over and reaps what others leave
    _INIT = HIDE + 'echo ready; while :; do sleep 3600 & wait "$!"; done'

    _enter: tuple[str, ...]

    def __init__(self, private: tuple[str, ...] = ()) -> None:
        """`private`: directories that programs know by these paths, empty in here."""
        self.env = dict(os.environ)
        #: waited for at the end
        self.daemons: list[subprocess.Popen[bytes]] = []
        self._script = "".join(f"mkdir -p {path} && mount -t tmpfs none {path} && " for path in private) + self._INIT

    def __enter__(self) -> Space:
        need("unshare", "nsenter")
        self._outer = subprocess.Popen(
            [*APART, "sh", "-c", self._script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self._init = os.pidfd_open(int(children.split()[0]))
        self._enter = ("nsenter", "--target", children.split()[0], "--mount", "--pid", "--wdns=/")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outer.kill()  # --kill-child: the first process follows, and the kernel ends the others
        assert select.select([self._init], [], [], 10)[0]
        os.close(self._init)
        for process in (self._outer, *self.daemons):
            process.wait(10)
        assert self._outer.stdout is not None
        self._outer.stdout.close()

    def popen(self, *words: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in there and go on."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([*self._enter, *map(str, words)], env=self.env, **options)

    def run(
        self, *words: object, check: bool = True, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in there; its output is in the failure's message."""
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        command = [*self._enter, *map(str, words)]
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout, check=False, **source
        )
        said = f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0 or not check, said
        return done

    def terminal(self, *words: object, rows: int = 33, columns: int = 77) -> str:
        """Run a program with a terminal of this size in there; what it shows."""
        ours, theirs = os.openpty()
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            process = self.popen(*words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
            os.close(theirs)
            shown = bytearray()
            with contextlib.suppress(OSError):  # EIO: the last holder has gone
                while part := os.read(ours, 4096):
                    shown += part
            process.wait(10)
        finally:
            os.close(ours)
        return shown.decode(errors="replace")

    def daemon(self, log: Path, ready: tuple[object, ...], *words: object, seconds: float = 30) -> None:
        """Start a daemon in there and wait until `ready` succeeds. It ends with the space."""
        with open(log, "wb") as file:
            process = self.popen(*words, stdout=file, stderr=file)
        self.daemons.append(process)
        end = time.monotonic() + seconds
        while self.run(*ready, check=False).returncode:
            told = f"{words[0]} does not come up:\n{log.read_text(errors='replace')[-3000:]}"
            assert process.poll() is None, told
            assert time.monotonic() < end, told
            time.sleep(0.1)
