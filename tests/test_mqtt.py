"""A real broker: samples from it, and answers at it as a sensor of Home Assistant."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import aiomqtt
import pytest
from nonn_device.sources import open_source, parse_source

from nonn.cli.watch import _publish
from nonn.errors import ConfigError
from nonn.mqtt import Broker
from nonn.sensing import SensingSpec
from nonn.streams import WindowAnswer
from tests.serving import TIMEOUT_S

SPEC = SensingSpec(8.0, 8, 1.0, ("acc_x", "acc_y"), ("m/s2", "m/s2"), (1.0, 1.0))
ANSWER = WindowAnswer(1000.0, 0.1, "walking", 0.9, 0b101, 0.8, (0.7, 0.9), missing={"wrist": "no data"})


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed (Debian: apt-get install mosquitto)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path_factory.mktemp("broker") / "mosquitto.conf"
    file.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen([program, "-c", file], stderr=subprocess.DEVNULL) as child:
        yield Broker("127.0.0.1", port)
        child.kill()


async def connected(broker: Broker) -> aiomqtt.Client:
    """A client; waits while the broker starts."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return await broker.client().__aenter__()
            except aiomqtt.MqttError:
                await asyncio.sleep(0.01)


def test_lines_of_a_topic_are_samples(broker: Broker) -> None:
    async def scenario() -> Any:
        client = await connected(broker)
        await client.publish("room/imu", "acc_y acc_x\n2 1\n4 3\n", retain=True)  # also for those who come later
        options = parse_source(f"mqtt:127.0.0.1:{broker.port}/room/imu")
        found = []
        async with asyncio.timeout(TIMEOUT_S):
            async for samples in open_source(options, SPEC, options.clock())():
                found.append(samples.values.tolist())
                if len(found) == 2:
                    break
        await client.__aexit__(None, None, None)
        return found

    assert asyncio.run(scenario()) == [[[1, 2]], [[3, 4]]]
    options = parse_source("mqtt:broker")
    with pytest.raises(ConfigError, match=r"the topic is missing; write mqtt:HOST/TOPIC"):
        open_source(options, SPEC, options.clock())


def test_answers_are_a_sensor_of_home_assistant_that_is_offline_after_the_end(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cluster:
        """A client of a cluster with one answer."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_: Any) -> None: ...

        async def watch(self) -> AsyncIterator[WindowAnswer]:
            yield ANSWER

        async def metadata(self) -> Any:
            return SimpleNamespace(state={"accuracy": {"next_worst": 0.6, "next_worst_node": "hip"}})

    monkeypatch.setattr("nonn.client.AsyncClient", Cluster)
    options = argparse.Namespace(
        address="", tls=None, token_file=None, insecure=False, count=1, json=True, name="activity"
    )

    async def scenario() -> dict[str, list[str]]:
        client, found = await connected(broker), dict[str, list[str]]()
        for topic in ("nonn/#", "homeassistant/#"):
            await client.subscribe(topic)
        async with asyncio.timeout(TIMEOUT_S):
            await _publish(options, broker)
            async for message in client.messages:
                found.setdefault(str(message.topic), []).append(bytes(message.payload).decode())
                if message.payload == b"offline":
                    break
        await client.__aexit__(None, None, None)
        return found

    found = asyncio.run(scenario())
    assert found["nonn/activity/availability"] == ["online", "offline"]
    config = json.loads(found["homeassistant/sensor/nonn_activity/config"][0])
    assert config["state_topic"] == config["json_attributes_topic"] == "nonn/activity/answer"
    state = json.loads(found["nonn/activity/answer"][0])
    assert (state["label"], state["accuracy"], state["accuracy if the next one fails"]) == ("walking", 0.8, 0.6)
    assert (state["most important device"], state["devices"]) == ("hip", [0, 2])
    assert json.loads(capsys.readouterr().out)["label"] == "walking"


def test_a_missing_broker_is_wrong_usage() -> None:
    with pytest.raises(ConfigError, match="--mqtt: the broker is missing"):
        Broker.parse("", "--mqtt")
    assert Broker.parse("home", "--mqtt") == Broker("home", 1883)


def test_a_broker_that_is_gone_is_named_once_and_called_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for pause in ("nonn_device.sources.mqtt.AGAIN_S", "nonn.cli.watch.RECONNECT_S"):
        monkeypatch.setattr(pause, 0.001)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = parse_source(f"mqtt:127.0.0.1:{port}/room/imu")
    watching = argparse.Namespace(
        address="127.0.0.1:1", tls=None, token_file=None, insecure=False, count=0, json=True, name="activity"
    )
    said, calls = f"broker 127.0.0.1:{port}: ", list[str]()
    gone = Broker.gone

    def counted(broker: Broker, exc: Exception) -> str:
        calls.append(gone(broker, exc))
        return calls[-1]

    monkeypatch.setattr(Broker, "gone", counted)

    async def scenario() -> None:
        samples = open_source(options, SPEC, options.clock())()
        tasks = [
            asyncio.ensure_future(anext(samples)),
            asyncio.ensure_future(_publish(watching, Broker("127.0.0.1", port))),
        ]
        printed = ""
        async with asyncio.timeout(TIMEOUT_S):
            while len(calls) < 6 or said not in caplog.text or said not in printed:
                await asyncio.sleep(0.01)
                printed += capsys.readouterr().err
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "is it running" in printed
        assert max(caplog.text.count(said), printed.count(said)) < len(calls) / 2

    asyncio.run(scenario())
    assert "is it running" in caplog.text
