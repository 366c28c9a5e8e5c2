"""What a container's row keeps of its being in a pod, beside what every row has.

`config["member"]`: MemberOptions as asked; `config["user"]`: its first process's uid, gid and gids, as resolved;
`config["volumes"]`: images that are mounted (ImageVolume). Decides the name, and what of it the docker-like verbs see.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from wherry.engine import codec
from wherry.engine.db import Container
from wherry.engine.users import User
from wherry.model import Attachment, ImageRecord, Json, RunOptions

from . import mounts, spec
from .values import IdMap, Member, MemberOptions, PodMount, PodOptions, PodSecurity

__all__ = ["config", "name", "options", "told", "volumes"]

_MAPS = {"uids": codec.many(IdMap), "gids": codec.many(IdMap)}
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "mounts": lambda items: tuple(codec.plain(PodMount, item, _MAPS) for item in items),
    "security": codec.of(PodSecurity),
}


def name(pod: PodOptions, asked: MemberOptions) -> str:
    """k8s_NAME_POD_NAMESPACE_UID_ATTEMPT: what an operator knows, and one of a kind."""
    return f"k8s_{asked.name}_{pod.name}_{pod.namespace}_{pod.uid}_{asked.attempt}"


def options(row: Container) -> MemberOptions:
    """As it was asked."""
    return codec.plain(MemberOptions, row.config["member"], _OPTIONS)


def told(row: Container) -> Member:
    """What it tells of its container, whose state is not in it."""
    user = row.config["user"]
    return Member(
        row.id, row.pod, options(row), row.image, row.created, "created", uid=user["uid"], gid=user["gid"],
        gids=tuple(user["gids"]), tty=bool(row.config["options"].get("tty")),
    )  # fmt: skip


def volumes(row: Container) -> tuple[mounts.ImageVolume, ...]:
    """Its images that are mounted."""
    return tuple(codec.plain(mounts.ImageVolume, item) for item in row.config["volumes"])


def config(  # noqa: PLR0917  # what a create knows
    pod: str, asked: MemberOptions, record: ImageRecord, made: mounts.Made, user: User, hostname: str, signal: int,
    file: str,
) -> Json:
    """The row's config, in the shape that create.py gives every container. `file`: of the log (logs.py)."""
    layers = [*record.config.diff_ids, *(layer for volume in made.images for layer in volume.layers)]
    driver = "local" if asked.log else "none"
    log = {"driver": driver, "monitor": "cri" if asked.log else "none", "file": file, "bytes": 0, "files": 1}
    return {
        "options": codec.encode(_run_options(pod, asked)),
        "image_config": codec.encode(record.config._replace(history=())),
        "image_name": asked.user_image or asked.image,
        "layers": list(dict.fromkeys(layers)),
        "labels": dict(asked.labels),
        "argv": list(spec.argv(asked, record.config)),
        "hostname": hostname,
        "stop_signal": signal,
        "health": None,
        "log": log,
        "ports": [],
        "exposed": [],
        "mounts": mounts.inspect_rows(made),
        "member": codec.encode(asked._replace(mounts=tuple(_resolved(mount, made) for mount in asked.mounts))),
        "user": {"uid": user.uid, "gid": user.gid, "gids": list(user.groups)},
        "volumes": [codec.encode(volume) for volume in made.images],
    }


def _resolved(mount: PodMount, made: mounts.Made) -> PodMount:
    """An image by its id on this node, whatever it was called."""
    images = {volume.target: volume.image for volume in made.images}
    return mount._replace(image=images[os.path.normpath(mount.target)]) if mount.image else mount


def _run_options(pod: str, asked: MemberOptions) -> RunOptions:
    security = asked.security
    kind, _, target = security.pid.partition(":")
    pid = {"container": "", "pod": f"pod:{pod}", "host": "host"}.get(kind, f"container:{target}")
    return RunOptions(
        image=asked.user_image or asked.image,
        command=asked.args,
        entrypoint=asked.command or None,
        interactive=asked.stdin,
        tty=asked.tty,
        detach=True,
        env=asked.env,
        workdir=asked.workdir,
        user=security.user,
        network=(Attachment(f"pod:{pod}"),),
        cap_add=security.cap_add,
        cap_drop=security.cap_drop,
        privileged=security.privileged,
        read_only=security.readonly_root,
        labels=asked.labels,
        annotations=asked.annotations,
        stop_signal=asked.stop_signal,
        pid=pid,
        oom_score_adj=asked.oom_score_adj,
    )
