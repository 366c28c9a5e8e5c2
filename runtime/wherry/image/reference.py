"""Image names: the grammar and the normal form that docker gives them (distribution/reference).

Decides what a name means ("alpine" is docker.io/library/alpine:latest). Refuses to know where images live or whether
one exists.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from wherry.errors import Kind, WherryError

__all__ = ["DIGEST", "TAG", "Reference", "is_source"]

_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = rf"({_DOMAIN})/({_PATH}(?:/{_PATH})*)"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
DIGEST = r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}"
_HEX_ID = r"[a-f0-9]{64}"
_SOURCES = ("oci:", "oci-archive:", "docker-archive:")
_NAME_MAX = 255

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"


def is_source(text: str) -> bool:
    """Whether `text` names an image by a place on this machine (oci:DIR ...) instead of by a registry's name."""
    return text.startswith(_SOURCES)


class Reference(NamedTuple):
    """A parsed name. `tag` is "" only where a digest is given; `digest` is "" or "sha256:..."."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The normal form of a name as a user writes it; `latest` where neither tag nor digest is given."""
        return _parsed(text)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self) -> str:
        """The short form that docker shows: docker.io and library/ left out."""
        short = self.name
        if self.registry == DEFAULT_REGISTRY:
            short = self.repository.removeprefix("library/") if self.repository.count("/") == 1 else self.repository
        return short + self._suffix()

    def with_digest(self, digest: str) -> Reference:
        """The same repository at one digest, without the tag."""
        return self._replace(tag="", digest=digest)

    def stored(self) -> str:
        """The name under which an image is kept: a digest wins over a tag, as docker does."""
        return str(self.with_digest(self.digest)) if self.digest else str(self)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


@lru_cache(maxsize=16)  # an image's own name is compared with the wanted one more than once
def _parsed(text: str) -> Reference:
    if re.fullmatch(_HEX_ID, text):
        raise _invalid(text, "64 hexadecimal digits are an image id, not a name")
    rest, digest = _split_digest(text)
    registry, remainder = _split_registry(rest)
    repository, tag = _split_tag(text, remainder)
    _check_name(text, registry, repository)
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest)


def _invalid(text: str, why: str, hint: str = "") -> WherryError:
    return WherryError(Kind.INVALID, f"invalid image name {text[:300]!r}: {why}", hint=hint)


def _split_digest(text: str) -> tuple[str, str]:
    rest, at, digest = text.partition("@")
    if at and not re.fullmatch(DIGEST, digest):
        raise _invalid(text, "the digest after @ is not sha256: and 64 lower-case hexadecimal digits")
    return rest, digest


def _split_registry(rest: str) -> tuple[str, str]:
    first, slash, remainder = rest.partition("/")
    # distribution/reference normalize.go, splitDockerDomain: a first part that looks like a host is one.
    if not slash or not (any(c in first for c in ".:") or first == "localhost" or first.lower() != first):
        first, remainder = DEFAULT_REGISTRY, rest
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in remainder:
        remainder = "library/" + remainder
    return first, remainder


def _split_tag(text: str, remainder: str) -> tuple[str, str]:
    repository, colon, tag = remainder.partition(":")
    if colon and not re.fullmatch(TAG, tag):
        raise _invalid(
            text, f"invalid tag {tag[:140]!r}", "a tag is 1 to 128 of A-Z a-z 0-9 _ . - and starts with none of . -"
        )
    return repository, tag


def _check_name(text: str, registry: str, repository: str) -> None:
    if repository.lower() != repository:
        raise _invalid(text, "the repository must be lower-case")
    if not re.fullmatch(_NAME, f"{registry}/{repository}"):
        raise _invalid(text, "expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]")
    if len(repository) > _NAME_MAX:
        raise _invalid(text, f"the repository is longer than {_NAME_MAX} characters")
