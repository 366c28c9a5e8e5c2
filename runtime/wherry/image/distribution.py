"""What a registry has under a name: its descriptor and the platforms that it is for (docker's /distribution).

Decides where a platform is read: an index names them, a manifest of one image only its config does. Fetches no layer.
"""

from __future__ import annotations

import contextlib
import threading

from wherry.errors import Kind, WherryError
from wherry.image.blobs import Blobs
from wherry.image.indexes import Stored, named
from wherry.image.manifest import CONFIG_MAX, MANIFEST_MAX, agreed_type, parse_config, parse_document
from wherry.image.registry import RegistrySource
from wherry.model import Descriptor, Json, Platform

__all__ = ["described"]


def described(blobs: Blobs, source: RegistrySource) -> Json:
    """{"Descriptor": {"mediaType", "digest", "size"}, "Platforms": [{"architecture", "os", "variant"?}]}."""
    with contextlib.closing(source):
        document = source.top()
        media_type = agreed_type(parse_document(document.data, MANIFEST_MAX, source.what), document.declared,
                                 source.what)  # fmt: skip
        top = Descriptor(media_type, document.digest, len(document.data))
        found = named(top, document.data, source.what)
        platforms = [one.platform for one in found.below if one.platform is not None]
        if not found.below:
            platforms = [_of_config(blobs, source, found)]
    told = {"mediaType": top.media_type, "digest": top.digest, "size": top.size}
    return {"Descriptor": told, "Platforms": [_shape(one) for one in platforms]}


def _shape(platform: Platform) -> Json:
    variant = {"variant": platform.variant} if platform.variant else {}
    return {"architecture": platform.architecture, "os": platform.os, **variant}


def _of_config(blobs: Blobs, source: RegistrySource, found: Stored) -> Platform:
    """The config stays in the store until the next sweep: a pull that follows finds it there."""
    config, what = found.blobs[0], f"{source.what}: config"
    if config.size > CONFIG_MAX:
        raise WherryError(Kind.INVALID, f"{what} is larger than {CONFIG_MAX} bytes", hint="it is no image's")
    with blobs.lease():
        with blobs.partial(config) as partial:
            if partial is not None:
                source.fetch(partial, lambda _done: None, threading.Event())
        return parse_config(parse_document(blobs.read(config.digest, CONFIG_MAX), CONFIG_MAX, what), what).platform
