"""Delegation to the address plugin that the configuration names (specification, section 4).

Decides how it is found and called: by CNI_PATH, as any runtime would. One shortcut: when the program found is
host-local of the same installation, the call stays in this process.
"""

from __future__ import annotations

import json
import os
import subprocess

from wherry_cni import skel
from wherry_cni.errors import BAD_CONFIG, BAD_ENV, INTERNAL, CniError
from wherry_cni.results import Json, from_previous
from wherry_cni.skel import Call

__all__ = ["delegate"]

_TIMEOUT = 50
_OWN = "host-local"


def delegate(call: Call, verb: str) -> Json:
    """The plugin's result in the shape of 1.1.0 (ADD), {} for the other verbs."""
    name = _name(call)
    program = _find(call, name)
    env = {**call.env, "CNI_COMMAND": verb}
    config = json.dumps(call.config).encode()
    if name == _OWN and _ours(program, call.program):
        from wherry_cni.host_local import VERBS

        code, out = skel.capture(VERBS, [program], env, config)
    else:
        code, out = _execute(program, env, config)
    if code:
        raise _refused(name, code, out)
    if verb != "ADD":
        return {}
    return _result(name, out)


def _ours(program: str, caller: str) -> bool:
    """Whether it lies beside the caller; one called by the front (wherry-cni/bridge) is beside what links to that."""
    beside = os.path.dirname(caller)
    return bool(beside) and beside in (os.path.dirname(program), os.path.basename(os.path.realpath(program)))


def _name(call: Call) -> str:
    name = (call.config.get("ipam") or {}).get("type")
    if not isinstance(name, str) or not name or "/" in name:
        raise CniError(BAD_CONFIG, "ipam.type does not name a plugin")
    return name


def _find(call: Call, name: str) -> str:
    for directory in call.path:
        program = os.path.join(directory, name)
        if os.path.isfile(program) and os.access(program, os.X_OK):
            return program
    raise CniError(BAD_ENV, f'IPAM plugin "{name}" is not in CNI_PATH', ":".join(call.path))


def _execute(program: str, env: dict[str, str], config: bytes) -> tuple[int, bytes]:
    try:
        done = subprocess.run([program], input=config, env=env, stdout=subprocess.PIPE, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CniError(INTERNAL, f"IPAM plugin {program}: {problem}") from None
    return done.returncode, done.stdout


def _refused(name: str, code: int, out: bytes) -> CniError:
    try:
        told = json.loads(out)
        return CniError(int(told["code"]), f"{name}: {told['msg']}", str(told.get("details", "")))
    except (ValueError, KeyError, TypeError):
        return CniError(INTERNAL, f"IPAM plugin {name} failed with exit code {code} and no CNI error")


def _result(name: str, out: bytes) -> Json:
    try:
        result = from_previous({"prevResult": json.loads(out)})
    except ValueError:
        result = None
    if result is None:
        raise CniError(INTERNAL, f"IPAM plugin {name} printed no CNI result")
    return result
