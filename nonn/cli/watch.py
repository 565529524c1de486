"""``nonn watch``: the answers of nodes that sense, one line for each window."""

from __future__ import annotations

import argparse
import contextlib
import re
from typing import TYPE_CHECKING

from nonn.arguments import addresses, usage, whole
from nonn.cli._client_options import add_client_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiomqtt

    from nonn.mqtt import Broker, HomeAssistantSensor
    from nonn.streams import WindowAnswer

RECONNECT_S = 1.0  # pause before a lost broker is tried again

SUMMARY = "follow the answers of nodes that sense"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "address", type=addresses, metavar="ADDRESS", help="host:port of the aggregator, or several with commas"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--count", type=whole(0), default=0, metavar="N", help="exit after N answers (default: never)")
    parser.add_argument(
        "--mqtt",
        metavar="HOST[:PORT]",
        help="also publish the answers at a broker, as a sensor of Home Assistant (extra mqtt; user and password in "
        "NONN_MQTT_USER and NONN_MQTT_PASSWORD)",
    )
    parser.add_argument("--name", default="nonn", type=_name, help="of that sensor (default: %(default)s)")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints answers until Ctrl-C, or until there are as many as wanted."""
    import itertools

    from nonn.client import Client

    quiet = contextlib.suppress(KeyboardInterrupt, BrokenPipeError)
    if args.mqtt is not None:
        import asyncio

        from nonn.mqtt import Broker

        with usage():
            broker = Broker.parse(args.mqtt, "--mqtt")
        with quiet:
            asyncio.run(_publish(args, broker))
        return 0
    with quiet, Client(args.address, tls=args.tls, token_file=args.token_file, insecure=args.insecure) as client:
        for answer in itertools.islice(client.watch(), args.count or None):
            _print(answer, args)
    return 0


def _name(text: str) -> str:
    """A name that may be part of a topic."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}': letters, digits, - and _ only")
    return text


def _print(answer: WindowAnswer, args: argparse.Namespace) -> None:
    import json

    print(json.dumps(answer.to_json()) if args.json else as_text(answer), flush=True)


async def _publish(args: argparse.Namespace, broker: Broker) -> None:
    """Publishes every answer; connects again to a broker that is gone.

    Raises:
        NonnError: as ``AsyncClient.watch``.
    """
    import asyncio
    import sys

    import aiomqtt

    from nonn.client import AsyncClient
    from nonn.mqtt import HomeAssistantSensor

    sensor, left, logged = HomeAssistantSensor(args.name), args.count or -1, ""
    will = aiomqtt.Will(sensor.availability_topic, "offline", retain=True)
    client = AsyncClient(args.address, tls=args.tls, token_file=args.token_file, insecure=args.insecure)
    async with client:
        while left:
            try:
                async with (
                    broker.client(will=will) as mqtt,
                    _announced(sensor, mqtt),
                    contextlib.aclosing(client.watch()) as answers,
                ):
                    logged = ""
                    async for answer in answers:
                        now = (await client.metadata()).state.get("accuracy", {})
                        state = sensor.state(answer, now.get("next_worst", 0.0), now.get("next_worst_node", ""))
                        await mqtt.publish(sensor.state_topic, state)
                        _print(answer, args)
                        left -= 1
                        if not left:
                            break
            except aiomqtt.MqttError as exc:
                if (text := broker.gone(exc)) != logged:
                    print(f"nonn watch: {text}", file=sys.stderr)
                logged = text
                await asyncio.sleep(RECONNECT_S)


@contextlib.asynccontextmanager
async def _announced(sensor: HomeAssistantSensor, mqtt: aiomqtt.Client) -> AsyncIterator[None]:
    """Announces the sensor at a broker while the block runs."""
    topic, payload = sensor.discovery()
    await mqtt.publish(topic, payload, retain=True)
    await mqtt.publish(sensor.availability_topic, "online", retain=True)
    try:
        yield
    finally:  # a broker sends the will only after a connection that was cut
        await mqtt.publish(sensor.availability_topic, "offline", retain=True)


def as_text(answer: WindowAnswer) -> str:
    """One line: time, label (smoothed if the bundle says so), how good it is, its devices, why others are missing."""
    from datetime import datetime

    at = datetime.fromtimestamp(answer.time).strftime("%H:%M:%S")
    devices = ",".join(map(str, answer.devices)) or "none"
    missing = "; ".join(f"{node}: {why}" for node, why in answer.missing.items())
    shown = answer.smoothed or answer
    low, high = shown.interval
    text = (
        f"{shown.label}  confidence {shown.confidence:.0%}  accuracy {shown.expected_accuracy:.1%} "
        f"({low:.1%} to {high:.1%})"
        if answer.label
        else "no answer"
    )
    if answer.smoothed and answer.label != shown.label:
        text += f"  [this window alone: {answer.label}]"
    lost = f"  [{answer.skipped} answers lost]" if answer.skipped else ""
    return f"{at}  {text}  devices {devices}  {1e3 * answer.delay_s:.0f} ms{f'  ({missing})' if missing else ''}{lost}"
