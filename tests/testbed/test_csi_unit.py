"""scripts/systemd/wherry-csi.service as it is: Ready means served, and users' mounts are not the driver's to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_spec import csi_pb2 as pb
from helpers.csi import MIB, Client, eventually, loops, mounts_below
from helpers.tools import run

pytestmark = pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="no systemd in this boot")

UNIT = "wherry-csi.service"
FILE = Path(__file__).resolve().parents[2] / "scripts" / "systemd" / UNIT
SOCKET = Path("/run/wherry/csi.sock")
CONFIG = Path("/etc/wherry/csi.toml")


def systemctl(*words: str) -> str:
    return str(run("systemctl", *words).stdout).strip()


def main_pid() -> int:
    return int(systemctl("show", "-PMainPID", UNIT))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    """A started unit, unchanged, with one pool; the guest's /etc and /usr are lost with it."""
    pool = tmp_path / "pool"
    pool.mkdir()
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(f'[[pool]]\nname = "one"\npath = "{pool}"\nbackend = "image"\n')
    Path("/usr/local/bin/wherry-csi").unlink(missing_ok=True)
    Path("/usr/local/bin/wherry-csi").symlink_to(Path(sys.executable).parent / "wherry-csi")
    shutil.copy(FILE, f"/run/systemd/system/{UNIT}")
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    yield pool
    subprocess.run(["systemctl", "stop", UNIT], check=False)
    os.unlink(f"/run/systemd/system/{UNIT}")
    CONFIG.unlink()
    systemctl("daemon-reload")


@pytest.fixture
def client(pool: Path, tmp_path: Path) -> Iterator[Client]:
    made = Client(str(SOCKET), tmp_path)
    yield made
    if systemctl("show", "-PActiveState", UNIT) == "active":
        made.sweep()
    made.close()


def test_the_unit_is_one_that_systemd_knows(pool: Path) -> None:
    said = run("systemd-analyze", "verify", f"/run/systemd/system/{UNIT}", check=False)
    own = [line for line in (said.stdout + said.stderr).splitlines() if UNIT in line]
    assert not own, "\n".join(own)


def test_active_means_served(pool: Path, client: Client) -> None:
    """`systemctl start` of Type=notify returned: the first call is answered, by a driver in the host's mounts."""
    assert systemctl("show", "-PActiveState", UNIT) == "active"
    assert client.call("Probe", pb.ProbeRequest(), seconds=2).ready.value
    assert os.readlink(f"/proc/{main_pid()}/ns/mnt") == os.readlink("/proc/1/ns/mnt")
    assert SOCKET.stat().st_mode & 0o777 == 0o600
    assert SOCKET.parent.stat().st_mode & 0o777 == 0o711
    node = client.call("NodeGetInfo", pb.NodeGetInfoRequest()).node_id
    assert node == os.uname().nodename


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
def test_every_verb_is_within_what_the_unit_allows(client: Client, block: bool) -> None:
    """Capabilities, system calls and devices that the hardening leaves are enough."""
    volume = client.create("whole", 64 * MIB, block=block).volume_id
    target = client.use(volume, block=block)
    snapshot = client.snapshot(volume, "now").snapshot_id
    client.expand(volume, 96 * MIB)
    client.node_expand(volume, target, 96 * MIB)
    assert client.stats(volume, target).usage[0].total > 64 * MIB
    client.leave(volume)
    client.unsnapshot(snapshot)
    client.delete(volume)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_published_volumes_survive_it(client: Client, how: str) -> None:
    """A file that is open in a volume goes on over a restart and over a kill -9; the next driver unpublishes it."""
    volume = client.create("kept").volume_id
    target = client.use(volume)
    first = main_pid()
    with open(target / "log", "w", buffering=1) as file:
        file.write("before\n")
        if how == "restart":
            systemctl("restart", UNIT)
        else:
            os.kill(first, signal.SIGKILL)
            eventually(lambda: main_pid() not in (0, first), 20, "systemd starts another")
            eventually(lambda: systemctl("show", "-PActiveState", UNIT) == "active", 20)
        file.write("after\n")
    assert main_pid() != first
    assert (target / "log").read_text() == "before\nafter\n"
    again = client.publish(volume)  # idempotent: it knows what the one before had published
    assert (again / "log").exists()
    client.unpublish(volume)
    client.unstage(volume)


def test_stop_leaves_what_users_have_mounted(pool: Path, client: Client, tmp_path: Path) -> None:
    volume = client.create("in-use").volume_id
    target = client.use(volume)
    (target / "data").write_text("here")
    before = mounts_below(tmp_path)
    systemctl("stop", UNIT)
    assert mounts_below(tmp_path) == before
    assert (target / "data").read_text() == "here"
    assert systemctl("show", "-PResult", UNIT) == "success"
    systemctl("start", UNIT)
    client.leave(volume)
    client.delete(volume)
    assert not loops(pool)
