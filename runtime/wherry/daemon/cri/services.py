"""The services of api.proto: handlers for a server, stubs for a client, both read off the descriptor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory

from . import api_pb2

__all__ = ["SERVICES", "Method", "Stub", "handlers", "methods"]

#: the names of the services: RuntimeService, ImageService
SERVICES: tuple[str, ...] = tuple(api_pb2.DESCRIPTOR.services_by_name)


class Method(NamedTuple):
    """One call of a service."""

    name: str
    path: str
    request: Any
    response: Any
    streams: bool  # the server answers with many messages


def methods(service: str) -> Iterator[Method]:
    """Every method of a service."""
    found = api_pb2.DESCRIPTOR.services_by_name[service]
    for method in found.methods:
        request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        yield Method(method.name, f"/{found.full_name}/{method.name}", request, response, method.server_streaming)


def handlers(service: str, wrap: Callable[[Method], Callable[..., Any]]) -> grpc.GenericRpcHandler:
    """What a grpc server takes: for each method what `wrap` gives, which is called with the request's bytes and the
    call's context, and answers with bytes."""
    table: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in methods(service):
        make = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        table[method.name] = make(wrap(method))
    return grpc.method_handlers_generic_handler(api_pb2.DESCRIPTOR.services_by_name[service].full_name, table)


class Stub:
    """A client of one service: `Stub(channel, "RuntimeService").Version(request, timeout=10)`."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        for method in methods(service):
            call = channel.unary_stream if method.streams else channel.unary_unary
            made = call(method.path, method.request.SerializeToString, method.response.FromString)
            setattr(self, method.name, made)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"the service has no method {name}")
