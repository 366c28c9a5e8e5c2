"""config.json to a plan. Pure: no I/O, no clock, no environment. What the host is like comes in as HostFacts.

This file is the front; the order of a start lives in compile_create.py and compile_exec.py.
"""

from __future__ import annotations

from wherry.model import Json
from wherry.oci.facts import HostFacts
from wherry.oci.how import LaunchHow, MonitorHow, Target, Timer
from wherry.oci.plan import Plan

__all__ = ["LaunchHow", "MonitorHow", "Target", "Timer", "compile_create", "compile_exec"]


def compile_create(config: Json, bundle: str, facts: HostFacts, how: LaunchHow) -> Plan:
    """The plan that makes the container of `config` (validated) and starts its process."""
    from wherry.oci.compile_create import create

    return create(config, bundle, facts, how)


def compile_exec(process: Json, target: Target, facts: HostFacts, how: LaunchHow) -> Plan:
    """The shorter plan that runs `process` inside the running container `target`."""
    from wherry.oci.compile_exec import execute

    return execute(process, target, facts, how)
