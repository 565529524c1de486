"""A server in front of a real node, whose answers it may change."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc

from nonn.rpc.wire import SERVICE
from tests.serving import TIMEOUT_S


class Intermediary:
    """Passes the calls of an aggregator on to a node; subclasses change the answers of ``infer``.

    Args:
        upstream: address of the node.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, upstream: str) -> None:
        self._channel = grpc.insecure_channel(upstream)
        self._upstream_infer = self._passing("ModelInfer")
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        calls = {"ModelInfer": self.infer, "ModelMetadata": self._passing("ModelMetadata")}
        handlers = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def infer(self, raw: bytes, context: Any) -> bytes:
        """Answers a request; here as the node does, with its status if it fails."""
        return self._upstream_infer(raw, context)

    def _passing(self, method: str) -> Callable[[bytes, Any], bytes]:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")

        def passed(raw: bytes, context: Any) -> bytes:
            try:
                return bytes(call(raw, timeout=TIMEOUT_S))
            except grpc.RpcError as exc:
                context.abort(exc.code(), exc.details())
                raise

        return passed
