"""Registries as the verbs see them: images sent there, logins, what refers to an image.

Decides what is told as an event and in which shape. Knows nothing of requests and tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from wherry.errors import Kind, WherryError
from wherry.model import ImageRecord, Json, ProgressEvent

from . import events
from .house import House

if TYPE_CHECKING:
    from wherry.image.auth import Credentials

__all__ = [
    "login", "login_again", "login_try", "logins", "logout", "pull_all", "pull_tags", "push", "referrers", "repository",
]  # fmt: skip

Progress = Callable[[ProgressEvent], None]
Asked = Callable[[str], "Credentials | None"]


def _silent(_event: ProgressEvent) -> None:
    return None


def repository(name: str) -> tuple[str, bool]:
    """The repository that a name is in, in full, and whether the name has a tag (or a digest) of its own."""
    from wherry.image.reference import Reference

    found = Reference.parse(name)
    return found.name, bool(found.digest) or ":" in name.rpartition("/")[2]


def pull_all(house: House, name: str, progress: Progress | None) -> ImageRecord:
    """Fetch an index with the images of all its platforms."""
    from wherry.image.reference import is_source

    if is_source(name):
        raise WherryError(Kind.INVALID, "--all-platforms is for registries", hint="leave it out")
    house.prepare()
    record = house.images.pull(name, None, progress or _silent, all_platforms=True)
    events.emit(house, "image", "pull", name, {"name": name})
    return record


def pull_tags(house: House, name: str, platform: str, progress: Progress | None) -> Iterator[ImageRecord]:
    """Fetch all images of a repository."""
    from . import images

    found, tagged = repository(name)
    if tagged:
        raise WherryError(Kind.INVALID, "tag can't be used with --all-tags/-a")
    for tag in house.images.tags(found):
        yield images.pull(house, f"{found}:{tag}", platform, progress)


def push(
    house: House, name: str, progress: Progress | None, *, all_tags: bool, credentials: Asked | None = None
) -> Iterator[Json]:
    """Send images; each is told once it is there. `credentials`: None is what this user has stored."""
    house.prepare()
    for pushed in house.images.push(name, progress or _silent, all_tags=all_tags, credentials=credentials):
        events.emit(house, "image", "push", pushed.name, {"name": pushed.name})
        top = pushed.descriptor
        yield {"Name": pushed.name, "Tag": pushed.tag, "Digest": top.digest, "Size": top.size}


def login(house: House, server: str, user: str, secret: str) -> str:
    """Try the credentials at the registry, then keep them."""
    from wherry.image import logins
    from wherry.image.auth import Credentials

    registry = logins.registry_of(server)
    given = Credentials(user, secret)
    return logins.store(registry, logins.verify(registry, given, house.images.reach), os.environ)


def login_try(house: House, server: str, user: str, secret: str) -> None:
    """Try credentials only."""
    from wherry.image import logins
    from wherry.image.auth import Credentials

    logins.verify(logins.registry_of(server), Credentials(user, secret), house.images.reach)


def login_again(house: House, server: str) -> bool | None:
    """Try the credentials that are kept."""
    from wherry.image import logins
    from wherry.image.auth import credentials_for

    registry = logins.registry_of(server)
    found = credentials_for(registry)
    if not found:
        return None
    try:
        logins.verify(registry, found, house.images.reach)
    except WherryError as error:
        if error.kind is not Kind.DENIED:
            raise
        return False
    return True


def logout(server: str) -> tuple[str, bool]:
    """Forget what is kept for a registry."""
    from wherry.image import auth, logins

    registry = logins.registry_of(server)
    return auth.keys_of(registry)[0], logins.forget(registry, os.environ)


def logins() -> list[str]:
    """The registries that credentials are kept for."""
    from wherry.image.logins import known

    return known(os.environ)


def referrers(house: House, name: str, artifact_type: str) -> list[Json]:
    """Ask the image's registry what refers to it; an image that is not here is looked up there."""
    return house.images.referrers(name, artifact_type)


def distribution(house: House, name: str, credentials: Asked) -> Json:
    """Ask the name's registry what it has there."""
    from wherry.image.reference import is_source

    if is_source(name):
        raise WherryError(Kind.INVALID, f"{name[:200]} is not in a registry", hint="wherry inspect shows what is here")
    house.prepare()
    return house.images.distribution(name, credentials)
