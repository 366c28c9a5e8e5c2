"""Messages and enums of a .proto, made from its compiled descriptor. Knows no protocol.

Each is kept in a pool of its own: two packages of the process may have an api.proto. Generated code would tie wherry to
one major version of protobuf.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

__all__ = ["classes", "load"]


def load(package: str, proto: str) -> FileDescriptor:
    """The descriptor of `proto`, out of the set that `package` has compiled beside it (its name with .binpb)."""
    content = resources.files(package).joinpath(proto.removesuffix("proto") + "binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName(proto)


def classes(file: FileDescriptor) -> dict[str, Any]:
    """What generated code would hold: messages, enums, and values of enums, by their names."""
    found: dict[str, Any] = {}
    for name, message in file.message_types_by_name.items():
        found[name] = message_factory.GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        found[name] = EnumTypeWrapper(enum)
        found.update({value.name: value.number for value in enum.values})
    return found
