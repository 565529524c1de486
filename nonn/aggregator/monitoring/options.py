"""Monitoring of an aggregator, assembled: monitor, drift alarm, metrics, dashboard, traces."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from nonn.aggregator.events import Observer
from nonn.aggregator.fanout import Connect
from nonn.aggregator.monitoring.drift import DriftConfig
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.sensing.hub import Hub
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.rpc.endpoint import Endpoint
from nonn.rpc.guard import Guard
from nonn.telemetry.tracing import Tracing
from nonn.toml import check
from nonn.toml.constraints import NotNegative

__all__ = ["Observing", "ObservingOptions"]


@dataclass(frozen=True, kw_only=True)
class ObservingOptions:
    """Monitoring options of ``nonn serve``.

    Raises:
        ConfigError: an option is invalid.
    """

    http_host: Annotated[str, "address to bind for HTTP"] = "127.0.0.1"
    http_port: Annotated[int | None, "0 is any free one; None serves no HTTP"] = None
    http_names: Annotated[Sequence[str], "further names of this machine in the Host header"] = ()
    drift_rate: Annotated[NotNegative, "most samples per second that the drift alarm tests; 0 turns it off"] = (
        DriftConfig.samples_per_s
    )
    trace: Annotated[str | None, "destination of traces, see nonn.telemetry.tracing; None writes none"] = None
    http_tls: Annotated[bool, "HTTP with TLS on loopback too"] = False
    switches: Annotated[int | None, "descriptor of the socket with which nonn up switches devices"] = None
    insecure: Annotated[bool, "HTTP beyond loopback without TLS"] = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def drift(self) -> DriftConfig | None:
        """Options of the drift alarm; None if it is off."""
        return DriftConfig(samples_per_s=self.drift_rate) if self.drift_rate else None


class Observing:
    """Monitoring of one aggregator.

    Args:
        bundle: the bundle that the cluster runs.
        options: options of the operator.

    Raises:
        MissingExtraError: a library that HTTP needs is not installed.
    """

    def __init__(self, bundle: Bundle, options: ObservingOptions) -> None:
        trace, drift = options.trace, options.drift
        self.tracing = Tracing.to(trace, "nonn-aggregator", "nonn.request", begins=True) if trace else None
        self._options = options
        self._metrics: Any = None
        if options.http_port is not None:
            from nonn.aggregator.monitoring.metrics import Metrics

            self._metrics = Metrics(bundle.num_devices)
            self.monitor = Monitor(bundle, drift, on_drift=self._metrics.on_drift)
        else:
            self.monitor = Monitor(bundle, drift)

    @property
    def observers(self) -> list[Observer]:
        """Observers of the aggregator."""
        return [self.monitor, self._metrics] if self._metrics else [self.monitor]

    def answered(self, answer: Answer) -> None:
        """For the aggregator's server."""
        self.monitor.answered(answer)
        if self._metrics:
            self._metrics.answered(answer)

    def connect(self, connect: Connect) -> Connect:
        """The aggregator's ``connect``, replaced by one that also gives the monitor the channels."""
        tracing = self.tracing
        if tracing is None:
            return self.monitor.remembering(connect)
        return self.monitor.remembering(lambda node: tracing.channel(connect(node), **{"nonn.node": node.id}))

    @property
    def interceptors(self) -> list[Any]:
        """For the aggregator's server."""
        return [self.tracing.interceptor] if self.tracing else []

    @contextlib.asynccontextmanager
    async def watching(
        self,
        aggregator: Aggregator,
        guard: Guard,
        hub: Hub | None = None,
        endpoint: Endpoint | None = None,
    ) -> AsyncIterator[str | None]:
        """Watches while the block runs.

        Args:
            aggregator: the aggregator that has the observers.
            guard: of the gRPC port; its certificates are also used for HTTP beyond loopback.
            hub: answers of nodes that sense; None if none do.
            endpoint: the served model, for inference over HTTP; None offers none.

        Yields:
            The address of HTTP; None without HTTP.

        Raises:
            AddressError, UsageError: see ``serve_dashboard``.
        """
        async with self.monitor, contextlib.AsyncExitStack() as stack:
            if self._metrics is None:
                yield None
                return
            from nonn.aggregator.monitoring.dashboard import Inference, serve_dashboard

            self._metrics.attach(aggregator)
            options, port = self._options, self._options.http_port or 0
            dashboard = serve_dashboard(
                self.monitor,
                self._metrics,
                host=options.http_host,
                port=port,
                insecure=options.insecure,
                tls=guard.tls,
                tls_on_loopback=options.http_tls,
                names=options.http_names,
                hub=hub,
                inference=None if endpoint is None else Inference(endpoint, guard, aggregator.bundle, options.switches),
            )
            yield await stack.enter_async_context(dashboard)
