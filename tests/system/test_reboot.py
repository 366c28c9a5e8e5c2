"""Two boots of a machine with systemd and one disk: what is to run again runs again, by wherry-restart.service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.testbed import PREPARE_SECONDS, VM_RUN, checkout, prepare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SECONDS = 300

FIRST = r"""
set -eu
mkdir -p /scratch/root
wherry load -q -i "$BUSYBOX" >/dev/null
wherry tag "$(wherry images -q)" busybox
up() { wherry run -d --name "$1" --restart "$2" --network none busybox sleep 100000 >/dev/null; }
up always always; up hand always; up unless unless-stopped; up stopped unless-stopped
up failure on-failure; up plain no
wherry run -d --name web --restart always -p 127.0.0.1:8099:80 busybox httpd -f -p 80 -h /etc >/dev/null
wherry run -d --name once --restart on-failure --network none busybox sh -c 'exit 0' >/dev/null
wherry stop -t 0 hand stopped >/dev/null
busybox wget -qO- http://127.0.0.1:8099/passwd | grep -q root
sync
echo "before: $(wherry ps --format '{{.Names}}' | sort | tr '\n' ' ')"
"""
ORDERLY = r"""
mkdir -p /etc/systemd/system/wherry-halt.service.d
printf '[Service]\nEnvironment=WHERRY_ROOT=/scratch/root\n' > /etc/systemd/system/wherry-halt.service.d/here.conf
wherry system install-units >/dev/null
systemctl daemon-reload
systemctl start wherry-halt.service
systemctl poweroff
exec sleep 60
"""
ENDS = {"cut": "echo o > /proc/sysrq-trigger; sleep 60", "orderly": ORDERLY}
SECOND = r"""
set -eu
mkdir -p /etc/systemd/system/wherryd.service.d /etc/systemd/system/wherry-restart.service.d
for unit in wherryd wherry-restart; do
    printf '[Service]\nEnvironment=WHERRY_ROOT=/scratch/root\n' > "/etc/systemd/system/$unit.service.d/here.conf"
done
wherry system install-units >/dev/null
systemctl daemon-reload
echo "nothing: $(wherry ps -q | wc -l)"
systemctl enable -q wherry-restart.service wherryd.socket
systemctl start wherryd.socket wherry-restart.service
echo "after: $(wherry ps --format '{{.Names}}' | sort | tr '\n' ' ')"
busybox wget -qO- http://127.0.0.1:8099/passwd | grep -q root && echo "web: served"
echo "unit: $(systemctl is-active wherry-restart.service) $(systemctl is-enabled wherry-restart.service)"
systemctl restart wherry-restart.service  # once a boot
wherry stop -t 0 always >/dev/null
systemctl restart wherry-restart.service
echo "later: $(wherry ps --format '{{.Names}}' | sort | tr '\n' ' ')"
systemctl stop wherry-restart.service
echo "unit gone: $(wherry ps -q | wc -l)"
echo "by docker: $(curl -s --unix-socket /run/wherry/docker.sock 'http://x/containers/json' |
    grep -o '"Names":\["[^"]*"' | cut -d/ -f2 | tr -d '"' | sort | tr '\n' ' ')"
wherry rm -f $(wherry ps -aq) >/dev/null
"""


def boot(disk: Path, script: str, busybox: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    layout = busybox.removeprefix("oci:")
    words = [str(VM_RUN), "--systemd", "--timeout", str(SECONDS), "--disk", "2G", "--disk-file", str(disk),
             "--rw", layout, *checkout(), "--env", f"PATH={path}", "--env", "WHERRY_ROOT=/scratch/root",
             "--env", f"BUSYBOX={layout}", "--shell", script]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS + 60, check=False)


@pytest.mark.seconds(PREPARE_SECONDS + 2 * SECONDS + 120)
@pytest.mark.parametrize("end", ENDS)
def test_policies_over_a_reboot(tmp_path: Path, busybox: str, end: str) -> None:
    prepare()
    disk = tmp_path / "disk"
    began = time.monotonic()
    first = boot(disk, FIRST + ENDS[end], busybox)
    assert time.monotonic() - began < 75, "the end of the host waits for containers"  # systemd's own patience is 90 s
    assert first.stdout.strip() == "before: always failure plain unless web", first.stderr[-4000:]
    second = boot(disk, SECOND, busybox)
    assert second.returncode == 0, second.stdout + second.stderr[-4000:]
    found = dict(line.split(": ", 1) for line in second.stdout.splitlines() if ": " in line)
    assert found["nothing"] == "0"
    assert found["after"].split() == ["always", "hand", "unless", "web"]
    assert found["web"] == "served"
    assert found["unit"] == "active enabled"
    assert found["later"].split() == found["by docker"].split() == ["hand", "unless", "web"]
    assert found["unit gone"] == "3", "its end ends nothing"
