"""Everything that watches an aggregator, put together: monitor, drift alarm, metrics, dashboard, traces."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nonn.aggregator.fanout import Connect
from nonn.aggregator.monitoring.drift import DriftConfig
from nonn.aggregator.monitoring.events import Observer
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.errors import ConfigError
from nonn.security.tls import TlsFolder
from nonn.telemetry.tracing import Tracing

__all__ = ["Observing"]


class Observing:
    """What watches one aggregator.

    Args:
        bundle: that the cluster runs.
        args: the options that ``nonn.cli._observing_options`` added.

    Raises:
        ConfigError: an option is impossible.
        MissingExtraError: a library that HTTP needs is not installed.
    """

    def __init__(self, bundle: Bundle, args: argparse.Namespace) -> None:
        if args.drift_rate is not None and args.drift_rate < 0:
            raise ConfigError(f"--drift-rate {args.drift_rate}: must not be negative; 0 switches the alarm off")
        drift = DriftConfig() if args.drift_rate is None else None
        if args.drift_rate:
            drift = DriftConfig(samples_per_s=args.drift_rate)
        self.tracing = Tracing.to(args.trace, "nonn-aggregator", "nonn.request", begins=True) if args.trace else None
        self._host, self._port = args.http_host, args.http_port
        self._metrics: Any = None
        if self._port is not None:
            from nonn.aggregator.monitoring.metrics import Metrics

            self._metrics = Metrics(bundle.num_devices)
            self.monitor = Monitor(bundle, drift, on_drift=self._metrics.on_drift)
        else:
            self.monitor = Monitor(bundle, drift)

    @property
    def observers(self) -> list[Observer]:
        """For the aggregator."""
        return [self.monitor, self._metrics] if self._metrics else [self.monitor]

    def answered(self, answer: Answer) -> None:
        """For the aggregator's server."""
        self.monitor.answered(answer)
        if self._metrics:
            self._metrics.answered(answer)

    def connect(self, connect: Connect) -> Connect:
        """For the aggregator, in place of ``connect``."""
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
        self, aggregator: Aggregator, *, insecure: bool, tls: TlsFolder | None = None
    ) -> AsyncIterator[str | None]:
        """Watches while the block runs.

        Args:
            aggregator: that has the observers.
            insecure: the operator knows that there is no TLS.
            tls: of the aggregator; HTTP beyond loopback uses it too.

        Yields:
            The address of HTTP; None without.

        Raises:
            AddressError: see ``serve_dashboard``.
        """
        self.monitor.attach(aggregator)
        async with self.monitor, contextlib.AsyncExitStack() as stack:
            if self.tracing:
                stack.callback(self.tracing.close)
            if self._metrics is None:
                yield None
                return
            from nonn.aggregator.monitoring.dashboard import serve_dashboard

            self._metrics.attach(aggregator)
            dashboard = serve_dashboard(
                self.monitor, self._metrics, host=self._host, port=self._port, insecure=insecure, tls=tls
            )
            yield await stack.enter_async_context(dashboard)
