"""``mqtt:HOST[:PORT]/TOPIC``: lines of numbers from a broker that the sensor already sends to (extra ``mqtt``).

A message is one or more lines as those of ``serial:PORT``. While a broker is gone the node tries to connect again, and
its windows have no data; the log has each reason once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from nonn.errors import ConfigError
from nonn.mqtt import Broker
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn_device.sources import Samples, SampleSource, SourceOptions
from nonn_device.sources.lines import AGAIN_S, Parser

__all__ = ["open_source", "parsed"]

_log = logging.getLogger(__name__)


def parsed(options: SourceOptions) -> tuple[Broker, str]:
    """Broker and topic.

    Raises:
        ConfigError: one of them is missing.
        ModuleNotFoundError: the extra is not installed.
    """
    import aiomqtt  # noqa: F401 - missing, the node ends before it joins

    where, _, topic = options.where.partition("/")
    if not topic:
        raise ConfigError(f"--source {options.text}: the topic is missing; write mqtt:HOST/TOPIC")
    return Broker.parse(where, f"--source {options.text}: broker"), topic


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Prepares a subscription.

    Raises:
        ConfigError: broker or topic is missing.
    """
    broker, topic = parsed(options)
    return lambda: _messages(broker, topic, Parser(spec, clock, options.text))


async def _messages(broker: Broker, topic: str, parser: Parser) -> AsyncIterator[Samples]:
    """Samples for ever."""
    import aiomqtt  # an extra

    logged = ""
    while True:
        try:
            async with broker.client() as client:
                await client.subscribe(topic)
                logged = ""
                async for message in client.messages:
                    for line in bytes(message.payload or b"").splitlines():
                        if (samples := parser.read(line)) is not None:
                            yield samples
        except aiomqtt.MqttError as exc:
            if (text := broker.gone(exc)) != logged:
                _log.warning("%s", text)
            logged = text
        await asyncio.sleep(AGAIN_S)
