"""What wherryd's Docker API costs while nothing happens, and how soon it is back: `scripts/bench docker`.

For each number of containers (created, and as many as --running of them running): memory of the idle daemon, and the
time from SIGKILL, through a new start, to the first list of all of them. Runs inside of the peers' namespaces; what the
same client takes on wherryd and dockerd is measured by `scripts/bench --peers docker,wherryd`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import measure
import report

TOP = Path(__file__).resolve().parents[2]
BARS = {0: 0.5, 100: 1.0, 1000: 5.0}  # seconds
RSS_MIB = 96
PARENT = "/wherryd-bench-docker"
_BODY = {"Image": "busybox", "Cmd": ["sleep", "1000000"], "HostConfig": {"NetworkMode": "none"}}


class Connection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        """One that fails at once where nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """A wherryd with places of its own."""

    def __init__(self, scratch: Path) -> None:
        self._places = {"--root": scratch / "wd-root", "--state": scratch / "run/wd", "--config": scratch / "wd.toml"}
        self._places["--config"].write_text(f'cgroup_parent = "{PARENT}"\n')
        self._words = [str(word) for pair in self._places.items() for word in pair]
        self._log = open(scratch / "wd.log", "ab")  # noqa: SIM115  # as long as this
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = self._places["--state"] / "docker.sock"
        self.socket.parent.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Begin, and wait for nothing."""
        program = TOP / ".venv/bin/wherryd"
        self._process = subprocess.Popen([program, *self._words], stdin=subprocess.DEVNULL, stderr=self._log)

    def load(self, layout: Path) -> None:
        """The image that all containers are of."""
        subprocess.run([TOP / ".venv/bin/wherry", *self._words, "load", "-q", "-i", layout], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, "WHERRY_WARM": "off"})  # fmt: skip

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """One call; its JSON."""
        connection = Connection(self.socket)
        raw = None if body is None else json.dumps(body)
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 400:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text) if text else None

    def first_list(self) -> list[Any]:
        """Of all containers, as soon as one comes."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                found: list[Any] = self.ask("GET", "/containers/json?all=1")
            except (OSError, http.client.HTTPException):
                time.sleep(0.002)
            else:
                return found
        raise SystemExit("wherryd does not answer")

    def end(self, number: int) -> None:
        """By a signal; it is gone when this returns."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def resident_mib(self) -> float:
        """VmRSS."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def fill(daemon: Daemon, have: int, want: int, running: int) -> None:
    """So many containers, the first of them running."""
    for number in range(have, want):
        made = daemon.ask("POST", f"/containers/create?name=bench{number}", _BODY)
        if number < running:
            daemon.ask("POST", f"/containers/{made['Id']}/start")


def back(daemon: Daemon, count: int) -> float:
    """Seconds from a kill to the first list."""
    begin = time.perf_counter()
    daemon.end(signal.SIGKILL)
    daemon.start()
    found = len(daemon.first_list())
    took = time.perf_counter() - begin
    if found != count:
        raise SystemExit(f"{count} containers were there, {found} are")
    return took


def rows(daemon: Daemon, options: argparse.Namespace) -> list[str]:
    """Lines of the table."""
    lines, have = [], 0
    for count in map(int, options.counts.split(",")):
        fill(daemon, have, count, options.running)
        have = count
        took = [back(daemon, count) for _ in range(options.runs)]
        time.sleep(2)
        lines.append(row(count, took, options.running, daemon.resident_mib()))
    return lines


def no_groups() -> None:
    """The parent of the containers' cgroups goes too."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for mount in (line.split()[4] for line in lines if " - cgroup2 " in line):
        for place, _, _ in os.walk(f"{mount}{PARENT}", topdown=False):
            with suppress(OSError):
                os.rmdir(place)


def row(count: int, took: list[float], running: int, size: float) -> str:
    """One line."""
    half, bar = statistics.median(took), BARS.get(count)
    verdict = "-" if bar is None else f"{bar:g}, {report.verdict(half <= bar)}"
    cells = (f"{count} ({min(count, running)} running)", f"{half:.2f} ({min(took):.2f} to {max(took):.2f})", verdict,
             f"{size:.1f}", f"{RSS_MIB}, {report.verdict(size <= RSS_MIB)}")  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench docker", description=__doc__)
    parser.add_argument("--counts", default="0,100,1000", help="of containers; default: %(default)s")
    parser.add_argument("--running", type=int, default=50, help="how many of them run; default: %(default)s")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    scratch, before = Path(os.environ["BENCH_HOME"]), measure.busy_percent()
    daemon = Daemon(scratch)
    daemon.start()
    daemon.first_list()
    try:
        daemon.load(scratch / "layout")
        table = rows(daemon, options)
    finally:
        for one in daemon.first_list():
            daemon.ask("DELETE", f"/containers/{one['Id']}?force=1")
        daemon.end(signal.SIGTERM)
        no_groups()
    print(f"Tasks waited for a CPU {before:.0f} % of the ten seconds before.\n")
    print("| containers | kill -9 to the first list: median s (min to max) | bar | idle RSS, MiB | bar |")
    print("| --- | --- | --- | --- | --- |", *table, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
