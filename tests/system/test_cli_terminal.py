"""A real terminal (tmux) around run, exec and attach: raw mode, sizes, ctrl-c, detaching, and a sane end always."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import tools
from helpers.wherry import COMMAND, Wherry, until

SANE = (" icanon", " echo ", " isig", " icrnl")


class Screen:
    """One tmux server with one pane, in which bash runs with the test's wherry as the function `w`."""

    def __init__(self, own: Wherry, directory: Path) -> None:
        tools.need("tmux")
        self._socket = str(directory / "tmux.sock")
        start = directory / "bashrc"
        start.write_text(f'PS1="ready$ "\nw() {{ {" ".join(COMMAND)} "$@"; }}\n')
        env = {**own.env, "LC_ALL": "C.UTF-8", "HISTFILE": ""}
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", f"bash --rcfile {start}", env=env)
        self.wait("ready$")

    def _tmux(self, *words: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-S", self._socket, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    def close(self) -> None:
        """End the server and all in it."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False, capture_output=True)

    def text(self) -> str:
        """What the pane has shown, also what has scrolled away."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-500").rstrip()

    def keys(self, *keys: str) -> None:
        """Press keys by tmux's names: C-c, Enter."""
        self._tmux("send-keys", *keys)

    def type(self, line: str) -> None:
        """Type a line."""
        self._tmux("send-keys", "-l", line)
        self.keys("Enter")

    def wait(self, pattern: str, seconds: float = 20) -> str:
        """Wait until the text holds something; a name between slashes is a regular expression."""
        wanted = pattern if pattern.startswith("(?") else re.escape(pattern)
        try:
            until(lambda: re.search(wanted, self.text()), seconds)
        except AssertionError:
            raise AssertionError(f"{pattern!r} did not come:\n{self.text()}") from None
        return self.text()

    def prompt(self) -> None:
        """Wait until the host's shell asks for the next line."""
        until(lambda: self.text().endswith("ready$"), 20, "the shell did not come back")

    def fresh(self) -> None:
        """Forget what was shown, so that what is waited for is new."""
        self._tmux("send-keys", "-R")
        self._tmux("clear-history")

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def sane(self) -> None:
        """The shell's terminal is as it was: lines, echo, signals."""
        self.fresh()
        self.type("stty -a; echo SANE-$((20+3))")
        text = " " + self.wait("SANE-23").replace("\n", " ").replace(";", " ") + " "
        assert [word for word in SANE if word not in text] == []

    def client(self, *words: str) -> int:
        """The pid of the wherry that runs in the pane with these words on its command line."""

        pane = self._tmux("display-message", "-p", "#{pane_pid}").strip()

        def found() -> int | None:
            for pid in Path(f"/proc/{pane}/task/{pane}/children").read_text().split():
                args = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if all(word in args for word in words):
                    return int(pid)
            return None

        return int(until(found, 10, "no client"))


@pytest.fixture
def screen(wherry: Wherry, tmp_path: Path, busybox: str) -> Iterator[Screen]:
    wherry("pull", "-q", busybox)
    shown = Screen(wherry, tmp_path)
    yield shown
    shown.close()


IMAGE = "busybox"


def shell(screen: Screen, name: str, *flags: str) -> None:
    """A container's shell in the pane, its prompt waited for."""
    screen.fresh()
    screen.type(f"w run -it --network none -e PS1='inside# ' --name {name} {' '.join(flags)} {IMAGE} sh")
    screen.wait("(?m)^inside#")


def test_a_shell_as_people_expect_it(screen: Screen, wherry: Wherry) -> None:
    shell(screen, wherry.name(), "--rm")
    screen.type("tty; echo size $(stty size)")
    screen.wait("size 30 100")
    screen.resize(90, 20)
    screen.type("echo now $(stty size)")
    screen.wait("now 20 90")
    screen.type("echo wait; sleep 1000")
    screen.wait("(?m)^wait")
    screen.keys("C-c")  # the kernel forgets what was typed before it
    screen.wait("(?m)^\\^C")
    screen.type("echo rc=$?")
    screen.wait("rc=130")
    screen.type("exit 3")
    screen.prompt()
    screen.type("echo code=$?")
    screen.wait("code=3")
    screen.sane()
    assert wherry("ps", "-aq").stdout == ""


def test_detach_and_attach_again(screen: Screen, wherry: Wherry) -> None:
    name = wherry.name()
    shell(screen, name)
    screen.type("X=remembered")
    screen.keys("C-p", "C-q")
    screen.wait("read escape sequence")
    screen.sane()
    assert "Up" in wherry("ps", "--format", "{{.Status}}").stdout
    screen.fresh()
    screen.type(f"w attach {name}")
    screen.keys("Enter")
    screen.wait("(?m)^inside#")
    screen.type("echo it is $X")
    screen.wait("it is remembered")
    screen.type("exit 4")
    screen.prompt()
    screen.type("echo code=$?")
    screen.wait("code=4")
    screen.sane()


def test_other_detach_keys_and_a_lone_ctrl_p(screen: Screen, wherry: Wherry) -> None:
    shell(screen, wherry.name(), "--detach-keys", "ctrl-x,d")
    screen.keys("C-x", "d")
    screen.wait("read escape sequence")
    screen.fresh()
    shell(screen, wherry.name("d"), "--rm")
    screen.type("echo one")
    screen.wait("(?m)^one")
    screen.keys("C-p")  # what may be the start of the sequence is held back until the next key
    screen.keys("Enter")
    screen.wait("(?s)one.*one")
    screen.type("exit")
    screen.prompt()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_terminal_is_sane_after_the_client_was_killed(
    screen: Screen, wherry: Wherry, number: signal.Signals
) -> None:
    name = wherry.name()
    shell(screen, name)
    os.kill(screen.client("run", name), number)
    screen.prompt()
    if number == signal.SIGTERM:
        screen.type("echo code=$?")
        screen.wait("code=143")
    screen.sane()
    assert wherry("inspect", "-f", "{{.State.Status}}", name).stdout == "running\n"


def test_a_stopped_client_gives_the_terminal_back_and_goes_on(screen: Screen, wherry: Wherry) -> None:
    name = wherry.name()
    shell(screen, name, "--rm")
    os.kill(screen.client("run", name), signal.SIGTSTP)
    screen.wait("Stopped")
    screen.sane()
    screen.fresh()
    screen.type("fg")
    screen.keys("Enter")
    screen.wait("(?m)^inside#")
    screen.type("exit 5")
    screen.prompt()
    screen.type("echo code=$?")
    screen.wait("code=5")
    screen.sane()


def test_exec_with_a_terminal(screen: Screen, wherry: Wherry) -> None:
    name = wherry.name()
    wherry("run", "-d", "--network", "none", "--name", name, IMAGE, "sleep", "1000")
    screen.fresh()
    screen.type(f"w exec -it -e PS1='inside# ' {name} sh")
    screen.wait("(?m)^inside#")
    screen.type("echo size $(stty size)")
    screen.wait("size 30 100")
    screen.resize(80, 24)
    screen.type("echo now $(stty size)")
    screen.wait("now 24 80")
    screen.keys("C-d")
    screen.prompt()
    screen.sane()


def test_interrupting_without_a_terminal_reaches_the_process(screen: Screen, wherry: Wherry) -> None:
    script = "trap 'echo caught; exit 9' INT; echo waiting; while :; do sleep 0.1; done"
    screen.fresh()
    screen.type(f'w run --rm --network none {IMAGE} sh -c "{script}"')
    screen.wait("(?m)^waiting")
    screen.keys("C-c")
    screen.wait("(?m)caught$")
    screen.prompt()
    screen.type("echo code=$?")
    screen.wait("code=9")
    screen.sane()


def test_a_pull_shows_bars(screen: Screen, wherry: Wherry, busybox: str) -> None:
    wherry("rmi", "busybox")
    screen.fresh()
    screen.type(f"w pull {busybox}; echo code=$?")
    text = screen.wait("code=0")
    assert "docker.io/library/busybox:latest" in text
    screen.sane()
