"""Server reflection: tools such as grpcurl find services and messages of a server without its .proto files.

Off by default, since it lists all calls to every client that can connect.

nonn's messages are in a separate descriptor pool and those of ``grpc.health.v1`` in the default one, but reflection
answers from one pool. It gets a third pool, with copies of the served files and of their imports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from nonn.errors import MissingExtraError

__all__ = ["add_reflection"]


def add_reflection(server: Any, files: Iterable[FileDescriptor]) -> None:
    """Adds ``grpc.reflection.v1alpha`` to a server that has not been started.

    Args:
        server: of grpc or grpc.aio.
        files: descriptors of the .proto files whose services the server has, from any pool.

    Raises:
        MissingExtraError: grpcio-reflection is not installed; a device does not need it.
    """
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ModuleNotFoundError as exc:
        raise MissingExtraError("grpcio-reflection", "serve") from exc
    served = (*files, reflection_pb2.DESCRIPTOR)
    pool = DescriptorPool()
    copied: set[str] = set()
    for file in served:
        _copy(file, pool, copied)
    names = [service.full_name for file in served for service in file.services_by_name.values()]
    reflection.enable_server_reflection(names, server, pool)


def _copy(file: FileDescriptor, pool: DescriptorPool, copied: set[str]) -> None:
    """Adds a file to a pool, its imports first."""
    if file.name in copied:
        return
    copied.add(file.name)
    for dependency in file.dependencies:
        _copy(dependency, pool, copied)
    pool.AddSerializedFile(file.serialized_pb)
