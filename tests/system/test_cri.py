"""wherryd as a kubelet sees it: every call of the CRI once, and what it says to requests that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.cri import Wherryd
from wherry.daemon.cri import api_pb2 as api

pytestmark = pytest.mark.root


@pytest.fixture
def wherryd(test_id: str, tmp_path: Path, private_network: object) -> Iterator[Wherryd]:
    """One of the test's own."""
    with Wherryd(test_id, tmp_path) as made:
        yield made


def test_who_it_is_and_how_it_is(wherryd: Wherryd) -> None:
    version = wherryd.runtime.Version(api.VersionRequest(), timeout=10)
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "wherry", "v1")
    status = wherryd.runtime.Status(api.StatusRequest(verbose=True), timeout=10)
    assert {found.type: found.status for found in status.status.conditions} == {
        "RuntimeReady": True, "NetworkReady": True,
    }  # fmt: skip
    assert [found.name for found in status.runtime_handlers] == ["", "wherry"]
    assert status.features.supplemental_groups_policy
    driver = wherryd.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=10).linux.cgroup_driver
    assert driver == api.CGROUPFS


def test_images(wherryd: Wherryd, busybox: str) -> None:
    image = wherryd.load(busybox)
    found = wherryd.images.ListImages(api.ListImagesRequest(), timeout=10).images
    assert [one.id for one in found] == [image]
    spec = api.ImageSpec(image=image)
    told = wherryd.images.ImageStatus(api.ImageStatusRequest(image=spec), timeout=10).image
    assert told == found[0]
    assert told.size > 0
    wherryd.images.RemoveImage(api.RemoveImageRequest(image=spec), timeout=10)
    wherryd.images.RemoveImage(api.RemoveImageRequest(image=spec), timeout=10)
    assert not wherryd.images.ImageStatus(api.ImageStatusRequest(image=spec), timeout=10).HasField("image")
