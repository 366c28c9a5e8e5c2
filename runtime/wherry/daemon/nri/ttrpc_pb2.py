"""The messages and enums of ttrpc.proto, made from its descriptor. Knows no service."""

from wherry.daemon import descriptors

DESCRIPTOR = descriptors.load(__package__, "ttrpc.proto")
globals().update(descriptors.classes(DESCRIPTOR))
