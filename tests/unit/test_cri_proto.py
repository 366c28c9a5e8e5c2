"""The project's own api.proto says what Kubernetes' does, where that can be had: in the cache of Go's modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from wherry.daemon.cri import api_pb2 as pb
from wherry.daemon.cri import services


def theirs(scratch: Path) -> Any:
    """Kubernetes' descriptor of runtime/v1, compiled from the newest module that is here."""
    pytest.importorskip("grpc_tools")
    try:
        said = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("Go is not installed")
    found = sorted(Path(said.stdout.strip()).glob("k8s.io/cri-api@v0.37*/pkg/apis/runtime/v1/api.proto"))
    if not found:
        pytest.skip("Kubernetes' cri-api 0.37 is not in the cache of Go's modules")
    out = scratch / "theirs.binpb"
    words = ["-m", "grpc_tools.protoc", f"-I{found[-1].parent}", f"--descriptor_set_out={out}", "api.proto"]
    subprocess.run([sys.executable, *words], check=True, timeout=60)
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def methods(file: Any) -> set[tuple[str, str, str, str, bool]]:
    return {
        (service.name, method.name, method.input_type, method.output_type, method.server_streaming)
        for service in file.service
        for method in service.method
    }


def test_names_numbers_and_types_are_those_of_kubernetes(tmp_path: Path) -> None:
    other = theirs(tmp_path)
    ours = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == other.package
    for part in ("message_type", "enum_type"):
        have, want = ({one.name: one for one in getattr(file, part)} for file in (ours, other))
        assert have == want
    assert methods(ours) == methods(other)


def test_secrets_are_marked() -> None:
    fields = pb.AuthConfig.DESCRIPTOR.fields
    marked = {field.name for field in fields if field.GetOptions().debug_redact}
    assert marked == {"password", "auth", "identity_token", "registry_token"}


def test_both_services_are_whole() -> None:
    assert services.SERVICES == ("RuntimeService", "ImageService")
    streaming = {method.name for name in services.SERVICES for method in services.methods(name) if method.streams}
    assert streaming == {
        "GetContainerEvents", "StreamContainers", "StreamContainerStats", "StreamImages", "StreamPodSandboxes",
        "StreamPodSandboxMetrics", "StreamPodSandboxStats",
    }  # fmt: skip
