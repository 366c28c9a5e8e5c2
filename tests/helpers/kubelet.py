"""A kubelet's calls on a runtime, in a few words: pods, containers, what they logged; each told as the CRI tells it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from wherry.daemon.cri import api_pb2 as api

from .cri import Wherryd

__all__ = ["DEADLINE", "Kubelet", "code_of", "log_lines"]

DEADLINE = 60
#: RFC 3339 with nanoseconds, stream, F (whole) or P (part), text: the CRI's log format
_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)", re.DOTALL)


class LogLine(NamedTuple):
    """One whole line of a container's log."""

    stream: str
    text: str


class Kubelet:
    """The calls by name, on whatever Wherryd runs at the moment."""

    def __init__(self, wherryd: Wherryd, image: str, logs: Path) -> None:
        self.wherryd, self.image, self.logs = wherryd, image, logs
        self.configs: dict[str, Any] = {}

    def __call__(self, method: str, *, seconds: float = DEADLINE, **fields: Any) -> Any:
        """One call with a request of these fields."""
        stub = self.wherryd.images if "Image" in method else self.wherryd.runtime
        return getattr(stub, method)(getattr(api, f"{method}Request")(**fields), timeout=seconds)

    # ---- pods

    def config(self, name: str, *, network: bool = False, cgroup: str = "", **linux: Any) -> Any:
        """A pod on the host's network, or with one of its own."""
        options = api.NamespaceOption(network=api.POD if network else api.NODE, pid=api.CONTAINER)
        context = api.LinuxSandboxSecurityContext(namespace_options=options)
        return api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="tests"),
            hostname=name if network else "", log_directory=str(self.logs / name), labels={"test": name},
            linux=api.LinuxPodSandboxConfig(security_context=context, cgroup_parent=cgroup, **linux),
        )  # fmt: skip

    def pod(self, name: str, **more: Any) -> str:
        """RunPodSandbox; its id."""
        config = self.config(name, **more)
        made = str(self("RunPodSandbox", config=config).pod_sandbox_id)
        self.configs[made] = config
        return made

    def stop_pod(self, pod: str) -> None:
        self("StopPodSandbox", pod_sandbox_id=pod)

    def remove_pod(self, pod: str) -> None:
        self("RemovePodSandbox", pod_sandbox_id=pod)

    def pods(self) -> dict[str, int]:
        """State by id of all pods."""
        return {one.id: one.state for one in self("ListPodSandbox").items}

    # ---- containers

    def create(self, pod: str, name: str, *command: str, **more: Any) -> str:
        """CreateContainer; its id. `linux`: a LinuxContainerConfig."""
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name), image=api.ImageSpec(image=self.image), command=command,
            log_path=f"{name}.log", **more,
        )  # fmt: skip
        asked = {"pod_sandbox_id": pod, "config": config, "sandbox_config": self.configs[pod]}
        return str(self("CreateContainer", **asked).container_id)

    def start(self, container: str) -> None:
        self("StartContainer", container_id=container)

    def run(self, pod: str, name: str, *command: str, **more: Any) -> str:
        """Create and start."""
        made = self.create(pod, name, *command, **more)
        self.start(made)
        return made

    def stop(self, container: str, grace: int = 0) -> None:
        self("StopContainer", container_id=container, timeout=grace)

    def remove(self, container: str) -> None:
        self("RemoveContainer", container_id=container)

    def status(self, container: str) -> Any:
        """ContainerStatus."""
        return self("ContainerStatus", container_id=container).status

    def containers(self) -> dict[str, int]:
        """State by id of all containers."""
        return {one.id: one.state for one in self("ListContainers").containers}

    def exec(self, container: str, *command: str, timeout: int = 20) -> Any:
        """ExecSync's answer."""
        return self("ExecSync", container_id=container, cmd=command, timeout=timeout)

    def output(self, container: str, *command: str) -> str:
        """What a command that succeeds says."""
        done = self.exec(container, *command)
        assert done.exit_code == 0, done
        return str(done.stdout.decode())

    # ---- all

    def remove_everything(self) -> None:
        """Every pod, some at a time."""
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(self._end, pod) for pod in self.pods()]:
                done.result()

    def _end(self, pod: str) -> None:
        self.stop_pod(pod)
        self.remove_pod(pod)

    def several(self, names: Sequence[str], *command: str, **more: Any) -> dict[str, str]:
        """Pods of these names with a container each, four at a time: its container by pod."""
        with ThreadPoolExecutor(4) as pool:
            return dict(pool.map(partial(self._whole, command, more), names))

    def _whole(self, command: Sequence[str], more: dict[str, Any], name: str) -> tuple[str, str]:
        pod = self.pod(name, **more)
        return pod, self.run(pod, "c", *command)


def log_lines(path: Path) -> list[LogLine]:
    """The whole lines of a log in the CRI's format, parts joined; AssertionError where it is not in that."""
    return list(_joined(path))


def _joined(path: Path) -> Iterator[LogLine]:
    parts: dict[bytes, bytes] = {}
    for line in path.read_bytes().splitlines():
        match = _LINE.fullmatch(line)
        assert match, f"not a line of a CRI log: {line!r}"
        stream, tag, text = match.groups()
        parts[stream] = parts.get(stream, b"") + text
        if tag == b"F":
            yield LogLine(stream.decode(), parts.pop(stream).decode())
    assert not parts, f"a line without an end: {parts}"


@contextlib.contextmanager
def code_of(*codes: grpc.StatusCode) -> Iterator[None]:
    """The call in the block ends with one of these codes."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    assert raised.value.code() in codes, raised.value
