"""The messages and enums of csi.proto, made from its descriptor. Knows no service."""

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf import timestamp_pb2 as _timestamp  # what csi.proto imports must be known before it
from google.protobuf import wrappers_pb2 as _wrappers
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

del _timestamp, _wrappers


def _descriptor() -> FileDescriptor:
    content = resources.files(__package__).joinpath("csi.binpb").read_bytes()
    pool = descriptor_pool.Default()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("csi.proto")


DESCRIPTOR = _descriptor()
for _name, _message in DESCRIPTOR.message_types_by_name.items():
    globals()[_name] = message_factory.GetMessageClass(_message)
for _name, _enum in DESCRIPTOR.enum_types_by_name.items():
    globals()[_name] = EnumTypeWrapper(_enum)
    globals().update({value.name: value.number for value in _enum.values})
