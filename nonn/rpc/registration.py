"""Registers a servicer on a server; messages that cannot be parsed get INVALID_ARGUMENT, as any other bad input.

With protoc's own registration, grpc.aio answers such a message with UNKNOWN and logs a traceback, so a client that
sends noise would fill the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from nonn.errors import InputError
from nonn.rpc.wire import Status, to_status

__all__ = ["add_servicer", "unreadable"]

Read = Callable[[bytes], Any]
Call = Callable[[Any, Any], Awaitable[Any]]
Stream = Callable[[Any, Any], AsyncIterator[Any]]


def add_servicer(server: Any, service: ServiceDescriptor, servicer: object, raw: Collection[str] = ()) -> None:
    """Registers all calls of a service; they may be unary, server-streaming or bidirectional.

    Args:
        server: of grpc.aio, not started.
        service: descriptor of the service.
        servicer: has a coroutine method for each unary call and an asynchronous generator for each streaming one.
        raw: names of calls that accept and return bytes instead of messages; such a call is unary, or a bidirectional
            one that reads and writes its context.
    """
    handlers = {}
    for method in service.methods:
        call, name = getattr(servicer, method.name), method.input_type.name
        read = GetMessageClass(method.input_type).FromString
        if method.name in raw:
            assert method.client_streaming == method.server_streaming, method.full_name
            unary, both = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
            handler = (both if method.client_streaming else unary)(call)
        elif method.client_streaming:
            # gRPC's own deserialiser: in the middle of a stream the only answer is to end it.
            handler = grpc.stream_stream_rpc_method_handler(call, read, _written)
        elif method.server_streaming:
            handler = grpc.unary_stream_rpc_method_handler(_streaming(call, read, name), response_serializer=_written)
        else:
            handler = grpc.unary_unary_rpc_method_handler(_reading(call, read, name), response_serializer=_written)
        handlers[method.name] = handler
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)


def _written(response: Any) -> bytes:
    """Serialises a response."""
    return bytes(response.SerializeToString())


def _reading(call: Call, read: Read, name: str) -> Call:
    """Wraps a unary call to accept bytes."""

    async def read_and_call(raw: bytes, context: Any) -> Any:
        try:
            request = read(raw)
        except DecodeError:
            await _refuse(raw, name, context)
        return await call(request, context)

    return read_and_call


def _streaming(call: Stream, read: Read, name: str) -> Stream:
    """Wraps a server-streaming call to accept bytes."""

    async def read_and_stream(raw: bytes, context: Any) -> AsyncIterator[Any]:
        try:
            request = read(raw)
        except DecodeError:
            await _refuse(raw, name, context)
        async for response in call(request, context):
            yield response

    return read_and_stream


def unreadable(raw: bytes, name: str) -> Status:
    """Status of a call whose request cannot be parsed."""
    return to_status(InputError(f"{len(raw)} bytes that are not a valid {name}"))


async def _refuse(raw: bytes, name: str, context: Any) -> NoReturn:
    """Aborts a call whose request cannot be parsed."""
    await context.abort(*unreadable(raw, name))
    raise AssertionError("abort does not return")
