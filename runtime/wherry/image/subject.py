"""A manifest that refers to another one (image-spec 1.1, `subject`), in a registry that keeps no account of that.

Decides when the index of referrers is written by us, under the tag that stands for it (distribution-spec 1.1, pushing
manifests with subject).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import Kind, WherryError
from wherry.image.indexes import Stored
from wherry.image.manifest import MANIFEST_MAX, OCI_INDEX, agreed_type, descriptor_from, parse_document
from wherry.image.remote import Remote
from wherry.model import Json

__all__ = ["refer"]

Put = Callable[[str, bytes, str], Mapping[str, str]]


def refer(remote: Remote, document: Stored, told: str, put: Put) -> None:
    """`told`: the registry's OCI-Subject; with it, it has done all this. `put`: name, bytes and media type."""
    what = f"{remote.what}: referrers"
    body = parse_document(document.data, MANIFEST_MAX, what)
    if not body.get("subject"):
        return
    subject = descriptor_from(body["subject"], f"{what}: subject")
    if told == subject.digest:
        return
    tag = subject.digest.replace(":", "-", 1)
    rows = remote.persist(what, lambda: _rows(remote, tag, what))
    if not any(isinstance(row, dict) and row.get("digest") == document.descriptor.digest for row in rows):
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*rows, _row(document, body)]}
        put(tag, json.dumps(index).encode(), OCI_INDEX)


def _rows(remote: Remote, tag: str, what: str) -> list[Any]:
    with remote.send("GET", remote.url(f"manifests/{tag}"), {"Accept": OCI_INDEX}) as response:
        if response.status == 404:
            return []
        remote.expect(response, (200,), what)
        body = parse_document(response.body(MANIFEST_MAX, what), MANIFEST_MAX, what)
        declared = [response.headers.get("Content-Type", "")]
    if agreed_type(body, declared, what) != OCI_INDEX or not isinstance(body["manifests"], list):
        raise WherryError(Kind.CONFLICT, f"{what}: the tag {tag} is something else", hint="remove that tag")
    return body["manifests"]


def _row(document: Stored, body: Json) -> Json:
    """As the registry's own list has it: with the type and the annotations of what refers."""
    found = document.descriptor
    row: Json = {"mediaType": found.media_type, "digest": found.digest, "size": found.size}
    kind = body.get("artifactType") or (document.blobs[0].media_type if document.blobs else "")
    row |= {"artifactType": kind} if kind else {}
    return row | ({"annotations": body["annotations"]} if isinstance(body.get("annotations"), dict) else {})
