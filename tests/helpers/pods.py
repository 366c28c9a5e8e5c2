"""Pods of a test: an engine beside its command line, a CNI list that leaves nothing behind, and a plugin that tells
what it is called with and fails when told to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from wherry.engine.engine import Engine
from wherry.engine.house import House
from wherry.engine.pods.values import Held, IdMap, PodOptions
from wherry.model import Place

from .wherry import Wherry

__all__ = ["MAPS", "Pods", "namespace", "spy"]

MAPS = (IdMap(0, 300000, 65536),)
_SUBNETS = [[{"subnet": "10.88.9.0/24"}], [{"subnet": "fd00:88:9::/64"}]]
_SPY = r"""#!/bin/sh
# every call: a directory with its environment and its configuration
n=$(ls {top} | wc -l); mkdir {top}/$n-$CNI_COMMAND; env > {top}/$n-$CNI_COMMAND/env; cat > {top}/$n-$CNI_COMMAND/config
[ -e {top}.fail-$CNI_COMMAND ] && {{ echo '{{"cniVersion":"1.0.0","code":11,"msg":"told to fail"}}'; exit 1; }}
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"x"}}],'\
'"ips":[{{"address":"192.0.2.7/24","interface":0}},{{"address":"2001:db8::7/64","interface":0}}]}}'
exit 0
"""


class Pods:
    """Pods through the engine's facade. `warnings`: what it warned of."""

    def __init__(self, wherry: Wherry, tmp_path: Path) -> None:
        self.wherry, self.warnings = wherry, list[str]()
        self.lists = tmp_path / "net.d"
        self.lists.mkdir()
        (tmp_path / "bin").mkdir()
        self.bin = tmp_path / "bin"
        wherry.config.write_text(
            f'{wherry.config.read_text()}cni_conf = "{self.lists}"\ncni_path = "{self.bin}"\n'
            'pod_cgroup_driver = "cgroupfs"\n'
        )
        ipam = {"type": "host-local", "ranges": _SUBNETS, "dataDir": str(tmp_path / "leases")}
        self.table = f"wherry_{wherry.id}"
        ptp = {"type": "ptp", "ipam": ipam}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "nftTable": self.table}
        self.write_list("10-pods", {"cniVersion": "1.0.0", "name": "podnet", "plugins": [ptp, portmap]})
        self.engine = self.open()
        self._count = 0

    def open(self) -> Engine:
        """An engine of its own, as of another process."""
        where = Place(str(self.wherry.root), str(self.wherry.state), str(self.wherry.config))
        return Engine(where, self.warnings.append)

    @property
    def house(self) -> House:
        """What is behind the facade."""
        return self.engine._house

    def write_list(self, name: str, conflist: dict[str, Any]) -> None:
        """A CNI list of the host's."""
        (self.lists / f"{name}.conflist").write_text(json.dumps(conflist))

    def options(self, **given: Any) -> PodOptions:
        """A new pod's."""
        self._count += 1
        return PodOptions(**{"name": f"p{self._count}", "namespace": "ns", "uid": f"u{self._count}", **given})

    def run(self, **given: Any) -> str:
        """Make one; its id."""
        return self.engine.run_pod(self.options(**given))

    def held(self, pod: str) -> Held:
        """What a ready one holds."""
        found = self.engine.pod(pod).held
        assert found is not None
        return found

    def leftovers(self) -> list[str]:
        """Whatever of pods is on the disk, attached, mounted or in a cgroup."""
        state, root = self.wherry.state, self.wherry.root
        places = [state / "pods", state / "netns", root / "pods"]
        left = [str(path) for place in places if place.exists() for path in place.iterdir()]
        left += [str(path) for path in state.glob("cni/results/*.json")]
        left += [str(path) for path in (self.bin.parent / "leases").glob("podnet/[0-9a-f]*[.:]*")]
        mount = self.house.facts.cgroup_mount
        left += [str(path) for path in Path(f"{mount}/{self.wherry.id}").glob("*pod*")] if mount else []
        mounts = Path("/proc/self/mountinfo").read_text()
        return left + [line for line in mounts.splitlines() if str(state) in line]

    def remove_all(self) -> None:
        """Nothing of them stays."""
        for pod in self.engine.pods():
            self.engine.remove_pod(pod.id)
        self.engine.close()
        subprocess.run(["nft", "delete", "table", "inet", self.table], capture_output=True, check=False)


def spy(pods: Pods, **more: Any) -> Path:
    """A list of the one plugin that tells what it is called with, and comes first. Returns the directory of its calls;
    with a file beside it named ".fail-VERB" added, it fails at that verb."""
    calls = pods.bin.parent / "calls"
    calls.mkdir()
    plugin = pods.bin / "spy"
    plugin.write_text(_SPY.format(top=calls))
    plugin.chmod(0o755)
    pods.write_list("00-spy", {"cniVersion": "1.0.0", "name": "spied", "plugins": [{"type": "spy", **more}]})
    return calls


def namespace(path: str, *words: str, kind: str = "net") -> str:
    """What a command says in a pinned namespace."""
    done = subprocess.run(["nsenter", f"--{kind}={path}", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def inode(path: str) -> int:
    """Of a namespace."""
    return os.stat(path).st_ino
