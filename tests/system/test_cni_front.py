"""Our CNI plugins as `wherry cni install` lends them: links to the front, called as a CNI runtime does, warm and cold.

Who answered is seen by links to a front that has no Python beside it: served it works, sent cold it cannot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import audit
from helpers import tools
from helpers.nethost import HOST, OUTSIDE, NetHost
from helpers.nethosts import watchers
from helpers.ociruntime import Space
from helpers.warm import Warm
from helpers.wherry import SCRIPT, Wherry, until
from wherry.engine import cni
from wherry.net import launchers

FRONT = SCRIPT.with_name("wherry-cni")
REFERENCE = Path("/usr/lib/cni")
PLUGINS = tuple(sorted(launchers.PLUGINS))
COLD = b"cannot be executed"
MAC = re.compile(rb"([0-9a-f]{2}:){5}[0-9a-f]{2}")
Done = subprocess.CompletedProcess[bytes]

pytestmark = pytest.mark.skipif(not FRONT.exists(), reason="wherry is not installed with its front")


class Runtime:
    """Calls the plugins in a directory with what the specification gives them, and little else."""

    def __init__(self, directory: Path, data: Path, **env: str) -> None:
        self.directory, self.data = directory, data
        self.env = {"PATH": os.environ["PATH"], "CNI_PATH": str(directory), **env}

    def __call__(self, plugin: str, verb: str, config: Any = None, space: str = "", **env: str) -> Done:
        body = {"cniVersion": "1.1.0", "name": "lent", "type": plugin}
        given = config if isinstance(config, bytes) else json.dumps({**body, **(config or {})}).encode()
        call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "one", "CNI_NETNS": space, "CNI_IFNAME": "eth0"}
        return subprocess.run(
            [self.directory / plugin], input=given, capture_output=True, check=False, timeout=60, cwd="/",
            env={**self.env, **call, **env},
        )  # fmt: skip

    def bridge(self, ipam: str = "host-local") -> dict[str, Any]:
        """The configuration of a bridge network."""
        return {
            "bridge": "lent0", "isGateway": True, "ipMasq": True, "nftTable": "t_lent",
            "ipam": {"type": ipam, "dataDir": str(self.data), "ranges": [[{"subnet": "10.34.0.0/24"}]],
                     "routes": [{"dst": "0.0.0.0/0"}]},
        }  # fmt: skip


@pytest.fixture
def host(wherry: Wherry, test_id: str) -> Iterator[NetHost]:
    """Its audit is that of `wherry`."""
    made = NetHost(test_id)
    yield made
    made.close()


@pytest.fixture
def cold(wherry: Wherry, host: NetHost, tmp_path: Path) -> Runtime:
    directory = tmp_path / "cold"
    directory.mkdir()
    wherry("cni", "install", directory)
    return Runtime(directory, tmp_path / "leases", WHERRY_WARM="off")


@pytest.fixture
def warm(wherry: Wherry, host: NetHost, tmp_path: Path) -> Iterator[Runtime]:
    """It is warm in the network namespace that the calls come from."""
    directory, alone = tmp_path / "warm", tmp_path / "alone/wherry-cni"
    directory.mkdir()
    alone.parent.mkdir()
    shutil.copy(FRONT, alone)
    cni.install(str(directory), front=str(alone))
    if wherry.warm:
        wherry.warm.stop()
    process = Warm({"WHERRY_STATE": str(wherry.state)})
    yield Runtime(directory, tmp_path / "leases", WHERRY_STATE=str(wherry.state))
    until(lambda: not process.children(), 5)
    process.stop()


def life(call: Runtime, host: NetHost, space: str) -> list[Done]:
    """ADD, CHECK and DEL of a chain of three plugins."""
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8089, "containerPort": 80, "protocol": "tcp"}]},
             "nftTable": "t_lent"}  # fmt: skip
    chain: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("loopback", {}, {"CNI_IFNAME": "lo"}), ("bridge", call.bridge(), {}), ("portmap", ports, {}),
    ]  # fmt: skip
    done, result = [], None
    for plugin, config, env in chain:
        before = {"prevResult": result} if plugin == "portmap" else {}
        done.append(call(plugin, "ADD", {**config, **before}, space, **env))
        assert done[-1].returncode == 0, done[-1]
        result = json.loads(done[-1].stdout)
    assert result["ips"][0]["address"] == "10.34.0.2/24"
    host.run(space, "busybox", "ping", "-c1", "-W2", OUTSIDE)
    assert "8089" in host.rules()
    for verb in ("CHECK", "DEL", "DEL"):
        done += [call(plugin, verb, {**config, "prevResult": result}, space, **env) for plugin, config, env in chain]
    assert "one/eth0" not in host.rules()
    assert "veth" not in host.links()
    return done


def told(done: Done) -> tuple[int, bytes, bytes]:
    return done.returncode, MAC.sub(b"MAC", done.stdout), done.stderr


def test_a_life_is_the_same_warm_and_cold(host: NetHost, cold: Runtime, warm: Runtime, tmp_path: Path) -> None:
    space = host.space("c")
    first = [told(done) for done in life(cold, host, space)]
    shutil.rmtree(tmp_path / "leases")  # the next address is the first one again
    assert [told(done) for done in life(warm, host, space)] == first
    assert {code for code, _, _ in first} == {0}
    assert {text for _, text, _ in first[3:]} == {b""}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_each_answers_the_same(cold: Runtime, warm: Runtime, plugin: str) -> None:
    """Also what is wrong: the answer is an error object on standard output (specification, section 5)."""
    calls: list[tuple[str, Any, dict[str, str]]] = [
        ("VERSION", None, {}), ("VERSION", b"", {}), ("STATUS", None, {}), ("NONSENSE", None, {}), ("", None, {}),
        ("ADD", b"", {}), ("ADD", b"{", {}), ("ADD", b"\xff\0" * 500, {}), ("ADD", b"[1]", {}),
        ("ADD", {"cniVersion": "9.9"}, {}), ("ADD", {"name": "../x"}, {}), ("ADD", None, {"CNI_CONTAINERID": ""}),
        ("CHECK", None, {"CNI_IFNAME": "a/b"}), ("DEL", None, {"CNI_CONTAINERID": "../../x"}),
    ]  # fmt: skip
    for verb, config, env in calls:
        first, second = cold(plugin, verb, config, **env), warm(plugin, verb, config, **env)
        assert told(first) == told(second)
        assert verb in ("VERSION", "STATUS") or (first.returncode, "code" in json.loads(first.stdout)) == (1, True)


def test_the_watcher_of_an_overlay_is_nobody_s_child(warm: Runtime, host: NetHost, tmp_path: Path) -> None:
    """A command of the warm process starts it, and it lives on: the fixture's end wants no child left."""
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"peers": [{"address": HOST, "subnets": ["10.35.0.0/24"]}]}))
    config = {"peersFile": str(peers), "bridge": "lent1", "nftTable": "t_lent",
              "ipam": {"type": "host-local", "dataDir": str(warm.data)}}  # fmt: skip
    done = warm("overlay", "ADD", config, host.space("c"))
    assert done.returncode == 0, done
    (pid,) = watchers(f"{host.name}h")
    stat = Path(f"/proc/{pid}/stat")  # the command lives on for a moment after its answer (decision 11)
    until(lambda: stat.read_text().rpartition(")")[2].split()[1] == "1", 5)
    until(lambda: "wherry-overlay" in Path(f"/proc/{pid}/cgroup").read_text(), 5)
    assert warm("overlay", "DEL", config).returncode == 0
    until(lambda: not watchers(f"{host.name}h"), 5)


def test_an_unknown_name_is_refused(cold: Runtime, warm: Runtime) -> None:
    for name in ("vlan", "x" * 200, "bridge "):
        for runtime in (cold, warm):
            (runtime.directory / name).symlink_to(os.readlink(runtime.directory / "bridge"))
        done = cold(name, "ADD")
        said = json.loads(done.stdout)
        assert (done.returncode, said["code"]) == (1, 4)
        assert f"wherry-cni/{name}"[:255] in said["msg"]
        assert COLD in warm(name, "ADD").stderr  # the warm process leaves that to Python


def test_by_its_own_name_it_says_how_it_is_called(cold: Runtime) -> None:
    done = subprocess.run([FRONT], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=cold.env, timeout=60)
    said = json.loads(done.stdout)
    assert (done.returncode, said["msg"]) == (1, "wherry-cni is no CNI plugin")
    assert "wherry cni install" in said["details"]


def test_the_address_plugin_of_the_same_installation_needs_no_process(
    host: NetHost, cold: Runtime, warm: Runtime
) -> None:
    """In a cold call the host-local of CNI_PATH, a front without Python, would fail if it were started."""
    space = host.space("c")
    for verb in ("ADD", "DEL"):
        done = cold("bridge", verb, cold.bridge(), space, CNI_PATH=str(warm.directory))
        assert done.returncode == 0, done


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference plugins (containernetworking-plugins)")
def test_a_reference_plugin_asks_ours_for_addresses(host: NetHost, warm: Runtime, tmp_path: Path) -> None:
    space = host.space("c")
    theirs = Runtime(REFERENCE, tmp_path / "leases", **{**warm.env, "CNI_PATH": str(warm.directory)})
    config = {**theirs.bridge(), "ipMasq": False, "cniVersion": "1.0.0"}
    done = theirs("bridge", "ADD", config, space)
    assert json.loads(done.stdout)["ips"][0]["address"] == "10.34.0.2/24", done
    assert theirs("bridge", "DEL", config, space).returncode == 0
    assert "10.34.0.2" not in os.listdir(tmp_path / "leases/lent")


def test_another_network_namespace_is_served_cold(host: NetHost, warm: Runtime) -> None:
    """Paths and links would be others'."""
    inside = ["nsenter", f"--net={host.space('c')}", str(warm.directory / "bridge")]
    env = {**warm.env, "CNI_COMMAND": "VERSION"}
    done = subprocess.run(inside, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=env, timeout=60)
    assert (done.returncode, COLD in done.stderr) == (125, True)


def test_a_plugin_leaves_no_warm_process(cold: Runtime, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    assert cold("bridge", "VERSION", WHERRY_STATE=str(state), WHERRY_WARM="on").returncode == 0
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if os.fsencode(state) in line and b"warm" in line]
    assert not list(state.iterdir())


def test_it_needs_nothing_of_the_environment(cold: Runtime) -> None:
    """Not even PATH: many runtimes give CNI_* alone."""
    done = subprocess.run(
        [cold.directory / "loopback"], input=b"", capture_output=True, check=False, timeout=60,
        env={"CNI_COMMAND": "VERSION"},
    )  # fmt: skip
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"], done


OF_ROOT = """
mount -t tmpfs none /run && mkdir /run/wherry
"$1" -I -c 'from wherry.warm.server import main; main("/run/wherry/warm")' & made=$!
tries=100
until env -i CNI_COMMAND=VERSION "$2/bridge" </dev/null 2>/dev/null; do
    sleep 0.1; tries=$((tries - 1)); [ $tries -gt 0 ] || break
done
kill $made
"""


def test_an_empty_environment_finds_the_warm_process_of_root(warm: Runtime) -> None:
    """In a /run of its own: /run/wherry is the host's."""
    words = ["unshare", "--mount", "sh", "-c", OF_ROOT, "sh", sys.executable, str(warm.directory)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"], done


# ---- podman calls them ----


def settings(lent: Runtime, directory: Path) -> Path:
    """containers.conf for a network of our plugins alone, and that network beside it."""
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "nftTable": "t_lent"}
    chain = {"cniVersion": "0.4.0", "name": "lent", "plugins": [{"type": "bridge", **lent.bridge()}, ports]}
    (directory / "networks").mkdir()
    (directory / "networks/lent.conflist").write_text(json.dumps(chain))
    path = directory / "containers.conf"
    path.write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime_supports_json = ["wherry-oci"]\n'
        f'[network]\nnetwork_backend = "cni"\nnetwork_config_dir = "{directory}/networks"\n'
        f'cni_plugin_dirs = ["{lent.directory}"]\n'
    )
    return path


def removed(group: str) -> bool:
    """Whether it is gone, or was not there."""
    with contextlib.suppress(OSError):
        os.rmdir(group)
    return not os.path.exists(group)


@pytest.fixture
def space(test_id: str) -> Iterator[Space]:
    """Podman's /run, and what it keeps of CNI, are of this test; the groups that it leaves are removed."""
    with Space(private=("/run", "/var/lib/cni")) as made:
        yield made
    for mount, _ in audit.cgroup_mounts():
        for path in (f"{mount}/{test_id}/conmon", f"{mount}/{test_id}"):
            until(lambda path=path: removed(path))


def test_podman_publishes_a_port_by_them(
    host: NetHost, cold: Runtime, space: Space, busybox: str, tmp_path: Path
) -> None:
    """ADD warm; DEL cold where conmon starts it, which has another OOM score."""
    tools.need("podman", "conmon")
    space.env.update(CONTAINERS_CONF=str(settings(cold, tmp_path)), WHERRY_WARM="on")
    space.run("mkdir", "/run/wherry")
    serve = 'from wherry.warm.server import main; main("/run/wherry/warm")'
    process = space.popen(sys.executable, "-I", "-c", serve)
    until(lambda: space.run("test", "-S", "/run/wherry/warm/socket", check=False).returncode == 0)
    podman = ("podman", "--runtime", SCRIPT.with_name("wherry-oci"), "--root", "/run/store", "--runroot", "/run/run",
              "--tmpdir", "/run/tmp", "--storage-driver", "vfs", "--log-level", "error")  # fmt: skip
    space.run(*podman, "pull", "-q", f"{busybox}:busybox:latest")
    image = space.run(*podman, "images", "-q").stdout.strip()
    space.run(
        *podman, "run", "-d", "--name", "web", "--network", "lent", "-p", "8090:80", "--cgroup-parent", f"/{host.name}",
        "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=10000:10000", "--log-driver", "k8s-file",
        image, "httpd", "-f", "-p", "80", "-h", "/etc",
    )  # fmt: skip
    until(lambda: host.fetch("o", "http://192.0.2.2:8090/hostname"))
    space.run(*podman, "rm", "-f", "-t", "0", "web")
    assert "8090" not in host.rules()
    assert "veth" not in host.links()
    assert process.poll() is None


def test_uninstall_takes_them_away(wherry: Wherry, cold: Runtime) -> None:
    (cold.directory / "vlan").write_text("theirs")
    assert sorted(map(os.path.basename, wherry("cni", "uninstall", cold.directory).stdout.split())) == list(PLUGINS)
    assert [path.name for path in cold.directory.iterdir()] == ["vlan"]
