"""MQTT, for homes that already have a broker: its address, and the form of an answer for Home Assistant.

aiomqtt is the client; it is imported only if a broker is used (extra ``mqtt``). User and password are in the
environment: ``NONN_MQTT_USER``, ``NONN_MQTT_PASSWORD``.

Limit: no TLS to the broker; it belongs on this machine or on a trusted network.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonn.errors import ConfigError
from nonn.rpc.address import split_address, with_port

if TYPE_CHECKING:
    import aiomqtt

    from nonn.streams import WindowAnswer

__all__ = ["Broker", "HomeAssistantSensor"]

PORT = "1883"


@dataclass(frozen=True)
class Broker:
    """A broker.

    Attributes:
        host: its address.
        port: its port.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, what: str) -> Broker:
        """Reads ``HOST`` or ``HOST:PORT``.

        Args:
            text: to read.
            what: option that it is from, for messages.

        Raises:
            ConfigError: it is neither.
        """
        if not text:
            raise ConfigError(f"{what}: the broker is missing; write HOST or HOST:PORT")
        return cls(*split_address(with_port(text, PORT), what))

    def client(self, **options: Any) -> aiomqtt.Client:
        """A client that connects when it is entered."""
        import aiomqtt

        user, password = (os.environ.get(f"NONN_MQTT_{name}") for name in ("USER", "PASSWORD"))
        return aiomqtt.Client(self.host, self.port, username=user, password=password, **options)

    def gone(self, exc: Exception) -> str:
        """A message about a connection that failed or ended."""
        return (
            f"broker {self.host}:{self.port}: {exc}; is it running, and are NONN_MQTT_USER and NONN_MQTT_PASSWORD "
            "right? trying again"
        )


@dataclass(frozen=True)
class HomeAssistantSensor:
    """The answers of a cluster as one sensor of Home Assistant (its MQTT discovery).

    Attributes:
        name: of the sensor; letters, digits, ``-`` and ``_``.
    """

    name: str

    @property
    def state_topic(self) -> str:
        """Topic of the answers."""
        return f"nonn/{self.name}/answer"

    @property
    def availability_topic(self) -> str:
        """Topic that says ``online`` or ``offline``."""
        return f"nonn/{self.name}/availability"

    def discovery(self) -> tuple[str, str]:
        """Topic and payload that make Home Assistant create the sensor; retained."""
        config = {
            "name": self.name,
            "unique_id": f"nonn_{self.name}",
            "object_id": f"nonn_{self.name}",
            "state_topic": self.state_topic,
            "value_template": "{{ value_json.label }}",
            "json_attributes_topic": self.state_topic,
            "availability_topic": self.availability_topic,
            "device": {"identifiers": [f"nonn_{self.name}"], "name": "nonn", "manufacturer": "nonn"},
        }
        return f"homeassistant/sensor/nonn_{self.name}/config", json.dumps(config)

    def state(self, answer: WindowAnswer, next_worst: float, next_worst_node: str) -> str:
        """An answer.

        Args:
            answer: of one window.
            next_worst: accuracy if the most important node fails next.
            next_worst_node: that node.
        """
        return json.dumps(
            {
                "label": answer.label or "unknown",
                "confidence": round(answer.confidence, 4),
                "accuracy": round(answer.expected_accuracy, 4),
                "accuracy if the next one fails": round(next_worst, 4),
                "most important device": next_worst_node,
                "devices": list(answer.devices),
                "missing": dict(answer.missing),
                "time": answer.time,
            }
        )
