"""The connection of a client to one aggregator: channel, credentials, and calls as futures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from nonn.errors import ConfigError, CredentialsError, NonnError, UnreachableError
from nonn.rpc.guard import Tokens
from nonn.rpc.v1 import inference_pb2_grpc, sensing_pb2, sensing_pb2_grpc
from nonn.rpc.wire import CLIENT_STREAMS, INFER_METHOD, RECONNECTING_OPTIONS, from_status
from nonn.security.handshake import explain
from nonn.security.tls import AGGREGATOR_NAME, TlsFolder

__all__ = ["Done", "Link"]

# gRPC gives up an attempt to connect after the least backoff. A server to which hundreds connect at once may take
# seconds to accept a connection.
_OPTIONS = tuple(
    (name, 5_000 if name == "grpc.min_reconnect_backoff_ms" else value) for name, value in RECONNECTING_OPTIONS
)

# Called once with the reply or the error.
Done = Callable[[Any, NonnError | None], None]


class Link:
    """The connection to one aggregator; thread-safe.

    Args:
        address: ``host:port``.
        tls: of the client; None for plain text.
        tokens: the bearer token; None sends none.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, address: str, tls: TlsFolder | None, tokens: Tokens | None) -> None:
        self.address, self._tls, self._tokens = address, tls, tokens
        # gRPC does not check revocation: the standard library checks the certificate before the first call.
        self._checked = tls is None
        self._free = threading.BoundedSemaphore(CLIENT_STREAMS)
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            credentials, options = tls.channel_options(AGGREGATOR_NAME)
            self._channel = grpc.secure_channel(address, credentials, options=(*_OPTIONS, *options))
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._infer = self._channel.unary_unary(INFER_METHOD)  # bytes, because of their checksum

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._channel.close()

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Makes one call and waits for its reply.

        Args:
            method: ``ModelInfer`` (bytes), or another call of the protocol (messages).
            request: its request.
            timeout_s: maximum time until the reply.

        Raises:
            NonnError: the call failed.
        """
        self._check_once()
        started = time.monotonic()
        self._acquire(timeout_s)
        try:
            left = max(0.001, timeout_s - (time.monotonic() - started))
            return self._method(method)(request, timeout=left, metadata=self._metadata())
        except grpc.RpcError as exc:
            raise from_status(exc, self.address) from exc
        finally:
            self._free.release()

    def start(self, method: str, request: Any, timeout_s: float, done: Done) -> Callable[[], object]:
        """Begins one call.

        Args:
            method: as of ``call``.
            request: its request.
            timeout_s: maximum time until the reply.
            done: called once, in another thread, unless the call was cancelled before it began.

        Returns:
            A function that cancels the call.
        """
        cancelled, futures = threading.Event(), list[Any]()

        def begin() -> None:
            try:
                self._check_once()
                self._acquire(0.0)
            except NonnError as exc:
                done(None, exc)
                return
            if cancelled.is_set():
                self._free.release()
                return
            try:
                future = self._method(method).future(request, timeout=timeout_s, metadata=self._metadata())
            except ValueError:  # of gRPC
                self._free.release()
                done(None, UnreachableError(f"{self.address}: the client is closed"))
                return
            futures.append(future)
            future.add_done_callback(ended)

        def ended(future: Any) -> None:
            self._free.release()
            try:
                reply, error = future.result(), None
            except grpc.FutureCancelledError:
                return
            except grpc.RpcError as exc:
                reply, error = None, from_status(exc, self.address)
            done(reply, error)

        def cancel() -> None:
            cancelled.set()
            for future in futures:
                future.cancel()

        if self._checked:
            begin()
        else:  # the check may take two seconds at an aggregator that accepts connections and does not answer
            threading.Thread(target=begin, name=f"check of {self.address}", daemon=True).start()
        return cancel

    def watch(self) -> Iterator[Any]:
        """Messages of ``Answers.Watch``, until the aggregator or the connection ends; closing the iterator ends it.

        Raises:
            NonnError: the stream failed.
        """
        self._check_once()
        stub = sensing_pb2_grpc.AnswersStub(self._channel)  # type: ignore[no-untyped-call]
        call = stub.Watch(sensing_pb2.WatchRequest(), metadata=self._metadata())
        try:
            yield from call
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ConfigError(
                    f"{self.address}: streams no answers; nodes that sense join a nonn serve --joins whose "
                    "bundle has a section [sensing]"
                ) from exc
            raise from_status(exc, self.address) from exc
        finally:
            call.cancel()

    def look(self) -> None:
        """Checks the aggregator's certificate, and whether it uses TLS at all; takes up to two seconds.

        Raises:
            CredentialsError: the check failed; the message names the reason.
        """
        found = explain(self.address, AGGREGATOR_NAME if self._tls else None, self._tls)
        if found.is_problem:
            raise CredentialsError(f"{self.address}: {found.text}")

    def _check_once(self) -> None:
        if not self._checked:
            self.look()
            self._checked = True

    def _acquire(self, timeout_s: float) -> None:
        """Takes one of the connection's streams; the server refuses more than it allows.

        Raises:
            UnreachableError: all of them are in use for the whole time.
        """
        if not self._free.acquire(timeout=timeout_s):
            raise UnreachableError(f"{self.address}: {CLIENT_STREAMS} calls before this one took {timeout_s:g} s")

    def _method(self, method: str) -> Any:
        return self._infer if method == "ModelInfer" else getattr(self._stub, method)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._tokens.first}"),) if self._tokens else ()
