"""The services of csi.proto: handlers for a server, stubs for a client, both read off the descriptor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf import message_factory

from . import csi_pb2

__all__ = ["SERVICES", "Stub", "handlers"]

#: the names of the services: Identity, Controller, GroupController, SnapshotMetadata, Node
SERVICES: tuple[str, ...] = tuple(csi_pb2.DESCRIPTOR.services_by_name)


def _methods(service: str) -> Iterator[tuple[str, str, Any, Any, bool]]:
    """(name, path, request class, response class, the server streams) of every method."""
    found = csi_pb2.DESCRIPTOR.services_by_name[service]
    for method in found.methods:
        request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        yield method.name, f"/{found.full_name}/{method.name}", request, response, method.server_streaming


def handlers(service: str, servicer: object) -> grpc.GenericRpcHandler:
    """What a grpc server takes: the servicer's methods by the spec's names, `method(request, context)`.

    A method that the servicer lacks answers UNIMPLEMENTED.
    """
    table = {}
    for name, _, request, response, streams in _methods(service):
        if (method := getattr(servicer, name, None)) is not None:
            make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            table[name] = make(method, request.FromString, response.SerializeToString)
    return grpc.method_handlers_generic_handler(csi_pb2.DESCRIPTOR.services_by_name[service].full_name, table)


class Stub:
    """A client of one service: `Stub(channel, "Node").NodeGetInfo(request, timeout=10)`."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        for name, path, request, response, streams in _methods(service):
            call = channel.unary_stream if streams else channel.unary_unary
            setattr(self, name, call(path, request.SerializeToString, response.FromString))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"the service has no method {name}")
