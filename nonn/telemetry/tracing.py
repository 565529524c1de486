"""OpenTelemetry traces of requests, from the aggregator into every node; off by default.

::

    nonn.request            the aggregator answers            (server)
    ├── nonn.ask            one call to one node              (client)
    │   └── nonn.infer      the node runs its student         (server, in the node's process)
    └── nonn.fuse           the aggregator fuses the replies

A client's own trace continues: gRPC metadata contains the context in the format of W3C Trace Context
(w3.org/TR/trace-context). OpenTelemetry is imported only when tracing is on; a context variable marks traced requests,
so without tracing a request costs one look-up. OpenTelemetry's own variables configure exporter and sampling, for
example ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``OTEL_TRACES_SAMPLER``.

nonn has its own interceptors, since opentelemetry-instrumentation-grpc traces only channels that it creates itself, and
nonn creates channels with their certificates.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from nonn import __version__
from nonn.errors import MissingExtraError
from nonn.telemetry.background import Background

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["Tracing", "span"]

INFER = "/ModelInfer"

_current: ContextVar[Tracing | None] = ContextVar("nonn_tracing", default=None)


def span(name: str, **attributes: str | int | float) -> contextlib.AbstractContextManager[object]:
    """A span in the current request; does nothing if that is not traced."""
    tracing = _current.get()
    if tracing is None:
        return contextlib.nullcontext()
    return tracing.tracer.start_as_current_span(name, attributes=attributes)


class Tracing:
    """Traces the requests of one process.

    Args:
        provider: of OpenTelemetry's SDK.
        name: of the span of a request: ``nonn.request`` or ``nonn.infer``.
        begins: begin new traces; if false, only continue the caller's, so probes of nodes leave no trace.
    """

    def __init__(self, provider: TracerProvider, name: str, *, begins: bool) -> None:
        self.name, self.begins = name, begins
        self.tracer = provider.get_tracer("nonn", __version__)
        self.interceptor = _Interceptor(self)
        self._ending = Background()  # each task ends at once: its call has

    @classmethod
    def to(cls, exporter: str, service: str, name: str, *, begins: bool) -> Tracing:
        """Traces to an exporter until the process exits, which sends what is pending.

        Args:
            exporter: ``console`` or ``otlp``, see ``nonn.telemetry.log``.
            service: name of this process in a trace.
            name: of the span of a request.
            begins: begin new traces.

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

            # Shut down at exit, not before: a call that is being answered at shutdown has its span too.
            provider = TracerProvider(
                resource=Resource.create({"service.name": service, "service.version": __version__})
            )
            if exporter == "console":
                console = ConsoleSpanExporter(out=sys.stderr, formatter=lambda one: one.to_json(indent=None) + "\n")
                provider.add_span_processor(SimpleSpanProcessor(console))
            else:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

                provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ModuleNotFoundError as exc:
            raise MissingExtraError(exc.name or "opentelemetry", extra="otel") from exc
        return cls(provider, name, begins=begins)

    def channel(self, channel: Any, **attributes: str | int) -> Any:
        """Wraps a channel so that its inferences are spans of the current request."""
        return _TracedChannel(channel, self, attributes)

    def end(self, current: Span, call: Any) -> None:
        """Ends the span of a completed call now, with the status of the call."""
        self._ending.start(_end(current, call, time.time_ns()), "the end of a span")


class _Interceptor(aio.ServerInterceptor):  # type: ignore[misc]
    """Creates a span for each inference that a server answers."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Wraps the handler of inference; health checks and metadata are not traced."""
        handler = await continuation(details)
        if handler is None or not details.method.endswith(INFER):
            return handler

        async def answer(request: Any, context: Any) -> Any:
            from opentelemetry import propagate
            from opentelemetry.trace import SpanKind, Status, StatusCode

            carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            tracing = self._tracing
            if "traceparent" not in carrier and not tracing.begins:
                return await handler.unary_unary(request, context)
            token = _current.set(tracing)
            try:
                with tracing.tracer.start_as_current_span(
                    tracing.name,
                    context=propagate.extract(carrier),
                    kind=SpanKind.SERVER,
                    record_exception=False,
                    set_status_on_exception=False,
                ) as current:
                    try:
                        return await handler.unary_unary(request, context)
                    except BaseException:
                        current.set_status(Status(StatusCode.ERROR, context.details() or None))
                        raise
            finally:
                _current.reset(token)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


class _TracedChannel:
    """A channel of grpc.aio whose inferences are spans."""

    def __init__(self, channel: Any, tracing: Tracing, attributes: dict[str, str | int]) -> None:
        self._channel, self._tracing, self._attributes = channel, tracing, attributes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A call that sends the trace context; outside a traced request, for example a probe, the plain call."""
        plain = self._channel.unary_unary(method, *args, **kwargs)
        if not method.endswith(INFER):
            return plain  # type: ignore[no-any-return]

        def traced(request: Any, *, metadata: Any = (), **options: Any) -> Any:
            if _current.get() is None:
                return plain(request, metadata=metadata or None, **options)
            from opentelemetry import propagate, trace

            current = self._tracing.tracer.start_span(
                "nonn.ask", kind=trace.SpanKind.CLIENT, attributes=self._attributes
            )
            carrier: dict[str, str] = {}
            propagate.inject(carrier, trace.set_span_in_context(current))
            call = plain(request, metadata=(*(metadata or ()), *carrier.items()), **options)
            call.add_done_callback(lambda done: self._tracing.end(current, done))
            return call

        return traced


async def _end(current: Span, call: Any, at_ns: int) -> None:
    """Ends the span of a completed call."""
    from opentelemetry.trace import Status, StatusCode

    code = await call.code()
    current.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK:
        current.set_status(Status(StatusCode.ERROR, f"{code.name}: {await call.details() or ''}"))
    current.end(at_ns)
