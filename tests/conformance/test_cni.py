"""The plugins are programs that any CNI runtime can call: the contract is environment, standard input and output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tools

PLUGINS = ("bandwidth", "bridge", "firewall", "host-device", "host-local", "ipvlan", "loopback", "macvlan", "overlay",
           "portmap", "ptp", "sbr", "static", "tuning")


def call(plugin: str, command: str, stdin: str) -> subprocess.CompletedProcess[str]:
    front = Path(sys.executable).with_name("wherry-cni")
    tools.need(str(front))
    env = {**os.environ, "CNI_COMMAND": command, "CNI_PATH": str(front.parent)}
    return subprocess.run(
        [plugin], executable=front, input=stdin, env=env, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("plugin", PLUGINS)
def test_version(plugin: str) -> None:
    done = call(plugin, "VERSION", json.dumps({"cniVersion": "1.0.0"}))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {"0.4.0", "1.0.0"} <= set(said["supportedVersions"])


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(
    "stdin", ["{", '{"cniVersion": "1.0.0", "name": "x"}', '{"cniVersion": "9.9.9", "name": "x", "type": "y"}']
)
def test_errors_are_json_on_standard_output(plugin: str, stdin: str) -> None:
    """CNI 1.1, section 5: cniVersion, code, msg; the parameters are missing, too."""
    done = call(plugin, "ADD", stdin)
    assert done.returncode != 0
    said = json.loads(done.stdout)
    assert isinstance(said["code"], int)
    assert said["msg"]
    assert "Traceback" not in done.stderr
