"""`spec`: a config.json to start from, a shell in a closed-up container, as `runc spec` writes one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from wherry.errors import Kind, WherryError
from wherry.model import Json

from .world import World

if TYPE_CHECKING:
    from .flags import Values

__all__ = ["do_spec", "example", "rootless"]

_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def do_spec(_world: World, _words: Sequence[str], values: Values) -> None:
    """Write it into the bundle; EXISTS rather than overwrite one."""
    path = os.path.join(values["bundle"] or ".", "config.json")
    found = rootless(example(), os.geteuid(), os.getegid()) if values["rootless"] else example()
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(found, indent="\t") + "\n")
    except FileExistsError:
        raise WherryError(Kind.EXISTS, f"{path} is there already", hint="remove it first") from None
    except OSError as error:
        raise WherryError(Kind.PRECONDITION, f"cannot write {path}: {error.strerror}") from error


def example() -> Json:
    """The config; its root is the directory `rootfs` beside it."""
    from wherry.oci import defaults

    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {
        "ociVersion": "1.3.0",
        "process": {
            "terminal": True, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": [path, "TERM=xterm"], "cwd": "/",
            "capabilities": defaults.capabilities(_CAPABILITIES), "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "wherry",
        "mounts": defaults.mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": defaults.namespaces(),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }  # fmt: skip


def rootless(config: Json, uid: int, gid: int) -> Json:
    """The same for a user without rights: mapped alone, in the host's network, with nothing that needs more ids (a
    terminal's group), a sysfs of a network of its own, or a cgroup."""
    linux = {key: value for key, value in config["linux"].items() if key != "resources"}
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "network"] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    return {**config, "mounts": [_unprivileged(mount) for mount in config["mounts"]], "linux": linux}


def _unprivileged(mount: Json) -> Json:
    if mount["destination"] == "/sys":
        options = ["rbind", "nosuid", "noexec", "nodev", "ro"]
        return {"destination": "/sys", "type": "none", "source": "/sys", "options": options}
    options = [word for word in mount["options"] if not word.startswith(("uid=", "gid="))]
    return {**mount, "options": options}
