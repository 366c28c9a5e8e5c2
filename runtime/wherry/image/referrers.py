"""What refers to an image in its registry (image-spec 1.1, `subject`): signatures, attestations, SBOMs.

Decides which of the listed ones count. Fetches none of them.
"""

from __future__ import annotations

import contextlib

from wherry.errors import Kind, WherryError
from wherry.image.hosts import Reach
from wherry.image.manifest import INDEX_TYPES, MANIFEST_MAX, agreed_type, descriptor_from, parse_document
from wherry.image.reference import Reference
from wherry.image.registry import RegistrySource
from wherry.model import Json

__all__ = ["referrers"]


def referrers(reference: Reference, digest: str, reach: Reach, artifact_type: str = "") -> list[Json]:
    """Descriptors as the registry lists them. `digest` "": of what the name leads to there."""
    source = RegistrySource(reference, reach)
    what = f"{source.what}: referrers"
    with contextlib.closing(source):
        document = source.referrers(digest or reference.digest or source.top().digest)
    if document is None:
        return []
    body = parse_document(document.data, MANIFEST_MAX, what)
    if agreed_type(body, document.declared, what) not in INDEX_TYPES:
        raise WherryError(Kind.INVALID, f"{what}: the answer is no index")
    rows = body["manifests"] if isinstance(body["manifests"], list) else []
    checked = [_checked(row, what) for row in rows]
    return [row for row in checked if artifact_type in ("", row["artifactType"])]


def _checked(row: Json, what: str) -> Json:
    found = descriptor_from(row, what)
    artifact_type = row.get("artifactType")
    return {
        "mediaType": found.media_type,
        "digest": found.digest,
        "size": found.size,
        "artifactType": artifact_type if isinstance(artifact_type, str) else "",
        "annotations": dict(found.annotations),
    }
