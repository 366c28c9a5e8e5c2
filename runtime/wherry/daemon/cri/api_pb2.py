"""The messages and enums of api.proto, made from its descriptor. Knows no service."""

from wherry.daemon import descriptors

DESCRIPTOR = descriptors.load(__package__, "api.proto")
globals().update(descriptors.classes(DESCRIPTOR))
