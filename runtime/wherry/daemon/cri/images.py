"""ImageService: images of this node. Decides how they are named to a kubelet.

Since Kubernetes 1.36 an image has one id on a node, which is its id, image_id and image_ref alike: ours is the digest
of its config.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from wherry.engine.values import RegistryLogin
from wherry.errors import Kind, WherryError
from wherry.model import ImageRecord

from . import api_pb2 as pb

if TYPE_CHECKING:
    from .parts import Parts

__all__ = ["Images", "login", "message"]

_ID_MAX = (1 << 32) - 1


class Images:
    """The calls."""

    def __init__(self, parts: Parts) -> None:
        self._engine, self._work, self._joined = parts.engine, parts.work, parts.joined
        self._pull = parts.measures.pulling("cri", parts.engine.pull_as)

    async def ListImages(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        """All, or the one that the filter names."""
        return pb.ListImagesResponse(images=await self._work.look(self._listed, request.filter.image.image))

    async def StreamImages(self, request: pb.StreamImagesRequest) -> AsyncIterator[pb.StreamImagesResponse]:
        """The same, one by one."""
        for image in await self._work.look(self._listed, request.filter.image.image):
            yield pb.StreamImagesResponse(images=[image])

    def _listed(self, name: str) -> list[pb.Image]:
        if name:
            found = self._found(name)
            return [message(found)] if found else []
        return [message(record) for record in self._engine.image_records()]

    def _found(self, name: str) -> ImageRecord | None:
        try:
            return self._engine.image_record(name)
        except WherryError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return None

    async def ImageStatus(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """One image; none in the answer where it is not here."""
        name = _name(request.image)
        found = await self._work.look(self._found, name)
        if found is None:
            return pb.ImageStatusResponse()
        info = {"info": json.dumps(await self._work.look(self._engine.inspect, found.id, "image"))}
        return pb.ImageStatusResponse(image=message(found), info=info if request.verbose else {})

    async def PullImage(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """Fetch it, by these credentials or none; its id on this node."""
        name, known = _name(request.image), login(request.auth)
        if handler := request.image.runtime_handler:
            await self._work.look(self._check_handler, handler)

        async def pull() -> ImageRecord:
            return await self._work.fetch(self._pull, name, known)

        record = await self._joined.do(("pull", name, known), pull)
        return pb.PullImageResponse(image_ref=record.id)

    def _check_handler(self, name: str) -> None:
        """Images are the same for all handlers; one that is not there is a mistake of the caller's."""
        known = self._engine.pod_features().handlers
        if name not in known:
            raise WherryError(Kind.INVALID, f"there is no handler {name[:80]!r}", hint=f"known: {', '.join(known)}")

    async def RemoveImage(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """Remove it with all its names; one that is not here is success."""
        name = _name(request.image)
        await self._work.change(self._removed, name)
        return pb.RemoveImageResponse()

    def _removed(self, name: str) -> None:
        if (found := self._found(name)) is not None:
            try:
                self._engine.remove_image(found.id, force=True)
            except WherryError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise

    async def ImageFsInfo(self, _request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """What images take, and what the writable layers of containers take; both lie below ROOT."""
        images, containers = await self._work.look(self._engine.image_usage)
        place, now = pb.FilesystemIdentifier(mountpoint=self._engine.place.root), time.time_ns()

        def told(used: tuple[int, int]) -> pb.FilesystemUsage:
            taken, inodes = pb.UInt64Value(value=used[0]), pb.UInt64Value(value=used[1])
            return pb.FilesystemUsage(timestamp=now, fs_id=place, used_bytes=taken, inodes_used=inodes)

        return pb.ImageFsInfoResponse(image_filesystems=[told(images)], container_filesystems=[told(containers)])


def _name(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise WherryError(Kind.INVALID, "the request names no image")
    return spec.image


def message(record: ImageRecord) -> pb.Image:
    """An image as the CRI tells of it."""
    tags, digests = _named(record)
    user = record.config.user.partition(":")[0]
    made = pb.Image(
        id=record.id, repo_tags=tags, repo_digests=digests, size=max(record.size, 1), spec=pb.ImageSpec(image=record.id)
    )
    if user.isascii() and user.isdecimal() and int(user) <= _ID_MAX:
        made.uid.value = int(user)
    elif user:
        made.username = user
    else:
        made.uid.value = 0
    return made


def _named(record: ImageRecord) -> tuple[list[str], list[str]]:
    """Its tags, and the digests by which the repositories of its names know it."""
    tags = [name for name in record.names if "@" not in name]
    return tags, list(dict.fromkeys(_digests(record)))


def _digests(record: ImageRecord) -> Iterator[str]:
    for name in record.names:
        if "@" in name:
            yield name
        else:
            yield f"{name.rpartition(':')[0]}@{record.target or record.manifest}"


def login(auth: pb.AuthConfig) -> RegistryLogin | None:
    """What a registry may be told; None for nothing. `server_address` "" is the registry of the image."""
    server = auth.server_address
    if auth.registry_token:
        return RegistryLogin("", auth.registry_token, server, "bearer")
    if auth.identity_token:
        return RegistryLogin(auth.username, auth.identity_token, server, "identity")
    if auth.username or auth.password:
        return RegistryLogin(auth.username, auth.password, server)
    if auth.auth:
        return _decoded(auth.auth, server)
    return None


def _decoded(text: str, server: str) -> RegistryLogin:
    """docker's auth: base64 of USER:PASSWORD."""
    try:
        user, colon, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise WherryError(Kind.INVALID, "the auth of the request is no base64 of USER:PASSWORD")
    return RegistryLogin(user, secret.rstrip("\0"), server)
