"""A RuntimeClass handler named in the settings, as a kubelet uses it: crun and runc make the container, and nobody sees
a difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from helpers.cri import Wherryd
from helpers.kubelet import Kubelet, code_of
from helpers.wherry import until


@pytest.mark.parametrize("name", ["crun", "runc"])
def test_a_handler_makes_the_container(name: str, test_id: str, tmp_path: Path, busybox: str) -> None:
    program = shutil.which(name) or pytest.skip(f"{name} is not installed")
    with Wherryd(test_id, tmp_path, f'[handlers]\n{name} = "{program}"\n') as wherryd:
        kubelet = Kubelet(wherryd, wherryd.load(busybox), tmp_path / "logs")
        assert {found.name for found in kubelet("Status").runtime_handlers} == {"", "wherry", name}
        config = kubelet.config("p")
        pod = kubelet("RunPodSandbox", config=config, runtime_handler=name).pod_sandbox_id
        kubelet.configs[pod] = config
        assert kubelet("PodSandboxStatus", pod_sandbox_id=pod).status.runtime_handler == name
        container = kubelet.run(pod, "c", "sh", "-c", "echo hello; sleep 1000")
        log = Path(kubelet.status(container).log_path)
        until(lambda: "hello" in log.read_text(), 20)
        assert kubelet.output(container, "echo", "entered") == "entered\n"
        kubelet.stop(container)
        assert kubelet.status(container).exit_code == 137
        with code_of(grpc.StatusCode.INVALID_ARGUMENT):
            kubelet("RunPodSandbox", config=kubelet.config("other"), runtime_handler="none")
